package guard

import "time"

// newcomers are connections whose client has sent nothing yet. What it sends first Envoy reads before it asks anybody, as much as the
// listener's buffer holds, and whoever is turned away for it has brought it already: 100 clients who came at once behind buffers of
// 1 MiB held 100 MiB before the first of them could be judged. So those beyond the usual are expected to bring that. What the usual
// ones bring is in the reading, with those who came before them; and who is silent for longer than newFor is usual: clients connect
// when they have something to send, and those that keep a connection for later, or for harm, shall not lock others out.
type newcomers struct {
	bytes  int64    // what they bring, if all of them bring that
	most   [2]int64 // of it, in this period, as ticks saw it, and in the one before
	usual  int64    // and before that, less and less
	turned Time     // when this period began
}

const (
	newFor = 125 * time.Millisecond // one period; at least for that, and at most for two, who has come is new
	// newShare: newcomers are expected to bring 1/4 of what traffic can have at most.
	newShare = 4
	// usualShare: what was usual is forgotten by 1/8 each period.
	usualShare = 8
)

// pass lets the time pass.
func (n *newcomers) pass(now Time) {
	n.most[0] = max(n.most[0], n.bytes)
	if now-n.turned >= newFor {
		n.usual = max(n.most[1], n.usual-n.usual/usualShare)
		n.most, n.turned = [2]int64{0, n.most[0]}, now
	}
}

// expected is what they are expected to bring, bytes.
func (n *newcomers) expected(room int64) int64 {
	return min(max(n.bytes-n.usual, 0), room/newShare)
}

// connects notes that a client has connected, to a listener whose buffer is so large.
func (w *Worker) connects(c *Connection, buffer int64) {
	c.brings = buffer
	w.newcomers.bytes += buffer
	w.expectNewcomers()
}

// heard notes that the connection's client has sent something, or has gone.
func (w *Worker) heard(c *Connection) {
	if c.brings > 0 {
		w.newcomers.bytes -= c.brings
		c.brings = 0
		w.expectNewcomers()
	}
}

func (w *Worker) expectNewcomers() {
	w.account.ExpectConnections(w.newcomers.expected(w.account.Room()))
}
