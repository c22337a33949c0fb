package budget

import "time"

// Connection is the cost of one connection in the account.
type Connection struct {
	_ [0]func() // no two are compared: the function that could would only take room in the .wasm

	cost cost
	held int64 // what its last response left, at most
	at   Time
	key  *Sum     // of that response
	adds [2]int64 // likely, bound: what it adds to the account

	shared cost // what PassShared has counted
}

// OpenConnection adds a connection, with what its existence costs.
func (a *Account) OpenConnection(c *Connection, costs int64) {
	*c = Connection{cost: cost{costs, a.fresh.gen}}
	a.own.Connections.Open++
	a.addFresh(costs)
}

// RaiseConnection sets a higher cost: the connection turned out to be a TLS one.
func (a *Account) RaiseConnection(c *Connection, cost int64) {
	if cost > c.cost.bytes {
		a.addFresh(cost - c.cost.bytes)
		c.cost.bytes = cost // where its first cost is in a reading, nothing of it is taken back
	}
}

// CloseConnection ends that: its cost is given back.
func (a *Account) CloseConnection(c *Connection) {
	a.own.Connections.Open--
	a.fresh.giveBack(c.cost.gen, c.cost.bytes)
	a.leave(c, 0, 0)
}

// Leave notes what a response of a key that has ended may still hold: unread, in the codec of its
// connection.
func (a *Account) Leave(now Time, c *Connection, bytes int64, key *Sum) {
	a.leave(c, 0, 0)
	c.held, c.at, c.key = bytes, now, key
	a.leave(c, bytes, bytes)
}

// Left is what the last response of the connection likely still holds, bytes.
func (c *Connection) Left() int64 { return c.adds[0] }

// Unread is the most that the last response of the connection can still hold, bytes.
func (c *Connection) Unread() int64 { return c.adds[1] }

const leaveFor = 10 * time.Second // TestAnEndedResponseStaysWithItsConnection

// Settle takes less and less of it as likely, and nothing after 10 s.
func (a *Account) Settle(now Time, c *Connection) (left bool) {
	if now-c.at >= leaveFor {
		a.leave(c, 0, 0)
		return false
	}
	a.leave(c, int64(weight(now-c.at)*float64(c.held)), c.held)
	return true
}

func (a *Account) leave(c *Connection, likely, bound int64) {
	if c.key == nil {
		return
	}
	a.own.Likely += likely - c.adds[0]
	a.own.Bounds += bound - c.adds[1]
	c.key.Likely += likely - c.adds[0]
	c.adds = [2]int64{likely, bound}
}

// maxConnectionSlack is how many connections a worker may take before it asks again.
const maxConnectionSlack = 64 // TestAConnectionMakesNoExchange

// AskConnection asks whether one more connection may be opened: Denied means that with it more than
// Limits.Connections would be open in all workers together. It makes no exchange where the lease
// has one left, or where there is no limit. On Granted the caller opens it, or does not. Busy is no
// leave either: the limit must hold.
func (a *Account) AskConnection(now Time) Outcome {
	if a.limits.Connections == 0 || a.own.Connections.Open < a.own.Connections.Lease {
		return Granted
	}
	var lent int64
	out := a.borrow(now, func() (granted bool) {
		free := a.FreeConnections() - 1
		if free < 0 {
			return false
		}
		lent = a.own.Connections.Open + 1 + a.connectionSlack(free)
		a.entry(now).Connections.Lease = lent
		return true
	})
	if out == Granted {
		a.own.Connections.Lease = lent
	}
	return out
}

// FreeConnections is how many more this worker could open if it had all that is not lent to others,
// as of the last exchange; negative above the limit.
func (a *Account) FreeConnections() int64 {
	return a.limits.Connections - a.shared.others.Connections.Lease - a.own.Connections.Open
}

func (a *Account) connectionSlack(free int64) int64 {
	return max(min(maxConnectionSlack, free/int64(2*max(a.shared.workers, 1))), 0)
}

// shrinkConnections lowers the lease to the connections that there are and the slack of the
// formula.
func (a *Account) shrinkConnections() {
	if a.limits.Connections == 0 {
		a.own.Connections.Lease = 0
		return
	}
	a.own.Connections.Lease = min(a.own.Connections.Lease, a.own.Connections.Open+a.connectionSlack(a.FreeConnections()))
}
