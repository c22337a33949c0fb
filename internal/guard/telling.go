package guard

import (
	"fmt"
	"time"

	"github.com/highwater-envoy/highwater/internal/budget"
	"github.com/highwater-envoy/highwater/internal/unit"
)

// telling is what was logged of what changes seldom, so that each change is told once. A worker
// tells with a reading or a tick, one text at a time.
type telling struct {
	unlimited bool         // that the limit is a share of what is not known
	told      budget.Level // the last level
	toldAt    Time
	pending   string // for the next tick that has nothing else to tell; empty = nothing
}

// toldEvery: a level that swings with a flood is told once a second at most.
const toldEvery = time.Second

// later keeps a text for a tick.
func (l *telling) later(event string) { l.pending = event }

// next is the text that was kept.
func (l *telling) next() (event string) {
	event, l.pending = l.pending, ""
	return event
}

// limit tells when it is not known what the budget is a share of, and when it is known again.
func (l *telling) limit(p *policy) (event string) {
	known := p.limits.Known() > 0
	if known != l.unlimited {
		return ""
	}
	l.unlimited = !known
	if !known {
		return fmt.Sprintf("budget.limit is %v of the container's limit, which the answer of %s does not tell: until it does everything is admitted. Let highwater serve answer it, and beside an Envoy with a limit; or write a size. ",
			p.budget.Limit, p.memory.Path)
	}
	return fmt.Sprintf("budget.limit is %v: %s. ", p.budget.Limit, unit.Bytes(p.limits.Limit).Human())
}

// level tells of a change of the level, and what it is made of.
func (l *telling) level(now Time, level budget.Level, inUse int64, limits *budget.Limits, t *budget.Table) (event string) {
	if level == l.told || now-l.toldAt < toldEvery {
		return ""
	}
	all := t.Sum()
	event = fmt.Sprintf("level %v, was %v: in use %s + fresh %s + coming %s of %s; base %s, %d requests in flight, %d waiting",
		level, l.told, unit.Bytes(inUse).Human(), unit.Bytes(all.Fresh).Human(), unit.Bytes(all.Coming).Human(),
		unit.Bytes(limits.Limit), unit.Bytes(t.Base).Human(), all.Streams, all.Waiting)
	l.told, l.toldAt = level, now
	return event
}
