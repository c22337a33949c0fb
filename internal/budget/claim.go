package budget

// Claim says which room a request for bytes may have.
type Claim uint8

const (
	// UpToSoft may have what lies under soft: large requests of a key that has more than its share.
	UpToSoft Claim = iota
	// UpToHard may have what lies under hard, and only what was leased there.
	UpToHard
	// UpToLimit may have all up to the limit: growth, small requests, and a key that has less than
	// its share.
	UpToLimit
	// Floor is UpToLimit and, where that has no room, what is kept for small streams.
	Floor
	// Forced can't be refused. It raises the account's entry whatever the room.
	Forced
)

// room is which of the rooms the claim is for.
func (c Claim) room() int { return min(int(c), underLimit) }

// Outcome of a Claim.
type Outcome uint8

const (
	// Granted means reserve it.
	Granted Outcome = iota
	// Denied means that there is no room.
	Denied
	// Busy means that the table could not be changed in time. Nobody is rejected for it.
	Busy
)

// Ask asks for room for n more bytes, without an exchange where the lease has it; where memory is
// short a large claim looks at the table all the same. So it may change what is known of the table
// and the lease, and nothing else: on Granted the caller reserves or adds the bytes.
func (a *Account) Ask(now Time, n int64, c Claim) Outcome {
	if a.joined && !a.Stale(now) {
		if c <= UpToHard && a.crowded() {
			_ = a.Refresh(now) // a newer reading, or what others could not refuse, may have taken what the lease promised
		}
		if a.own.need() <= a.lease.left(c)-n {
			return Granted
		}
	}
	return a.claim(now, n, c)
}

// Calm says that no more than half of the room is in use, or may be, as of the last look at the
// table, and that nobody waits.
func (a *Account) Calm(now Time) bool {
	return !a.Stale(now) && a.own.Queue.Waiting == 0 && a.shared.others.Queue.Waiting == 0 && !a.crowded()
}

// Cover raises the account's entry if what is fresh and coming has outgrown the lease.
func (a *Account) Cover(now Time) {
	if a.own.need() > a.lease.total || !a.joined {
		a.claim(now, 0, Forced)
	}
}

// claim asks the table for room, and takes with it a new lease.
func (a *Account) claim(now Time, n int64, c Claim) Outcome {
	joins := !a.joined
	var lent lease
	out := a.borrow(now, func() (granted bool) {
		if joins { // it had no part in what was before
			joins, a.own.Evicted.Sequence = false, int64(a.shared.table.Evict.Sequence)
		}
		stale := a.Stale(now)
		if c != Forced && !a.grants(stale, n, c) {
			return false
		}
		lent = a.lend(stale, n, c == Forced)
		e := a.entry(now)
		e.Lease = lent.total
		e.Coming += n
		if c == Floor {
			e.Small += n
		}
		return true
	})
	if out == Granted {
		a.lease = lent
	}
	return out
}

// borrow makes an exchange in which lend writes a new lease into the worker's entry, or denies it.
// The lease is in force only where borrow grants it: else nobody knows of it.
func (a *Account) borrow(now Time, lend func() (granted bool)) Outcome {
	if !a.joined {
		a.joined, a.joinedAt = true, now
	}
	a.Exchanges++
	denied := false
	err := a.exchange(now, func() (store bool) {
		a.tighten(now)
		denied = !lend()
		return !denied
	})
	switch {
	case err != nil:
		return Busy
	case denied:
		return Denied
	}
	a.published()
	return Granted
}

// crowded says that more than half of the room is in use, or leased. From there on what has changed
// since the last tick could put the estimate beyond the limit: a newer reading, in which what is
// fresh counts a second time, or what other workers could not refuse. Below, a large request is not
// worth the call of the host.
func (a *Account) crowded() bool {
	return a.shared.table.Reading+a.shared.others.Lease+a.lease.total > a.Share(.5)
}

func (a *Account) grants(stale bool, n int64, c Claim) bool {
	if stale && a.limits.OnStale != StaleEstimate {
		return a.limits.OnStale == StaleAdmit
	}
	share := [...]float64{underSoft: a.limits.Soft, underHard: a.limits.Hard, underLimit: 1}[c.room()]
	if n <= a.shared.table.share(&a.limits, share)-a.estimate(stale) {
		return true
	}
	// Shedding what costs nothing frees nothing: small streams have a floor, which is a stock and
	// not a rate.
	return c == Floor && n <= a.limits.floor()-a.shared.others.Small-a.own.Small
}

// lend is a lease of what is needed and some slack, of what is free under hard.
func (a *Account) lend(stale bool, n int64, forced bool) lease {
	need := a.own.need() + n
	free := a.rooms(stale)
	slack := a.slack(free[underHard]-need, need)
	if forced && slack == 0 && need > a.lease.total {
		slack = raise
	}
	lent := lease{total: need + slack, admits: each(need + slack)}
	lent.tighten(free)
	return lent
}

// raise is how much more than needed is taken when the room can't be refused, so that not every
// chunk asks again.
const raise = 64 << 10 // TestForcedRaises

// rooms is how much this worker may hold below soft, hard and the limit, as far as the table knows:
// none without a reading, so that each admission asks.
func (a *Account) rooms(stale bool) rooms {
	if stale {
		return rooms{}
	}
	taken := a.shared.table.Reading + a.shared.others.Lease
	return rooms{
		underSoft:  a.Share(a.limits.Soft) - taken,
		underHard:  a.Share(a.limits.Hard) - taken,
		underLimit: a.Share(1) - taken,
	}
}

// tighten takes back what was leased before as room to admit, where the room has fallen since: a
// lease is a promise of what may be held, not of what may still be let in.
func (a *Account) tighten(now Time) { a.lease.tighten(a.rooms(a.Stale(now))) }

func (a *Account) slack(free, need int64) int64 {
	slack := max(min(a.limits.Limit/64, free/int64(2*max(a.shared.workers, 1))), 0)
	if a.own.Queue.Since != 0 || a.shared.others.Queue.Since != 0 {
		return 0 // else a large head of the line never fits
	}
	if need == 0 {
		// Idle workers would strand half the room; a lone GET still makes no exchange.
		slack = min(slack, 4*a.limits.Small)
	}
	return slack
}
