// Package budget keeps the books of the memory: what was measured, what has passed since (fresh)
// and what is still coming. The sum of the three is an upper bound on the memory in use at every
// moment, as far as the configured caps tell the truth, and but for what the clients of rejected
// requests send later than within a round trip, which no filter sees before the next reading does.
//
// A Table is shared by the workers of a process. Each worker has an Account with which it leases
// room from the table, so that most requests need no exchange, and in which each live request is a
// Stream. Nothing here reads a clock: now is an argument everywhere, CLOCK_MONOTONIC of the host.
// Nothing here decides whom to reject.
//
// Who owns whom:
//
//	Store ── Table ─┬─ the reading, and what was learned of it
//	                └─ Entry: one for each worker
//
//	Account: one worker ─┬─ shared    its copy of the table, and each change of it
//	                     ├─ own       the entry that it publishes next
//	                     ├─ lease     what it may come to hold without asking
//	                     ├─ fresh     what has passed since the readings
//	                     ├─ readings ── trend, mix: what the poller learns
//	                     └─ streams ─── Stream ── two messages: request and response
//
//	Connection: its cost is in an Account, and its owner is the guard
//
// Where is what:
//
//	account.go    Account and the promises that it keeps
//	claim.go      room is asked for, and leased (lease.go)
//	stream.go     Stream; message.go a direction of it; pass.go bytes pass; presume.go unjudged ones
//	pause.go      how it counts what a paused or rejected request leaves unread (how much: guard)
//	connection.go what a connection costs, and what an ended response left there
//	settle.go     what is likely still held, and reservations for what does not come (lapse)
//	fresh.go      what becomes of what has passed when a reading comes
//	reading.go    a reading comes; trend.go what is learnt of it: base, surprise, how much to evict
//	level.go      how full memory is, and when shedding is futile
//	impossible.go the base is as much as the limit: what is in force then, and what proves it
//	table.go      the table, and who is dropped from it because his machine trapped
//	entry.go      a worker's part of the table
//	shared.go     how the table is changed; tick.go what a tick does; store.go where it is kept
//	shadow.go     requests that mode enforce would have held back or rejected
package budget

// Account is one worker's part of the books. It keeps two promises.
//
// To the others: what this worker's streams have moved since the readings and may still move, fresh
// + coming, is at most its lease, which the table shows. So for any other worker
//
//	reading + leases of the others + own fresh + own coming
//
// is an upper bound on the memory in use, whatever this worker does until the next exchange. Where
// something can't be refused it may outgrow the lease; then Cover raises that at once.
//
// To itself: it counts a byte as coming from the moment in which it is promised to a stream, and as
// fresh from the moment in which it passes, until a reading that was asked for later is there,
// which has it. In between it is in both, and never in neither: so the sum may be too high for the
// time of one reading, and is never too low.
//
// It is not safe for concurrent use. Make it with NewAccount.
type Account struct {
	shared   shared   // the table, as this worker knows it
	set      Limits   // as they were set
	limits   Limits   // and as they are in the container
	own      Entry    // what is to be published, kept up to date; its lease is in lease
	joined   bool     // it is in the table, or is about to be
	joinedAt Time     // since when
	fresh    fresh    // what has passed, and is in no reading yet
	lease    lease    // what it may come to hold without asking
	learned  readings // what it makes of readings when it polls
	streams  streams  // the live ones

	Rotations  uint64 // for tests and metrics
	Exchanges  uint64
	Contention uint64 // exchanges given up because others were always first
}

// NewAccount returns the account of one worker, which joins the table with its first stream or
// connection. The error is the store's.
func NewAccount(store Store, limits Limits) (*Account, error) {
	id, err := store.NextID()
	if err != nil {
		return nil, err
	}
	a := &Account{shared: shared{store: store, id: id}, learned: readings{trend: newTrend()}}
	a.SetLimits(limits)
	a.own.ID = id
	a.streams.init()
	return a, nil
}

// SetLimits puts other figures in force. What is admitted stays admitted.
func (a *Account) SetLimits(l Limits) {
	if l.Connections != a.limits.Connections {
		a.own.Connections.Lease = min(a.own.Connections.Lease, a.own.Connections.Open) // it was a part of another limit
	}
	a.set, a.limits = l, l.of(a.shared.table.Container)
}

// Limits are the figures in force, to look at.
func (a *Account) Limits() *Limits { return &a.limits }

// InForce is the limit by which is decided, bytes: see Table.InForce.
func (a *Account) InForce() int64 { return a.shared.table.InForce(&a.limits) }

// Turned says that the last reading that this worker brought has made the limit impossible to hold,
// or possible again: see Table.Impossible.
func (a *Account) Turned() bool { return a.learned.turned }

// Floor is what small requests have in any case, bytes.
func (a *Account) Floor() int64 { return a.limits.floor() }

// ID is the worker's id in the table.
func (a *Account) ID() uint32 { return a.shared.id }

// Store is where the table is kept.
func (a *Account) Store() Store { return a.shared.store }

// Joined says that the worker has had a stream or a connection, and is in the table.
func (a *Account) Joined() bool { return a.joined }

// Own is the account's own entry as of now.
func (a *Account) Own() Entry {
	e := a.own
	e.Lease, e.Paused, e.Stays = a.lease.total, a.fresh.paused, a.fresh.stays
	return e
}

// Table is the table as it was last loaded, with the account's own entry as of then.
func (a *Account) Table() *Table { return &a.shared.table }

// Others is the sum of all other workers as of the last exchange.
func (a *Account) Others() Entry { return a.shared.others }

// Share is T(x): where the share x of what traffic can have ends, bytes. See Table.
func (a *Account) Share(x float64) int64 { return a.shared.table.share(&a.limits, x) }

// Room is what traffic can have at all: T(1) − base, bytes, never negative.
func (a *Account) Room() int64 { return max(a.Share(1)-a.shared.table.Base, 0) }

// Stale says that there is no recent reading.
func (a *Account) Stale(now Time) bool {
	return a.shared.table.Sequence == 0 || now-a.shared.table.Asked > staleAfter
}

// Estimate is the upper bound on memory in use: reading + fresh + coming of all workers, or,
// without a reading, base and what the live streams can hold. Leases count for others as far as
// this worker must count them.
func (a *Account) Estimate(now Time) int64 { return a.estimate(a.Stale(now)) }

// Mark has what passes from now on be told from what has passed before, when a reading is asked for
// about now, and tells the others what a new reading has. Unlike elsewhere now has to be the time,
// and not that of the last tick. Ask Marks first.
func (a *Account) Mark(now Time) {
	if !a.fresh.mayMark(now) || !a.Marks() {
		return
	}
	_ = a.Refresh(now) // without it, a little later
	if a.notice(now) > 0 && a.joined && a.exchange(now, func() bool { a.tighten(now); a.entry(now); return true }) == nil {
		a.published() // else they would count for as long as this pass takes what is in the reading
	}
	if a.fresh.mayMark(now) {
		a.fresh.mark(now)
	}
}

// Marks says whether it is worth a Mark. Where what passes stays it is not: what is made of it may
// come later, such as a copy of a body for ext_authz, and so what is fresh is counted for longer.
// Where nothing is known it is, as soon as memory is not calm: what passes in the first burst is
// soon in readings, of which several may come before the next tick.
func (a *Account) Marks() bool {
	t := &a.shared.table
	return t.Drains() || !t.Stays() && a.crowded()
}

// Measured is what is in use by the last reading and by what has passed since that was asked for,
// as far as what passes has lately stayed, and without what is still coming, bytes. It counts
// hardly anything twice, and is no upper bound: what others have passed since they last published
// is not in it. Who is let in goes by Estimate; by this, who may wait.
func (a *Account) Measured() int64 {
	t := &a.shared.table
	stays := a.shared.others.Stays + a.fresh.stays
	return t.Reading + stays + int64(t.keeps()*float64(a.shared.others.Fresh+a.own.Fresh-stays)) - a.fresh.freed
}

// Foreseen is Measured with what is coming, as far as what passes has lately stayed.
func (a *Account) Foreseen() int64 {
	t := &a.shared.table
	return a.Measured() + int64(t.keeps()*float64(a.shared.others.Coming+a.own.Coming))
}

// Free notes that n bytes go that are in a reading or have passed since: until the next reading,
// Measured knows of it by this alone.
func (a *Account) Free(now Time, n int64) {
	a.fresh.free(now, n)
}

func (a *Account) estimate(stale bool) int64 {
	if stale {
		return a.shared.table.Base + a.shared.others.Bounds + a.shared.others.Coming + a.own.Bounds + a.own.Coming
	}
	return a.shared.table.Reading + a.shared.others.Lease + a.own.need()
}

// SetWaiting publishes, with the next exchange, how many wait, what they may hold by it, what of
// that is there and since when.
func (a *Account) SetWaiting(n, held, come int64, since Time) {
	a.own.Queue.Waiting, a.own.Queue.Held, a.own.Queue.Come, a.own.Queue.Since = n, held, come, since
}

// SetRate publishes, with the next exchange, for how many bytes those in the queue wait, and how
// many are admitted per second.
func (a *Account) SetRate(wanted, perSecond int64) {
	a.own.Queue.Wanted, a.own.Queue.Rate = wanted, perSecond
}

// SetLeft publishes, with the next exchange, what rejected requests left unread.
func (a *Account) SetLeft(n int64) { a.own.Left = n }

// SetLeaving publishes, with the next exchange, what this worker has evicted and what may still be
// there.
func (a *Account) SetLeaving(n int64) { a.own.Evicted.Leaving = n }

// SetVM publishes, with the next exchange, the memory of this worker's virtual machine.
func (a *Account) SetVM(n int64) { a.own.VM = n }

// ToEvict says how much all workers together are to evict, once: 0 if this one has done its part.
func (a *Account) ToEvict() int64 {
	if a.own.Evicted.Sequence >= int64(a.shared.table.Evict.Sequence) {
		return 0
	}
	a.own.Evicted.Sequence = int64(a.shared.table.Evict.Sequence)
	return a.shared.table.Evict.Bytes
}

// Owners calls do with the owner of each live stream.
func (a *Account) Owners(do func(owner any)) {
	for s := a.streams.ring.next; s != &a.streams.ring; s = s.next {
		do(s.owner)
	}
}
