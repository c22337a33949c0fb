package budget

import "time"

// Level says how full the part of the budget is that traffic can have.
type Level uint8

// The levels, in order.
const (
	Normal Level = iota
	Soft         // from here on fairness begins
	Hard         // large requests are admitted of keys alone that have less than their share, and while shedding is futile
	Over         // the reading itself is above the limit
)

// String returns normal, soft, hard or over.
func (l Level) String() string { return [...]string{"normal", "soft", "hard", "over"}[min(l, Over)] }

// Limits are the figures of the budget that every worker of a process shares. Sizes are bytes,
// shares are of what traffic can have (see Table.share).
type Limits struct {
	Limit              int64   // as it is set: see Share, and Table.InForce for what is in force
	Share              float64 // of the container's limit is Limit, as soon as that is known, and until then Unlimited; 0 = Limit is as set
	Soft, Hard, Resume float64
	Small              int64   // a request that brings no more is small
	Floor              float64 // of Limit: what small requests have in any case
	Evict              bool    // when a reading is over the limit, whoever holds most has to go
	OnStale            OnStale
	Connections        int64 // that may be open in all workers together; 0 = no limit
}

// Unlimited is a limit that everything fits in: more than any memory, and little enough to reckon
// with.
const Unlimited = 1 << 50

// of returns the limits as they are in a container whose limit in bytes is this; 0 = not known yet.
func (l Limits) of(container int64) Limits {
	switch {
	case l.Share == 0:
	case container <= 0:
		l.Limit = Unlimited
	default:
		l.Limit = int64(l.Share * float64(container))
	}
	return l
}

// Known is Limit, bytes; 0 = it is a share of what is not known yet.
func (l *Limits) Known() int64 {
	if l.Limit == Unlimited {
		return 0
	}
	return l.Limit
}

// floor is what small requests have in any case, bytes.
func (l *Limits) floor() int64 { return int64(l.Floor * float64(l.Limit)) }

// OnStale says what counts while there is no recent reading.
type OnStale uint8

// What to do without a reading.
const (
	StaleEstimate OnStale = iota // base + what the live streams can hold, in place of reading + fresh
	StaleAdmit
	StaleReject
)

// How much the surprise may keep free: of the limit, and of the room. More, and one wrong figure
// would close the door.
const (
	maxSurprise     = 10 // 1/10; TestSurprise
	maxSurpriseRoom = 4  // 1/4; TestASurpriseLeavesRoom
)

// share is where the share x of what traffic can have ends. What the process holds without traffic
// (base) can't be shed, so it is no part of what is shared out, and what comes unseen (surprise) is
// kept free.
func (t *Table) share(l *Limits, x float64) int64 {
	room := t.room(l)
	return t.Base + int64(x*float64(room-min(t.Surprise, l.Limit/maxSurprise, room/maxSurpriseRoom)))
}

// load is where the estimate lies between T(0) and T(1); 1 if there is nothing between.
func (t *Table) load(l *Limits, estimate int64) float64 {
	room := t.share(l, 1) - t.Base
	if room <= 0 {
		return 1
	}
	return float64(estimate-t.Base) / float64(room)
}

// next moves the level with hysteresis: up as soon as a threshold is reached, down only when the
// load has fallen as far below it as resume is below soft. Otherwise a load that hovers around a
// threshold would flap, and each flap is a line in somebody's log.
func (l Level) next(limits *Limits, load float64, over bool) Level {
	margin := limits.Soft - limits.Resume
	switch {
	case over:
		return Over
	case load >= limits.Hard, l >= Hard && load >= limits.Hard-margin:
		return Hard
	case load >= limits.Soft, l >= Soft && load >= limits.Resume:
		return Soft
	}
	return Normal
}

// futility watches for a level that shedding can't lower: hard for 5 s while all live streams
// together can't hold a tenth of the limit. Then something else fills the memory, and to lock
// everybody out would help nobody. If memory grows while they are let in, it was traffic after all:
// what ended HTTP/2 streams left unread is in no stream's bound.
type futility struct {
	since   Time  // since when it looks futile; 0 = it does not
	reading int64 // then
}

const (
	futileAfter  = 5 * time.Second // TestFutile
	futileGrowth = 32              // 1/32 of the limit; TestFutile
	// futileRooms: where the room is small the limit is taken for so many of it. Else half of the
	// room would be too little for traffic to be the cause.
	futileRooms = 5 // TestATightRoomFullOfTrafficIsNotFutile
)

func (f *futility) next(now Time, level Level, mayHold, reading, limit int64) bool {
	if level < Hard || mayHold >= limit/10 {
		f.since = 0
		return false
	}
	if f.since == 0 || reading > f.reading+limit/futileGrowth {
		f.since, f.reading = now, reading
	}
	f.reading = min(f.reading, reading)
	return now-f.since >= futileAfter
}
