package budget

import "errors"

// maxConnectionSlack is how many connections a worker may take before it asks again.
const maxConnectionSlack = 64

// AskConnection asks whether one more connection may be opened: Denied means that with it more than Limits.Connections
// would be open in all workers together. It makes no exchange where the lease has one left, or where there is no limit.
// On Granted the caller opens it, or does not. Busy is no leave either: the limit must hold.
func (a *Account) AskConnection(now Time) Outcome {
	if a.limits.Connections == 0 || a.own.Connections.Open < a.own.Connections.Lease {
		return Granted
	}
	a.joined = true
	a.Exchanges++
	for range maxTries {
		if a.Refresh(now) != nil {
			return Busy
		}
		free := a.FreeConnections() - 1
		if free < 0 {
			return Denied
		}
		lease := a.own.Connections.Lease
		a.own.Connections.Lease = a.own.Connections.Open + 1 + a.connectionSlack(free)
		err := a.publish(now, 0, false)
		if err == nil {
			return Granted
		}
		a.own.Connections.Lease = lease // nobody knows of the new one
		if !errors.Is(err, ErrConflict) {
			return Busy
		}
	}
	a.Contention++
	return Busy
}

// FreeConnections is how many more this worker could open if it had all that is not lent to others, as of the last exchange;
// negative above the limit.
func (a *Account) FreeConnections() int64 {
	return a.limits.Connections - a.others.Connections.Lease - a.own.Connections.Open
}

func (a *Account) connectionSlack(free int64) int64 {
	return max(min(maxConnectionSlack, free/int64(2*max(a.live, 1))), 0)
}

// shrinkConnections lowers the lease to the connections that there are and the slack of the formula.
func (a *Account) shrinkConnections() {
	if a.limits.Connections == 0 {
		a.own.Connections.Lease = 0
		return
	}
	a.own.Connections.Lease = min(a.own.Connections.Lease, a.own.Connections.Open+a.connectionSlack(a.FreeConnections()))
}
