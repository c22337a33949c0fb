package budget

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// take asks for room and reserves it, as an admission does.
func (b *books) take(a *Account, n int64, c Claim) (*Stream, Outcome) {
	out := a.Ask(b.now, n, c)
	if out != Granted {
		return nil, out
	}
	s := b.stream(a)
	a.Expect(b.now, s, Request, n, n, 0)
	a.Cover(b.now)
	return s, out
}

// entry is what the others know of a worker.
func (b *books) entry(a *Account) Entry {
	b.t.Helper()
	for _, e := range b.stored().Entries {
		if e.ID == a.ID() {
			return e
		}
	}
	b.t.Fatal("it has not joined")
	return Entry{}
}

// Most requests make no exchange: the lease has room for them.
func TestSlackOfALease(t *testing.T) {
	noSmall := limits()
	noSmall.Small = 0
	for name, c := range map[string]struct {
		workers int
		reading int64 // of 200 MiB, the base too, so that T(hard) = reading + 0.9 × the rest
		want    int64
	}{
		"limit/64 while there is room":           {1, 40 * mib, 200 * mib / 64},
		"free/2W when it gets tight":             {4, 180 * mib, (18*mib - mib) / 8},
		"free/2W, shared with more":              {8, 180 * mib, (18*mib - mib) / 16},
		"nothing where nothing is free":          {1, 200 * mib, 0},
		"and nothing is never less than nothing": {2, 300 * mib, 0},
	} {
		t.Run(name, func(t *testing.T) {
			b := open(t, c.workers)
			b.join()
			b.readings(4, c.reading)
			if c.reading > 180*mib {
				// Nothing is free for anyone, but what is there can't be refused.
				a := b.accounts[0]
				s := b.stream(a)
				a.Pass(b.now, s, Request, mib)
				a.Cover(b.now)
				b.tick(25 * ms)
				require.Equal(t, c.want, a.Own().Lease-mib)
				return
			}
			for _, other := range b.accounts[1:] {
				// Idle ones keep their slack for a lone GET; here it would blur the figure.
				other.SetWaiting(1, 0, 0, b.now)
			}
			b.tick(25 * ms)
			for _, other := range b.accounts[1:] {
				other.SetWaiting(0, 0, 0, 0)
				other.SetLimits(noSmall)
			}
			b.tick(25 * ms)
			b.tick(25 * ms)
			a := b.accounts[0]
			_, out := b.take(a, mib, UpToHard)
			require.Equal(t, Granted, out)
			require.InDelta(t, c.want, a.Own().Lease-mib, 2)
			require.Equal(t, a.Own().Lease, b.entry(a).Lease, "and all know it")

			before := a.Exchanges
			_, out = b.take(a, c.want/2, UpToHard)
			require.Equal(t, Granted, out)
			require.Equal(t, before, a.Exchanges, "no exchange: the lease has it")
		})
	}
}

// Idle workers would strand half the room: eight of them 25 of 200 MiB.
func TestAnIdleWorkerKeepsLittleSlack(t *testing.T) {
	b := open(t, 2)
	b.join()
	b.readings(2, 40*mib)
	a := b.accounts[0]
	s, out := b.take(a, 8*mib, UpToHard)
	require.Equal(t, Granted, out)
	require.Equal(t, 8*mib+200*mib/64, a.Own().Lease)
	a.Close(b.now, s)
	b.tick(25 * ms)
	require.Equal(t, 4*64*kib, a.Own().Lease, "on tick it shrinks to the formula")
	require.Equal(t, 4*64*kib, b.entry(a).Lease)

	before := a.Exchanges
	_, out = b.take(a, 0, Floor)
	require.Equal(t, Granted, out)
	require.Equal(t, before, a.Exchanges, "a lone GET still makes no exchange")
}

// While anyone waits anywhere nobody has slack: else a large head of a line never fits.
func TestNoSlackWhileAnyoneWaits(t *testing.T) {
	b := open(t, 2)
	b.join()
	b.readings(2, 40*mib)
	a, far := b.accounts[0], b.accounts[1]
	_, out := b.take(a, mib, UpToHard)
	require.Equal(t, Granted, out)
	require.Greater(t, a.Own().Lease, mib)
	far.SetWaiting(1, 64*kib, 64*kib, b.now)
	b.tick(25 * ms) // one tick to tell
	b.tick(25 * ms) // and one to hear
	require.Equal(t, mib, a.Own().Lease)
	require.Zero(t, far.Own().Lease)
	require.Equal(t, int64(1), a.Others().Queue.Waiting)
	require.Equal(t, 64*kib, a.Others().Queue.Held)
	_, out = b.take(a, mib, UpToLimit)
	require.Equal(t, Granted, out)
	require.Equal(t, 2*mib, a.Own().Lease, "nor does an exchange give any")
	far.SetWaiting(0, 0, 0, 0)
	b.tick(25 * ms)
	b.tick(25 * ms)
	_, out = b.take(a, mib, UpToHard)
	require.Equal(t, Granted, out)
	require.Greater(t, a.Own().Lease, 3*mib)
}

// What was dropped from fresh is in the reading now. Left in the lease, it would be granted a
// second time: 1.2 times the budget in simulation.
func TestTheLeaseFallsWithARotation(t *testing.T) {
	b := open(t, 2)
	b.join()
	b.readings(2, 40*mib)
	a := b.accounts[0]
	s, out := b.take(a, 20*mib, UpToHard)
	require.Equal(t, Granted, out)
	a.Pass(b.now, s, Request, 20*mib)
	lease, under := a.Own().Lease, admits(a)
	require.GreaterOrEqual(t, lease, 20*mib)
	b.readings(1, 60*mib)
	require.Equal(t, 20*mib, a.Own().Fresh)

	// The next reading is the other worker's. An exchange meets it first and drops nothing, for its
	// time may be that of the last tick. The tick does.
	b.now += 24 * ms
	_, _, err := b.accounts[1].Observe(b.now, b.now, 60*mib)
	require.NoError(t, err)
	a.claim(b.now, 0, Forced)
	require.Equal(t, 20*mib, a.Own().Fresh)
	_, err = a.Tick(b.now)
	require.NoError(t, err)
	require.Zero(t, a.Own().Fresh)
	require.LessOrEqual(t, a.Own().Lease, lease-20*mib)
	for c, n := range admits(a) {
		require.LessOrEqual(t, n, under[c]-20*mib)
	}
}

// Two workers fill the room, the bytes pass, the readings come: what was granted is never above
// T(hard).
func TestWhatIsGrantedStaysUnderHardThroughRotations(t *testing.T) {
	b := open(t, 2)
	b.join()
	b.readings(3, 40*mib)
	held := 40 * mib
	var streams []*Stream
	for range 80 {
		for i, a := range b.accounts {
			if s, out := b.take(a, mib*int64(1+i), UpToHard); out == Granted {
				a.Pass(b.now, s, Request, mib*int64(1+i))
				held += mib * int64(1+i)
				streams = append(streams, s)
			}
			require.LessOrEqual(t, held, 184*mib)
		}
		b.now += 24 * ms
		b.read(b.now, held)
	}
	require.Greater(t, held, 180*mib, "and all of it is used")
	require.NotEmpty(t, streams)
}

// Large requests may have what lies under hard, and only what was leased there: a lease that a
// small one had raised to the limit let them past it.
func TestALargeRequestSpendsOnlyWhatLiesUnderHard(t *testing.T) {
	b := open(t, 1)
	a := b.accounts[0]
	b.readings(3, 40*mib)
	// T(hard) is 184 MiB, so that 144 are for the large.
	_, out := b.take(a, 143*mib, UpToHard)
	require.Equal(t, Granted, out)
	_, out = b.take(a, 10*mib, UpToLimit)
	require.Equal(t, Granted, out, "growth and small ones may have all up to the limit")
	before := a.Exchanges
	require.Equal(t, Denied, a.Ask(b.now, kib, UpToHard), "though the lease may cover it")
	require.Greater(t, a.Exchanges, before)
	require.Equal(t, Granted, a.Ask(b.now, 7*mib, UpToLimit))
	require.Equal(t, Denied, a.Ask(b.now, 7*mib+kib, UpToLimit))
}

// What is there can't be refused: it raises the entry whatever the room, and is no room for
// admissions.
func TestForcedRaises(t *testing.T) {
	b := open(t, 2)
	b.join()
	b.readings(3, 40*mib)
	a, other := b.accounts[0], b.accounts[1]
	require.Equal(t, Granted, other.Ask(b.now, 0, UpToHard))

	s := b.stream(a)
	a.Pass(b.now, s, Response, 170*mib)
	a.Cover(b.now)
	require.GreaterOrEqual(t, b.entry(a).Lease, 170*mib)
	require.Equal(t, 170*mib, b.entry(a).Fresh)
	require.Equal(t, Denied, other.Ask(b.now, mib, UpToHard), "others count it")
	require.Equal(t, Denied, other.Ask(b.now, mib, UpToLimit))
	for _, c := range []Claim{UpToHard, UpToLimit} {
		require.Equal(t, Denied, a.Ask(b.now, kib, c), "the raise has a little more than needed, so that not each chunk asks; but not for these")
	}
	before := a.Exchanges
	a.Pass(b.now, s, Response, raise-kib)
	a.Cover(b.now)
	require.Equal(t, before, a.Exchanges)
	require.Equal(t, Granted, a.Ask(b.now, 300*mib, Forced))
}

// What another worker could not refuse takes what a lease promised, before the next tick tells of
// it.
func TestAStaleLeaseAdmitsNoneWhereMemoryIsShort(t *testing.T) {
	b := open(t, 2)
	b.join()
	b.readings(3, 40*mib)
	b.readings(3, 130*mib)
	a, other := b.accounts[0], b.accounts[1]
	_, out := b.take(a, kib, UpToHard)
	require.Equal(t, Granted, out)
	require.Greater(t, a.Own().Lease, 2*mib, "there is slack")
	other.Pass(b.now, b.stream(other), Response, 60*mib)
	other.Cover(b.now)
	require.Equal(t, Denied, a.Ask(b.now, mib, UpToHard))
}

// Others count what a worker was promised, or more where it could not be refused.
func TestOthersCountTheLeaseOrTheNeed(t *testing.T) {
	table := Table{Entries: []Entry{
		{ID: 1, Lease: 5, Fresh: 1, Coming: 2},
		{ID: 2, Lease: 5, Fresh: 4, Coming: 3},
		{ID: 3, Lease: -5},
		{ID: 4, Lease: 100, Queue: Queue{Waiting: 2, Since: 20}},
		{ID: 5, Queue: Queue{Waiting: 1, Since: 10}},
	}}
	sum := table.sum(4)
	require.Equal(t, int64(5+7+0), sum.Lease)
	require.Equal(t, Time(10), sum.Queue.Since)
	require.Equal(t, int64(112), table.Sum().Lease)
	require.Equal(t, int64(3), table.Sum().Queue.Waiting)
	require.Equal(t, Time(10), table.Sum().Queue.Since, "the earliest, and nobody is not the earliest")
}

// The floor is a stock of all workers together, and the one grant that may exceed the limit.
func TestTheFloorIsSharedByAllWorkers(t *testing.T) {
	b := open(t, 2)
	b.join()
	b.readings(4, 40*mib)
	b.readings(4, 230*mib)
	granted := 0
	for i := range 400 {
		a := b.accounts[i%2]
		if a.Ask(b.now, 40*kib, Floor) != Granted {
			continue
		}
		s := b.stream(a)
		a.Expect(b.now, s, Request, 40*kib, 40*kib, 0)
		granted++
	}
	require.Equal(t, int(10*mib/(40*kib)), granted)
	require.Equal(t, Denied, b.accounts[0].Ask(b.now, 40*kib, UpToLimit))
	require.Equal(t, Granted, b.accounts[0].Ask(b.now, 0, Floor), "who brings nothing is let in")
}

// A worker that was trapped no longer beats. After 2 s it is dropped: what it held is in the
// reading, and its lease would strand its room for ever.
func TestADeadWorkerIsDropped(t *testing.T) {
	b := open(t, 2)
	b.join()
	b.readings(3, 40*mib)
	dead, a := b.accounts[1], b.accounts[0]
	_, out := b.take(dead, 140*mib, UpToHard)
	require.Equal(t, Granted, out)
	require.Equal(t, Denied, a.Ask(b.now, 8*mib, UpToHard))
	b.accounts = b.accounts[:1]
	at := b.now
	for b.now < at+1950*ms {
		b.readings(1, 40*mib)
		require.Equal(t, Denied, a.Ask(b.now, 8*mib, UpToHard))
	}
	b.readings(4, 40*mib)
	require.Len(t, b.stored().Entries, 1)
	require.Equal(t, Granted, a.Ask(b.now, 8*mib, UpToHard))

	// It was only slow: it is back with its next beat.
	b.accounts = append(b.accounts, dead)
	b.tick(25 * ms)
	b.tick(25 * ms)
	require.Len(t, b.stored().Entries, 2)
}

// One VM asks for readings. If it hangs or has gone, another takes over after 250 ms.
func TestThePollerSlotIsTakenOver(t *testing.T) {
	b := open(t, 3)
	polls := func(i int) bool {
		p, err := b.accounts[i].Tick(b.now)
		require.NoError(t, err)
		return p
	}
	require.True(t, polls(0), "the first that comes, even one that has not joined: the main thread's may")
	require.Empty(t, b.stored().Entries)
	require.False(t, polls(1))
	for range 40 {
		b.now += 25 * ms
		require.False(t, polls(2))
		require.True(t, polls(0), "it keeps it")
		require.False(t, polls(1))
	}
	for b.now <= b.stored().Poller.Beat+pollerFree-25*ms {
		b.now += 25 * ms
		require.False(t, polls(1))
	}
	require.LessOrEqual(t, b.now-b.stored().Poller.Beat, pollerFree)
	b.now += 26 * ms
	require.True(t, polls(2))
	require.False(t, polls(1))
	require.False(t, polls(0), "and who had it has lost it")
}

// An entry is written when something changed, or to beat: 1,000 idle ticks must not be 1,000
// writes.
func TestAnIdleTickWritesOnlyToBeat(t *testing.T) {
	f := &fails{}
	a, err := NewAccount(f, limits())
	require.NoError(t, err)
	now := time.Hour
	for range 1000 {
		now += 25 * ms
		_, err := a.Tick(now)
		require.NoError(t, err)
	}
	require.InDelta(t, 250, f.swaps, 10)
}

// What was granted counts from the grant on, also for who loads the table before it is reserved.
func TestAGrantIsPublishedBeforeItIsReserved(t *testing.T) {
	b := open(t, 1)
	b.join()
	b.readings(3, 40*mib)
	a := b.accounts[0]
	require.Equal(t, Granted, a.Ask(b.now, 8*mib, UpToHard))
	require.Equal(t, 8*mib, b.entry(a).Coming)
	require.GreaterOrEqual(t, b.entry(a).Lease, 8*mib)
	require.Zero(t, b.entry(a).Small)

	b = open(t, 1)
	a = b.accounts[0]
	b.join()
	b.readings(3, 230*mib)
	require.Equal(t, Granted, a.Ask(b.now, 40*kib, Floor))
	require.Equal(t, 40*kib, b.entry(a).Small, "else two workers have the floor at once")
}

// admits is how much the worker may come to hold, by claim, without asking the table.
func admits(a *Account) map[Claim]int64 {
	all := map[Claim]int64{}
	for _, c := range []Claim{UpToSoft, UpToHard, UpToLimit} {
		all[c] = a.lease.left(c)
	}
	return all
}

// A lease by itself: what is spent is in a reading, and is granted to nobody a second time; between
// two exchanges nothing makes it larger than what is needed.
func TestALeaseOnlyShrinks(t *testing.T) {
	l := lease{total: 100, admits: rooms{underSoft: 60, underHard: 80, underLimit: 100}}
	require.Equal(t, int64(60), l.left(UpToSoft))
	require.Equal(t, int64(80), l.left(UpToHard))
	require.Equal(t, int64(100), l.left(UpToLimit))
	require.Equal(t, int64(100), l.left(Forced))
	l.spend(30)
	require.Equal(t, lease{total: 70, admits: rooms{30, 50, 70}}, l)
	l.tighten(rooms{40, 40, 40})
	require.Equal(t, lease{total: 70, admits: rooms{30, 40, 40}}, l, "it may hold what it may admit no more")
	l.shrink(10, 15)
	require.Equal(t, lease{total: 25, admits: rooms{25, 25, 25}}, l)
	l.shrink(40, 0)
	require.Equal(t, lease{total: 40, admits: rooms{25, 25, 25}}, l, "what is there can't be refused")
}
