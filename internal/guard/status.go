package guard

import "strings"

// Gauges are the figures of the process, by index of Gauges.
func (w *Worker) Gauges(now Time) (g [NumGauges]int64) {
	t := w.account.Table()
	all := t.Sum()
	g[GaugeEstimate] = t.Reading + all.Fresh + all.Coming
	g[GaugeInUse], g[GaugeAllocated], g[GaugePeak] = t.InUse, t.Allocated, t.Peak
	g[GaugeFresh], g[GaugeComing] = all.Fresh, all.Coming
	g[GaugeLimit], g[GaugeBase], g[GaugeSurprise], g[GaugeExposure] = w.limits.Known(), t.Base, t.Surprise, all.Exposure
	g[GaugeLevel] = int64(t.Level)
	if t.Futile {
		g[GaugeFutile] = 1
	}
	g[GaugeStreams], g[GaugeWaiting], g[GaugeConnections] = all.Streams, all.Queue.Waiting, all.Connections.Open
	g[GaugeVM], g[GaugeLeaving] = all.VM, all.Evicted.Leaving
	age := w.readingAge(now)
	g[GaugeReadingAge] = age.Milliseconds()
	if age >= blindAfter {
		g[GaugeBlind] = 1
	}
	if w.enforcing {
		g[GaugeEnforcing] = 1
	}
	return g
}

// KeyUse is what a key has on this worker, bytes.
type KeyUse struct {
	Name    string  `json:"name"`
	Weight  float64 `json:"weight"`
	Coming  int64   `json:"coming"`
	Likely  int64   `json:"likely"`
	Waiting int64   `json:"waiting"` // what those in line are expected to bring
}

// OtherKey is the name of all that are not told apart.
const OtherKey = "(other)"

// Keys are the worker's keys as of now; all that are not told apart are one, and first.
func (w *Worker) Keys() []KeyUse {
	var all []KeyUse
	w.eachKey(func(k *key) {
		name := k.Name.Value
		if k == &w.keys.Other {
			name = OtherKey
		}
		all = append(all, KeyUse{Name: name, Weight: k.Weight, Coming: k.Value.Coming, Likely: k.Value.Likely, Waiting: k.Value.queue.Bytes()})
	})
	return all
}

// Status are the figures of the process, beginning with who likely holds its memory. They are the
// same whichever worker tells them.
func (w *Worker) Status(now Time, add func(name string, value int64)) {
	if w.account.Refresh(now) != nil {
		w.HostError() // what it knows is half a second old at most
	}
	t := w.account.Table()
	all, m := t.Sum(), w.marks(t)
	likely := all.Likely + all.Queue.Held
	if !w.enforcing { // nobody is paused, and those who would be are shadows
		likely = all.Likely + all.Shadows.Likely
	}
	add("likely_held_bytes", likely)
	add("bounds_bytes", max(all.Bounds+all.Queue.Held, likely))
	add("unexplained_bytes", max(t.InUse-t.Base-likely, 0))
	add("workers", int64(len(t.Entries)))
	add("peaks", m.Episode)
	gauges := w.Gauges(now)
	for i, g := range Gauges() {
		if i == GaugeLevel {
			continue // it has a name
		}
		add(strings.TrimPrefix(g.Name, "highwater_"), gauges[i])
	}
}
