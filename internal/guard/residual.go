package guard

import "time"

// leftovers is what ended responses may still hold, because their clients have not read it yet.
type leftovers struct {
	residual []*Connection // with an ended response that may be unread
	settled  Time          // when those were looked at last
}

// leave notes what an ended response may still hold, unread, on its connection.
func (w *Worker) leave(now Time, c *Connection, n int64, k *key) {
	w.account.Leave(now, &c.Connection, n, &k.Value.Sum)
	if c.key != nil {
		c.key.Refs--
	}
	c.key, c.spared = k, false
	k.Refs++
	if !c.unread {
		c.unread = true
		w.residual = append(w.residual, c)
	}
}

// settle lets what ended responses left become less likely with time.
func (w *Worker) settle(now Time) {
	if now-w.settled < 500*time.Millisecond {
		return
	}
	w.settled = now
	kept := w.residual[:0]
	for _, c := range w.residual {
		if !c.IsClosed && w.account.Settle(now, &c.Connection) {
			kept = append(kept, c)
		} else {
			c.unread = false
			c.key.Refs--
			c.key = nil
			c.traced = traced{}
		}
	}
	clear(w.residual[len(kept):])
	w.residual = kept
}
