// Package budget keeps the books of the memory: what was measured, what has passed since (fresh)
// and what is still coming. The sum of the three is an upper bound on the memory in use at every
// moment, as far as the configured caps tell the truth, and but for what the clients of rejected
// requests send later than within a round trip, which no filter sees before the next reading does.
//
// A Table is shared by the workers of a process. Each worker has an Account with which it leases
// room from the table, so that most requests need no exchange, and in which each live request is a
// Stream. Nothing here reads a clock: now is an argument everywhere, CLOCK_MONOTONIC of the host.
// Nothing here decides whom to reject.
package budget

import (
	"errors"
	"math"
	"time"
)

// Account is one worker's part of the books. It is not safe for concurrent use. Make it with
// NewAccount.
type Account struct {
	store  Store
	set    Limits // as they were set
	limits Limits // and as they are in the container
	id     uint32

	own     Entry // what is published, kept up to date
	written Entry // what was published last
	table   Table // the last one loaded
	others  Entry // sum of the others in it
	live    int   // workers in it, this one included
	version uint32
	buf     []byte

	fresh      [2]int64 // this generation, and the one before
	spare      int64    // of fresh[0]: of what is gone, for what comes next
	gen        uint32
	rotated    Time
	seen       uint64 // sequence of the last reading noticed
	told       uint64 // and of the last one after which the entry was published
	under      rooms  // how much of the lease lies under soft, hard and the limit: what admissions may spend
	trend      trend
	watch      func(now Time, t *Table)
	dropped    bool
	container  int64 // what the last reading told of it; 0 = nothing
	allocated  int64 // and of what is allocated
	mix        mix
	real       bool      // shadows count as what they are: see SetReal
	streams    Stream    // ring of the live ones
	hidden     int       // live streams of which not all is told that passes
	free       []*Stream // of whose responses something may pass unbooked
	swept      Time
	joined     bool
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
	a := &Account{store: store, id: id, trend: newTrend()}
	a.SetLimits(limits)
	a.own.ID = id
	a.streams.prev, a.streams.next = &a.streams, &a.streams
	return a, nil
}

// Watch has watch see each reading that this worker brings into the table, before the others do; it
// may change Table.Marks alone. Where another worker was first, it sees the table as that left it,
// again.
func (a *Account) Watch(watch func(now Time, t *Table)) { a.watch = watch }

// Joined says that the worker has had a stream or a connection, and is in the table.
func (a *Account) Joined() bool { return a.joined }

// Change lets change have Table.Marks as it wants, or Table.Blind. The error is the store's, or
// ErrConflict where others were always first.
func (a *Account) Change(now Time, change func(t *Table)) error {
	for range maxTries {
		if err := a.load(now); err != nil {
			return err
		}
		a.tighten(now)
		change(&a.table)
		a.buf = a.table.Append(a.buf[:0])
		if err := a.store.Swap(a.buf, a.version); !errors.Is(err, ErrConflict) {
			return err
		}
	}
	a.Contention++
	return ErrConflict
}

// SetLimits puts other figures in force. What is admitted stays admitted.
func (a *Account) SetLimits(l Limits) {
	if l.Connections != a.limits.Connections {
		a.own.Connections.Lease = min(a.own.Connections.Lease, a.own.Connections.Open) // it was a part of another limit
	}
	a.set, a.limits = l, l.of(a.table.Container)
}

// Limits are the figures in force, to look at.
func (a *Account) Limits() *Limits { return &a.limits }

// SetContainer publishes, with the next reading, the limit of the container that the process runs
// in, bytes.
func (a *Account) SetContainer(n int64) { a.container = n }

// SetAllocated publishes, with the next reading, what the allocator says is allocated, bytes.
func (a *Account) SetAllocated(n int64) { a.allocated = n }

// SetReal says whether verdicts are carried out anywhere in the process. Then what shadows hold is
// memory that others can't have.
func (a *Account) SetReal(enforcing bool) { a.real = enforcing }

// Floor is what small requests have in any case, bytes.
func (a *Account) Floor() int64 { return a.limits.floor() }

// ID is the worker's id in the table.
func (a *Account) ID() uint32 { return a.id }

// Store is where the table is kept.
func (a *Account) Store() Store { return a.store }

// Own is the account's own entry as of now.
func (a *Account) Own() Entry { return a.own }

// Table is the table as it was last loaded, with the account's own entry as of then.
func (a *Account) Table() *Table { return &a.table }

// Others is the sum of all other workers as of the last exchange.
func (a *Account) Others() Entry { return a.others }

// Share is T(x): where the share x of what traffic can have ends, bytes. See Table.
func (a *Account) Share(x float64) int64 { return a.table.share(&a.limits, x) }

// Room is what traffic can have at all: T(1) − base, bytes, never negative.
func (a *Account) Room() int64 { return max(a.Share(1)-a.table.Base, 0) }

// Stale says that there is no recent reading.
func (a *Account) Stale(now Time) bool {
	return a.table.Sequence == 0 || now-a.table.Asked > staleAfter
}

// Estimate is the upper bound on memory in use: reading + fresh + coming of all workers, or,
// without a reading, base and what the live streams can hold. Leases count for others as far as
// this worker must count them.
func (a *Account) Estimate(now Time) int64 { return a.estimate(a.Stale(now)) }

func (a *Account) estimate(stale bool) int64 {
	if stale {
		return a.table.Base + a.others.Bounds + a.others.Coming + a.own.Bounds + a.own.Coming
	}
	return a.table.Reading + a.others.Lease + a.own.need()
}

// Claim says which room a request for bytes may have.
type Claim uint8

const (
	// Shared may have what lies under soft: large requests of a key that has more than its share.
	Shared Claim = iota
	// Large may have what lies under hard, and only what was leased there.
	Large
	// Full may have all up to the limit: growth, small requests, and a key that has less than its
	// share.
	Full
	// Floor is Full and, where that has no room, what is kept for small streams.
	Floor
	// Forced can't be refused. It raises the account's entry whatever the room.
	Forced
)

// rooms are how many bytes lie under soft, under hard and under the limit.
type rooms [3]int64

const (
	underSoft = iota
	underHard
	underLimit
)

// room is which of the rooms the claim is for.
func (c Claim) room() int { return min(int(c), underLimit) }

func (r *rooms) atMost(n rooms) {
	for i := range r {
		r[i] = min(r[i], n[i])
	}
}

func (r *rooms) take(n int64) {
	for i := range r {
		r[i] -= n
	}
}

func each(n int64) rooms { return rooms{n, n, n} }

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

const (
	maxTries = 8
	// raise is how much more than needed is taken when the room can't be refused, so that not every
	// chunk asks again.
	raise = 64 << 10
)

// Ask asks for room for n more bytes, without an exchange where the lease has it; where memory is
// short a large claim looks at the table all the same. On Granted the caller reserves or adds them.
func (a *Account) Ask(now Time, n int64, c Claim) Outcome {
	if a.joined && !a.Stale(now) {
		if c <= Large && a.crowded() {
			_ = a.Refresh(now) // a newer reading, or what others could not refuse, may have taken what the lease promised
		}
		leased := a.under[c.room()]
		if c == Forced {
			leased = a.own.Lease
		}
		if a.own.need() <= leased-n {
			return Granted
		}
	}
	return a.exchange(now, n, c)
}

// Calm says that less than half of the room is in use, or may be, as of the last look at the table,
// and that nobody waits.
func (a *Account) Calm(now Time) bool {
	return !a.Stale(now) && a.own.Queue.Waiting == 0 && a.others.Queue.Waiting == 0 && !a.fuller(.5)
}

// Cover raises the account's entry if what is fresh and coming has outgrown the lease.
func (a *Account) Cover(now Time) {
	if a.own.need() > a.own.Lease || !a.joined {
		a.exchange(now, 0, Forced)
	}
}

func (a *Account) exchange(now Time, n int64, c Claim) Outcome {
	joins := !a.joined
	a.joined = true
	a.Exchanges++
	for range maxTries {
		if err := a.load(now); err != nil {
			return Busy
		}
		if joins {
			joins, a.own.Evicted.Sequence = false, int64(a.table.Evict.Sequence) // it had no part in what was before
		}
		a.tighten(now)
		stale := a.Stale(now)
		if c != Forced && !a.grants(stale, n, c) {
			return Denied
		}
		lease, under := a.own.Lease, a.under
		a.lend(stale, n, c == Forced)
		err := a.publish(now, n, c == Floor)
		if err == nil {
			return Granted
		}
		a.own.Lease, a.under = lease, under // nobody knows of the new one
		if !errors.Is(err, ErrConflict) {
			return Busy
		}
	}
	a.Contention++
	return Busy
}

// crowded says that what has changed since the last tick could put the estimate beyond the limit: a
// newer reading, in which what is fresh counts a second time, or what other workers could not
// refuse. With less than a quarter of the room in use a large request is not worth the call of the
// host.
func (a *Account) crowded() bool {
	return a.fuller(.25)
}

// fuller says that more than the share x of the room is in use, or leased.
func (a *Account) fuller(x float64) bool {
	return a.table.Level >= Soft || a.table.Reading+a.others.Lease+a.own.Lease > a.table.share(&a.limits, x)
}

func (a *Account) grants(stale bool, n int64, c Claim) bool {
	if stale && a.limits.OnStale != StaleEstimate {
		return a.limits.OnStale == StaleAdmit
	}
	share := [...]float64{underSoft: a.limits.Soft, underHard: a.limits.Hard, underLimit: 1}[c.room()]
	if n <= a.table.share(&a.limits, share)-a.estimate(stale) {
		return true
	}
	// Shedding what costs nothing frees nothing: small streams have a floor, which is a stock and
	// not a rate.
	return c == Floor && n <= a.limits.floor()-a.others.Small-a.own.Small
}

// lend sets the lease to what is needed and some slack, of what is free under hard.
func (a *Account) lend(stale bool, n int64, forced bool) {
	need := a.own.need() + n
	free := a.rooms(stale)
	slack := a.slack(free[underHard]-need, need)
	if forced && slack == 0 && need > a.own.Lease {
		slack = raise
	}
	a.own.Lease = need + slack
	a.under = each(a.own.Lease)
	a.under.atMost(free)
}

// rooms is how much this worker may hold below soft, hard and the limit, as far as the table knows:
// none without a reading, so that each admission asks.
func (a *Account) rooms(stale bool) rooms {
	if stale {
		return rooms{}
	}
	r := rooms{
		underSoft:  a.table.share(&a.limits, a.limits.Soft),
		underHard:  a.table.share(&a.limits, a.limits.Hard),
		underLimit: a.table.share(&a.limits, 1),
	}
	r.take(a.table.Reading + a.others.Lease)
	return r
}

func (a *Account) slack(free, need int64) int64 {
	slack := max(min(a.limits.Limit/64, free/int64(2*max(a.live, 1))), 0)
	if a.own.Queue.Since != 0 || a.others.Queue.Since != 0 {
		return 0 // else a large head of the line never fits
	}
	if need == 0 {
		// Idle workers would strand half the room; a lone GET still makes no exchange.
		slack = min(slack, 4*a.limits.Small)
	}
	return slack
}

// load reads the table.
func (a *Account) load(now Time) error {
	value, version, err := a.store.Load()
	if err != nil {
		return err
	}
	if a.table.Decode(value) != nil {
		a.table = Table{Entries: a.table.Entries[:0]} // of another version of us, or garbage: begin anew
	}
	a.version = version
	a.table.mend(now)
	// Where a table begins anew, so do the numbers of its readings: what was done for one of before
	// is nothing for those to come.
	a.own.Evicted.Sequence = min(a.own.Evicted.Sequence, int64(a.table.Sequence))
	if a.table.Begun == 0 {
		a.table.Begun = now
	}
	a.limits = a.set.of(a.table.Container)
	a.dropped = a.table.drop(now) || a.dropped
	a.others = a.table.sum(a.id)
	a.live = len(a.table.Entries)
	if a.joined {
		a.live = max(a.live, 1)
		if !a.table.has(a.id) {
			// It is new, or was dropped for want of a beat: then others may have what it was lent.
			a.own.Connections.Lease = min(a.own.Connections.Lease, a.own.Connections.Open)
		}
	}
	return nil
}

// Refresh looks at what others have now. The error is the store's; the account goes on with what it
// knows.
func (a *Account) Refresh(now Time) error {
	if err := a.load(now); err != nil {
		return err
	}
	a.tighten(now)
	return nil
}

// tighten takes back what was leased before as room to admit, where the room has fallen since: a
// lease is a promise of what may be held, not of what may still be let in.
func (a *Account) tighten(now Time) {
	a.under.atMost(a.rooms(a.Stale(now)))
}

// notice rotates the generations of fresh when a reading was asked for after the last rotation:
// then each byte of the older generation had passed before it was asked for, and is in it. Only
// Tick and Observe do this: elsewhere now may be as old as the last tick, and the rotation would
// seem to lie before bytes that passed before it.
func (a *Account) notice(now Time) {
	if a.table.Sequence == a.seen {
		return
	}
	a.seen = a.table.Sequence
	if a.table.Asked <= a.rotated {
		return
	}
	d := a.fresh[1]
	a.fresh[0], a.fresh[1], a.spare = 0, a.fresh[0], 0
	a.gen++
	a.rotated = now
	a.Rotations++
	a.own.Fresh -= d
	// Slack is only spent: the dropped bytes are in the reading now, and must not be granted a
	// second time.
	a.own.Lease -= d
	a.under.take(d)
	for i := len(a.free) - 1; i >= 0; i-- {
		if s := a.free[i]; s.dir[Response].coming == 0 { // what passes from now on may be in no reading
			a.revoke(s)
		}
	}
}

// publish writes the account's entry, with n more bytes coming than it has yet, of a small stream
// or another.
func (a *Account) publish(now Time, n int64, small bool) error {
	e := a.table.entry(a.id)
	*e = a.own
	e.Coming += n
	if small {
		e.Small += n
	}
	e.Beat = now
	a.buf = a.table.Append(a.buf[:0])
	if err := a.store.Swap(a.buf, a.version); err != nil {
		return err
	}
	a.written, a.told = *e, a.seen
	a.live = len(a.table.Entries)
	return nil
}

// Sum is what the streams of one key have together, bytes. The zero value is a key without any.
type Sum struct {
	Coming int64 // announced or forecast, and still to come
	Likely int64 // likely held, what ended responses left unread included
	Small  int64 // coming and likely held of small streams
}

// Open begins a stream, part of owner and in the sum of a key, with what its existence costs in
// bytes; caps are what Envoy may hold of its request, 0 if that has no body, and of its response. s
// must be the zero value.
func (a *Account) Open(now Time, s *Stream, owner any, sum *Sum, cost, requestCap, responseCap int64) {
	s.live, s.small, s.cost, s.gen, s.sum, s.owner = true, true, cost, a.gen, sum, owner
	s.dir[Request].begin(now, a.gen, requestCap)
	s.dir[Response].begin(now, a.gen, responseCap)
	s.dir[Request].ended = requestCap == 0
	s.prev, s.next = a.streams.prev, &a.streams
	s.prev.next, s.next.prev = s, s
	a.own.Streams++
	a.addFresh(cost)
	s.exposure = requestCap + responseCap
	a.own.Exposure += s.exposure
}

// Move takes the stream from its key's sum into that of another.
func (a *Account) Move(s *Stream, to *Sum) {
	coming := s.dir[Request].coming + s.dir[Response].coming
	from := s.sum
	from.Coming -= coming
	to.Coming += coming
	if !s.shadow {
		from.Likely -= s.likely
		from.Small -= s.smallSum
		to.Likely += s.likely
		to.Small += s.smallSum
	}
	s.sum = to
}

// SetCap changes what Envoy may hold of a message, when it turns out which protocol it has.
func (a *Account) SetCap(now Time, s *Stream, d Direction, n int64) {
	s.dir[d].cap = n
	s.settle(a, now)
}

// Enlarge takes the stream out of the small sum for good.
func (a *Account) Enlarge(now Time, s *Stream) {
	if s.small {
		s.small = false
		s.settle(a, now)
	}
}

// Expect notes the headers of a message: its length or Unknown, and reserves n bytes for it, of
// which credit are counted already. The room has been asked for.
func (a *Account) Expect(now Time, s *Stream, d Direction, length, n, credit int64) {
	m := &s.dir[d]
	if d == Response {
		a.bookOne(now, s) // bytes may come before its headers do
	}
	m.expected, m.length, m.moved, m.begun = true, length, now, now
	m.credit = credit
	a.unreserve(s, m, m.coming) // a forecast, until now
	a.reserve(s, m, n)
	m.reserved = max(m.reserved, n+credit)
	s.settle(a, now)
	if d == Response {
		a.grant(s)
	}
}

// Presume reserves for the response of a stream that has just been opened the most that it can hold
// whatever it is, n bytes, for as long as it is presumed. What passes is booked at ticks, and
// nothing else has to be. The room has been asked for.
func (a *Account) Presume(s *Stream, n int64) {
	a.reserve(s, &s.dir[Response], n)
	s.presumed = true
	a.own.Presumed.Streams++
	a.own.Presumed.Bytes += n
	a.grant(s)
}

// Foretell notes the headers of a presumed response: its length or Unknown, and what Envoy may hold
// of it.
func (a *Account) Foretell(s *Stream, length, most int64) {
	m := &s.dir[Response]
	m.expected, m.length, m.cap = true, length, most
	if length != Unknown {
		most = min(most, length)
	}
	more := max(m.coming-most, 0)
	a.unreserve(s, m, more)
	a.own.Presumed.Bytes -= more
}

// Doubt ends that a stream is presumed: it is as it was when it was opened, and told of what has
// passed since. What is known of its response is to be expected, what has passed to be passed, and
// the end to be noted, again.
func (a *Account) Doubt(now Time, s *Stream) (passed int64, over bool) {
	m := &s.dir[Response]
	a.bookOne(now, s)
	a.unpresume(s)
	a.revoke(s)
	a.unreserve(s, m, m.coming)
	passed, m.seen = m.seen, 0
	s.settle(a, now)
	return passed, s.over
}

func (a *Account) unpresume(s *Stream) {
	if s.presumed {
		s.presumed = false
		a.own.Presumed.Streams--
		a.own.Presumed.Bytes -= s.dir[Response].coming
	}
}

// Anticipate reserves n bytes for a response whose headers have not come, or n more than it is
// entitled to. The room has been asked for.
func (a *Account) Anticipate(now Time, s *Stream, n int64) {
	m := &s.dir[Response]
	m.moved = now
	a.revoke(s) // the first that passes tells how much there is
	a.reserve(s, m, n)
	s.settle(a, now)
}

// Trim takes back what was anticipated of a response beyond what it is entitled to.
func (a *Account) Trim(now Time, s *Stream) {
	m := &s.dir[Response]
	a.bookOne(now, s)
	if more := m.coming - max(m.reserved-m.seen, 0); more > 0 {
		a.unreserve(s, m, more)
		a.grant(s)
		s.settle(a, now)
	}
}

// Reserve adds to what is coming: a message has passed its forecast, and is entitled to twice of
// what it has passed. The room has been asked for.
func (a *Account) Reserve(now Time, s *Stream, d Direction, n int64) {
	m := &s.dir[d]
	a.reserve(s, m, n)
	m.reserved = max(m.reserved, min(2*m.seen, m.cap))
	s.settle(a, now)
}

// freeMost is how much of a response may have passed and still count as coming.
const freeMost = 256 << 10

// always is more than can pass between two readings.
const always = 1 << 50

// grant lets of a response that was announced so much pass unbooked as counts as coming, which is
// as much: until more has passed, the next tick, or the end. And when the stream has added to the
// generation all that it may, and holds all that it can, what passes changes nothing until the next
// reading. So most chunks of a large response cost one subtraction: with caches that its bytes have
// emptied, each pointer that is followed counts.
func (a *Account) grant(s *Stream) {
	m := &s.dir[Response]
	var n int64
	switch {
	case s.presumed:
		n = always
	case s.small || m.ended || s.shadow:
	case m.coming > 0:
		n = min(m.coming, freeMost)
	case m.genBytes >= m.cap && m.gen == a.gen && m.reserved >= m.cap && m.seen >= m.cap && s.likely == s.bounds:
		n = always
	}
	s.free, s.granted = n, n
	if n > 0 && s.at == 0 {
		a.free = append(a.free, s)
		s.at = len(a.free)
	}
}

// revoke has the next bytes of a response be booked. Those that are not are of one that holds all
// that it can.
func (a *Account) revoke(s *Stream) {
	s.dir[Response].seen += s.unbooked()
	s.free, s.granted = 0, 0
	if s.at == 0 {
		return
	}
	last := a.free[len(a.free)-1]
	a.free[s.at-1], last.at = last, s.at
	a.free[len(a.free)-1] = nil
	a.free, s.at = a.free[:len(a.free)-1], 0
}

// book counts what has passed unbooked.
func (a *Account) book(now Time) {
	for _, s := range a.free {
		a.bookOne(now, s)
	}
}

func (a *Account) bookOne(now Time, s *Stream) {
	if s.unbooked() > 0 {
		a.Pass(now, s, Response, 0)
	}
}

// Pass counts n bytes of a message that have passed, and what is unbooked of it. It returns how
// many of them were beyond what was coming.
func (a *Account) Pass(now Time, s *Stream, d Direction, n int64) (beyond int64) {
	m := &s.dir[d]
	full := m.seen >= m.cap && s.likely == s.bounds && !s.small
	if d == Response {
		n += s.unbooked()
	}
	beyond = a.pass(now, s, d, n)
	if !full { // else the chunk changes none of the stream's sums: most chunks of a large message
		s.settle(a, now)
	}
	if m.credit > 0 {
		a.Uncredit(now, s)
	}
	if d == Response {
		a.grant(s)
	}
	return beyond
}

// pass is Pass without what the stream then holds, and may do.
func (a *Account) pass(now Time, s *Stream, d Direction, n int64) (beyond int64) {
	m := &s.dir[d]
	m.seen += n
	m.moved = now
	if d == Request {
		m.roll(now)
		m.burst[0] += n
	}
	counted := min(n, m.credit)
	m.credit -= counted
	n -= counted
	k := min(n, m.coming)
	if s.presumed {
		k = 0 // all that it can hold stays reserved
	}
	a.unreserve(s, m, k)
	a.addFresh(m.fill(a.gen, n))
	return n - k
}

// PassShadow is Pass for a shadow.
func (a *Account) PassShadow(now Time, s *Stream, d Direction, n int64) {
	m := &s.dir[d]
	m.seen += n
	m.moved = now
	n = min(n, m.cap)
	a.own.Passed += n
	a.own.Shadows.Passed += n
	s.settle(a, now)
}

// Uncredit ends the credit of a resumed request: what came while it was paused has passed, in one
// piece. The rest of the credit is still coming. Pass does this by itself; where nothing had come,
// nothing passes.
func (a *Account) Uncredit(now Time, s *Stream) {
	m := &s.dir[Request]
	if m.credit == 0 {
		return
	}
	a.reserve(s, m, m.credit)
	m.credit = 0
	a.Cover(now)
}

// Beyond says that a message has outgrown its entitlement: it has passed what was ever reserved for
// it, and what was reserved is less than Envoy could hold of it anyway.
func (s *Stream) Beyond(d Direction) bool {
	m := &s.dir[d]
	return m.seen > m.reserved && m.reserved < m.cap
}

// Lapsed says that something of the message's reservation was taken back because it did not come.
func (s *Stream) Lapsed(d Direction) bool { return s.dir[d].lapsed }

// Cap is what Envoy may hold of the message.
func (s *Stream) Cap(d Direction) int64 { return s.dir[d].cap }

// fill is how much of n the message may add to the generation: no more than its cap in each.
func (m *message) fill(gen uint32, n int64) int64 {
	if m.gen != gen {
		m.gen, m.genBytes = gen, 0
	}
	n = max(min(n, m.cap-m.genBytes), 0)
	m.genBytes += n
	return n
}

// Pause notes that the stream's request is paused, or rejected unfinished, at the pause cost: so
// much it can leave unread. That comes within a round trip and unseen, so it is fresh from now on;
// where the network filter sees what comes, and it will soon be closed, only what has come already.
func (a *Account) Pause(now Time, s *Stream, cost, come int64) {
	s.paused = cost
	m := &s.dir[Request]
	a.addFresh(m.fill(a.gen, min(come, cost)))
	s.settle(a, now)
}

// Drop notes that what a paused or rejected request has sent is gone with it: what comes next is
// counted for it. A flood of clients that are turned away and come straight back would otherwise
// fill the estimate with what nobody holds.
func (a *Account) Drop(s *Stream) {
	m := &s.dir[Request]
	a.giveBack(m.gen, m.genBytes)
	m.genBytes = 0
}

// Linger hands what a rejected request has sent to its connection: it is gone when that is closed.
func (a *Account) Linger(s *Stream, c *Connection) {
	m := &s.dir[Request]
	switch age := m.gen - c.gen; {
	case age == 0:
		c.cost += m.genBytes
	case age < 1<<31: // what the connection itself cost is older, and in a reading or about to be
		c.gen, c.cost = m.gen, m.genBytes
	}
	m.genBytes = 0
}

// PassPaused counts n bytes that the network filter saw for a paused request, as fresh: no more
// than its pause cost in each generation, with which the pause itself began.
func (a *Account) PassPaused(s *Stream, n int64) {
	m := &s.dir[Request]
	if m.gen != a.gen {
		m.gen, m.genBytes = a.gen, 0
	}
	n = max(min(n, s.paused-m.genBytes), 0)
	m.genBytes += n
	a.addFresh(n)
}

// PassShared counts n bytes that the network filter saw on a connection with paused HTTP/2
// requests, as fresh: they may be of any of those, however slowly they come, but no more than what
// those can leave unread in each generation. What is of others is counted twice, then.
func (a *Account) PassShared(c *Connection, n, costs int64) {
	if c.sharedGen != a.gen {
		c.sharedGen, c.shared = a.gen, 0
	}
	n = max(min(n, costs-c.shared), 0)
	c.shared += n
	a.addFresh(n)
}

// PauseUnseen is Pause where nobody sees what comes while the request is paused: at whatever speed,
// as much as that may come at any time until Unpause or the end.
func (a *Account) PauseUnseen(s *Stream, cost int64) {
	s.paused, s.awaited = cost, cost
	a.own.Coming += cost
}

// Unpause notes that the request goes on, or that what it may leave unread is to be counted in
// another way.
func (a *Account) Unpause(s *Stream) {
	a.own.Coming -= s.awaited
	s.paused, s.awaited = 0, 0
}

// End notes that the message has ended: what has not come will not.
func (a *Account) End(now Time, s *Stream, d Direction) {
	a.finish(now, s, d)
	s.settle(a, now)
}

func (a *Account) finish(now Time, s *Stream, d Direction) {
	m := &s.dir[d]
	if d == Response {
		if n := s.unbooked(); n > 0 {
			a.pass(now, s, d, n)
			s.granted = s.free
		}
		a.revoke(s)
	}
	m.ended = true
	m.credit = 0
	if m.unseen() && m.expected && !s.shadow {
		a.addFresh(m.fill(a.gen, m.coming)) // it may have passed just now
	}
	a.unreserve(s, m, m.coming)
}

// Close ends the stream. Exactly once; a second one does nothing.
func (a *Account) Close(now Time, s *Stream) {
	if !s.live {
		return
	}
	s.live = false
	a.unpresume(s)
	if s.hides() {
		a.hidden--
	}
	a.Unpause(s)
	a.finish(now, s, Request)
	a.finish(now, s, Response)
	a.giveBack(s.gen, s.cost)
	s.uncount(a)
	a.own.Exposure -= s.exposure
	s.likely, s.bounds, s.exposure, s.smallSum = 0, 0, 0, 0
	a.own.Streams--
	s.prev.next, s.next.prev = s.next, s.prev
	s.prev, s.next = nil, nil
}

// Connection is the cost of one connection in the account.
type Connection struct {
	_ [0]func() // no two are compared: the function that could would only take room in the .wasm

	cost int64
	gen  uint32
	held int64 // what its last response left, at most
	at   Time
	key  *Sum     // of that response
	adds [2]int64 // likely, bound: what it adds to the account

	shared    int64 // what PassShared has counted in the generation sharedGen
	sharedGen uint32
}

// OpenConnection adds a connection, with what its existence costs.
func (a *Account) OpenConnection(c *Connection, cost int64) {
	*c = Connection{cost: cost, gen: a.gen}
	a.own.Connections.Open++
	a.addFresh(cost)
}

// RaiseConnection sets a higher cost: the connection turned out to be a TLS one.
func (a *Account) RaiseConnection(c *Connection, cost int64) {
	if cost > c.cost {
		a.addFresh(cost - c.cost)
		if c.gen == a.gen {
			c.cost = cost
		}
	}
}

// CloseConnection takes it away again.
func (a *Account) CloseConnection(c *Connection) {
	a.own.Connections.Open--
	a.giveBack(c.gen, c.cost)
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

// Settle takes less and less of it as likely, and nothing after 10 s.
func (a *Account) Settle(now Time, c *Connection) (left bool) {
	if now-c.at >= leaveFor {
		a.leave(c, 0, 0)
		return false
	}
	a.leave(c, int64(weight(now-c.at)*float64(c.held)), c.held)
	return true
}

const leaveFor = 10 * time.Second

func (a *Account) leave(c *Connection, likely, bound int64) {
	if c.key == nil {
		return
	}
	a.own.Likely += likely - c.adds[0]
	a.own.Bounds += bound - c.adds[1]
	c.key.Likely += likely - c.adds[0]
	c.adds = [2]int64{likely, bound}
}

// Tick sweeps the streams, exchanges with the table and takes or keeps the poller slot. It returns
// whether the slot is this VM's. An error is the store's; the account goes on with what it knows.
func (a *Account) Tick(now Time) (polls bool, err error) {
	a.book(now)
	if now-a.swept >= sweepEvery {
		a.swept = now
		for s := a.streams.next; s != &a.streams; s = s.next {
			s.lapse(a, now)
			s.settle(a, now)
		}
	}
	for range maxTries {
		if err = a.load(now); err != nil {
			return false, err
		}
		a.notice(now)
		a.tighten(now)
		polls = a.table.Poller.ID == a.id || now-a.table.Poller.Beat > pollerFree || a.table.Poller.ID == 0
		if polls {
			if a.dropped || a.hidden > 0 {
				a.trend.lost()
			}
			a.trend.settle(now, &a.table)
		}
		a.dropped = false
		a.shrink(now)
		a.shrinkConnections()
		if !a.due(now, polls) {
			return polls, nil
		}
		if polls {
			a.table.Poller.ID, a.table.Poller.Beat = a.id, now
		}
		if a.joined {
			err = a.publish(now, 0, false)
		} else {
			a.buf = a.table.Append(a.buf[:0])
			err = a.store.Swap(a.buf, a.version)
		}
		if !errors.Is(err, ErrConflict) {
			return polls && err == nil, err
		}
	}
	a.Contention++
	return false, nil
}

const (
	sweepEvery = 100 * time.Millisecond
	beatEvery  = 100 * time.Millisecond
	pollerFree = 250 * time.Millisecond
)

// shrink lowers the lease to what is needed and the slack of the formula, and raises it to what is
// needed.
func (a *Account) shrink(now Time) {
	if !a.joined {
		return
	}
	need := a.own.need()
	hard := a.rooms(a.Stale(now))[underHard]
	a.own.Lease = max(min(a.own.Lease, need+a.slack(hard-need, need)), need)
	a.under.atMost(each(a.own.Lease))
}

// due says whether there is something to tell the others.
func (a *Account) due(now Time, polls bool) bool {
	if polls && (a.table.Poller.ID != a.id || now-a.table.Poller.Beat >= beatEvery) {
		return true
	}
	if !a.joined {
		return false
	}
	was := a.written
	was.Beat = a.own.Beat
	return was != a.own || now-a.written.Beat >= beatEvery || a.told != a.seen
}

// Observe takes a reading: bytes in use by the process and when it was asked for. It returns the
// level before and after it. The error is the store's, or ErrConflict where the table could not be
// changed in time; then the reading is lost, and the next one comes soon.
func (a *Account) Observe(now, asked Time, reading int64) (before, after Level, err error) {
	learned := a.trend
	for range maxTries {
		if err = a.load(now); err != nil {
			return 0, 0, err
		}
		before = a.table.Level
		if a.table.Sequence > 0 && asked <= a.table.Asked {
			return before, before, nil // an older answer that came late
		}
		a.trend = learned
		if a.joined {
			*a.table.entry(a.id) = a.own
			a.table.entry(a.id).Beat = now
		}
		a.table.InUse, a.table.Allocated, a.table.Asked, a.table.Blind = reading, a.allocated, asked, false
		a.table.Peak = max(a.table.Peak, reading)
		a.table.Reading = a.withoutShadows(now, reading)
		if a.container > 0 { // where it is told no more, the last one stays: it was true once, and without it there is none
			a.table.Container = a.container
			a.limits = a.set.of(a.container)
		}
		a.table.Sequence++
		a.trend.observe(now, &a.table, &a.limits)
		if a.watch != nil {
			a.watch(now, &a.table)
		}
		after = a.table.Level
		a.buf = a.table.Append(a.buf[:0])
		if err = a.store.Swap(a.buf, a.version); err == nil {
			a.notice(now)
			a.tighten(now)
			return before, after, nil
		}
		if !errors.Is(err, ErrConflict) {
			return before, before, err
		}
	}
	a.trend = learned
	a.Contention++
	return before, before, err
}

// withoutShadows is what a reading would be if those were not there that would have been turned
// away, and those waited that would have had to: of what traffic holds, their part goes, and what
// waiting costs comes in its place. All that is likely held is as much too high or too low, so that
// only the proportions count. What nobody explains may be a leak, which mode enforce would have
// too, or be of shadows: as large a part as they have moved of late, but not more than those who
// are there likely hold, which may be twice that, and a quarter of what was held at once by those
// who were. 100 uploads leave 100 idle connections to the upstream, where mode enforce would have
// opened 30.
func (a *Account) withoutShadows(now Time, reading int64) int64 {
	all := a.table.Sum()
	shadowed := a.mix.shadowed(now, &all)
	traffic := reading - a.table.Base
	if a.real || shadowed == 0 && all.Shadows.Likely <= 0 || traffic <= 0 {
		return reading
	}
	likely := max(all.Likely, 0)
	held := min(likely+all.Shadows.Likely, traffic)
	part := 1.
	if all.Shadows.Likely > 0 {
		part = min(float64(likely+all.Queue.Held)/float64(likely+all.Shadows.Likely), 1)
	}
	left := min(shadowed*float64(traffic-held), float64(all.Shadows.Likely)+a.mix.most/shadowsLeave)
	return a.table.Base + traffic - held - int64(left) + int64(part*float64(held))
}

// mix is how much of what has passed of late was of shadows.
type mix struct {
	at                     Time
	passed, shadows        float64 // with less weight the longer it is ago
	wasPassed, wasShadowed int64   // the totals then
	most                   float64 // that shadows have held at once, likewise
}

const (
	mixHalf      = 10 * time.Minute
	shadowsLeave = 4 // at most 1/4 of what they have held at once
)

func (m *mix) shadowed(now Time, all *Entry) (share float64) {
	passed, shadows := all.Passed-m.wasPassed, all.Shadows.Passed-m.wasShadowed
	if m.at == 0 || passed < 0 || shadows < 0 {
		passed, shadows = 0, 0 // a worker has gone, and its totals with it
	}
	keep := math.Exp2(-float64(now-m.at) / float64(mixHalf))
	m.passed, m.shadows = keep*m.passed+float64(passed), keep*m.shadows+float64(shadows)
	m.most = max(keep*m.most, float64(all.Shadows.Likely))
	m.at, m.wasPassed, m.wasShadowed = now, all.Passed, all.Shadows.Passed
	if m.shadows == 0 {
		return 0
	}
	return min(m.shadows/m.passed, 1)
}

// Shade makes the stream a shadow: a verdict that is not carried out says that it would not be
// there, or not yet. Nothing is reserved for it any more, what passes of it is not fresh, and what
// it holds is summed up apart.
func (a *Account) Shade(now Time, s *Stream) {
	if s.shadow || !s.live {
		return
	}
	a.unpresume(s)
	a.bookOne(now, s)
	a.revoke(s)
	for d := range s.dir {
		m := &s.dir[d]
		m.credit = 0
		a.unreserve(s, m, m.coming)
	}
	a.own.Shadows.Passed += s.bounds // it was no shadow yet when that passed
	s.uncount(a)
	s.likely, s.bounds, s.smallSum = 0, 0, 0
	s.shadow = true
	s.settle(a, now)
}

// Unshade ends that. What has passed since counts as passed just now.
func (a *Account) Unshade(now Time, s *Stream) {
	if !s.shadow {
		return
	}
	s.uncount(a)
	s.likely, s.bounds, s.smallSum = 0, 0, 0
	s.shadow = false
	s.settle(a, now)
}

// CatchUp takes from what was reserved for a message that has been a shadow what has passed
// meanwhile: it is as if it passed now.
func (a *Account) CatchUp(now Time, s *Stream, d Direction) {
	m := &s.dir[d]
	counted := min(m.seen, m.credit)
	m.credit -= counted
	n := min(m.seen-counted, m.coming)
	a.unreserve(s, m, n)
	a.addFresh(m.fill(a.gen, n))
	a.Uncredit(now, s)
	if m.ended {
		a.unreserve(s, m, m.coming)
	}
	s.settle(a, now)
}

// Supposes notes what a shadow's message likely comes to, bytes, where nobody tells what passes of
// it.
func (a *Account) Supposes(now Time, s *Stream, d Direction, n int64) {
	if m := &s.dir[d]; s.shadow && m.unseen() {
		m.reserved = min(max(m.reserved, n), m.cap)
		m.moved = now
		s.settle(a, now)
	}
}

// SetWaiting publishes, with the next exchange, how many wait, what they hold by it and since when.
func (a *Account) SetWaiting(n, held int64, since Time) {
	a.own.Queue.Waiting, a.own.Queue.Held, a.own.Queue.Since = n, held, since
}

// SetRate publishes, with the next exchange, for how many bytes those in line wait, and how many
// are admitted per second.
func (a *Account) SetRate(wanted, perSecond int64) {
	a.own.Queue.Wanted, a.own.Queue.Rate = wanted, perSecond
}

// Book takes the next place in the one virtual queue of those who are to come back: so long, and
// from first on at the earliest. It is not booked where it would end after last. If the table can't
// be changed in time, only this worker knows of the place, until it loads the table again.
func (a *Account) Book(now, first, span, last Time) (start Time, booked bool) {
	for range maxTries {
		err := a.load(now)
		start = max(a.table.Booked, first)
		if start+span > last {
			return 0, false
		}
		a.table.Booked = start + span
		if err == nil {
			a.tighten(now)
			a.buf = a.table.Append(a.buf[:0])
			err = a.store.Swap(a.buf, a.version)
		}
		if !errors.Is(err, ErrConflict) {
			return start, true
		}
	}
	a.Contention++
	return start, true
}

// SetLeft publishes, with the next exchange, what rejected requests left unread.
func (a *Account) SetLeft(n int64) { a.own.Left = n }

// SetLeaving publishes, with the next exchange, what this worker has evicted and what may still be
// there.
func (a *Account) SetLeaving(n int64) { a.own.Evicted.Leaving = n }

// ToEvict says how much all workers together are to evict, once: 0 if this one has done its part.
func (a *Account) ToEvict() int64 {
	if a.own.Evicted.Sequence >= int64(a.table.Evict.Sequence) {
		return 0
	}
	a.own.Evicted.Sequence = int64(a.table.Evict.Sequence)
	return a.table.Evict.Bytes
}

// Owners calls do with the owner of each live stream.
func (a *Account) Owners(do func(owner any)) {
	for s := a.streams.next; s != &a.streams; s = s.next {
		do(s.owner)
	}
}

// SetVM publishes, with the next exchange, the memory of this worker's virtual machine.
func (a *Account) SetVM(n int64) { a.own.VM = n }

func (a *Account) reserve(s *Stream, m *message, n int64) {
	m.coming += n
	s.sum.Coming += n
	a.own.Coming += n
}

func (a *Account) unreserve(s *Stream, m *message, n int64) {
	m.coming -= n
	s.sum.Coming -= n
	a.own.Coming -= n
}

// addFresh counts n more bytes, of which some may be those that others have given back: the
// allocator gives them out again.
func (a *Account) addFresh(n int64) {
	again := min(n, a.spare)
	a.spare -= again
	n -= again
	a.fresh[0] += n
	a.own.Fresh += n
	a.own.Passed += n
}

// giveBack keeps what is gone for the next, within its generation. Until a reading tells, it stays
// counted, for the allocator's caches may hold it.
func (a *Account) giveBack(gen uint32, n int64) {
	if gen == a.gen {
		a.spare += n
	}
}

// Lengthless says that the message has a body and announced no length: it teaches the forecast.
func (s *Stream) Lengthless(d Direction) bool {
	m := &s.dir[d]
	return m.expected && m.length == Unknown && !m.unseen()
}
