// Package events words what a worker tells of its own accord, so that each change is told once.
package events

import (
	"fmt"
	"time"

	"github.com/highwater-envoy/highwater/internal/budget"
	"github.com/highwater-envoy/highwater/internal/unit"
)

// Severity says how bad an event is.
type Severity uint8

// The severities.
const (
	Warning Severity = iota
	Error            // somebody has to change something
	Info             // all is well
)

// Log is what was logged of what changes seldom, so that each change is told once. A worker
// tells with a reading or a tick, one text at a time.
type Log struct {
	_ [0]func() // no two are compared: the function that could would only take room in the .wasm

	unlimited bool         // that the limit is a share of what is not known
	told      budget.Level // the last level
	toldAt    time.Duration
	pending   string // for the next tick that has nothing else to tell; empty = nothing
	Turned    bool   // and that the limit is impossible to hold, or possible again
}

// toldEvery: a level that swings with a flood is told once a second at most.
const toldEvery = time.Second

// Later keeps a text for a tick.
func (l *Log) Later(event string) { l.pending = event }

// Next is the text that was kept.
func (l *Log) Next() (event string) {
	event, l.pending = l.pending, ""
	return event
}

// Limit tells when it is not known what the budget is a share of, and when it is known again.
func (l *Log) Limit(configured unit.Limit, limits *budget.Limits, path string) (event string) {
	known := limits.Known() > 0
	if known != l.unlimited {
		return ""
	}
	l.unlimited = !known
	if !known {
		return fmt.Sprintf("budget.limit is %v of the container's limit, which the answer of %s does not tell: until it does everything is admitted. Let highwater serve answer it, and beside an Envoy with a limit; or write a size. ",
			configured, path)
	}
	return fmt.Sprintf("budget.limit is %v: %s. ", configured, unit.Bytes(limits.Limit).Human())
}

// Level tells of a change of the level, and what it is made of.
func (l *Log) Level(now time.Duration, level budget.Level, inUse int64, limits *budget.Limits, t *budget.Table) (event string) {
	if level == l.told || now-l.toldAt < toldEvery {
		return ""
	}
	all := t.Sum()
	event = fmt.Sprintf("level %v, was %v: in use %s + fresh %s + coming %s of %s; base %s, %d requests in flight, %d waiting",
		level, l.told, unit.Bytes(inUse).Human(), unit.Bytes(all.Fresh).Human(), unit.Bytes(all.Coming).Human(),
		unit.Bytes(t.InForce(limits)), unit.Bytes(t.Base).Human(), all.Streams, all.Queue.Waiting)
	l.told, l.toldAt = level, now
	return event
}

// Impossible tells whether the limit can be held, and what to change where it can't.
func Impossible(configured unit.Limit, limits *budget.Limits, t *budget.Table) (event string, severity Severity) {
	limit, base := fmt.Sprint(configured), unit.Bytes(t.Base).Human()
	if limits.Share > 0 {
		limit += fmt.Sprintf(" of the container's limit, %s,", unit.Bytes(limits.Limit).Human())
	}
	if !t.Impossible {
		return fmt.Sprintf("budget.limit %s can be held again: Envoy holds %s without traffic", limit, base), Info
	}
	inForce := t.InForce(limits)
	return fmt.Sprintf("budget.limit %s cannot be held: Envoy holds %s without traffic, and shedding frees nothing of that. "+
		"Raise budget.limit to at least %v, better to twice what Envoy holds, or reduce clusters, listeners and stats; until then the guard admits up to %s",
		limit, base, (unit.Bytes(inForce)+unit.MiB)/unit.MiB*unit.MiB, unit.Bytes(inForce).Human()), Error
}
