// Package leak says whether a process's memory grows though its load does not, in two words of
// different weight.
//
// Growth is what its load does not explain, within minutes: a trend in the number of live objects
// of one of the allocator's size classes. What traffic makes of the sum is noise that sits in other
// classes, so that a class of its own shows a small leak early. It may be a cache that fills.
//
// A leak is growth that went on: over a ladder of windows, from an hour to twelve, each with the
// least slope that it is to show, as fast in its second half as before, told three times in a row.
// That takes longer, and is rarely wrong.
//
// Both begin again where the process is another one, its configuration has changed, or samples were
// missing for long. The package has no clock: samples bring their time.
package leak

import "time"

// Class is one of the allocator's size classes.
type Class struct {
	Size int64 // bytes of an object
	Live int64 // objects in use; free ones in caches are none
}

// Load is what explains memory. What is not known is zero.
type Load struct {
	Connections int64 // open, with clients
	Requests    int64 // in flight
	Buffered    int64 // bytes in buffers
}

// Sample is what was seen of a process at one time.
type Sample struct {
	At       time.Duration // of any clock that does not jump
	InUse    int64         // bytes that the application has from its allocator
	Classes  []Class       // each size once; nil = not asked for this time. It is not kept
	Load     Load
	Finished uint64 // requests, counted since the start of the process
	Process  uint64 // which process it is: another number is another one
	Config   uint64 // which configuration it runs by: another number is another one
}

// Settings are what a verdict takes.
type Settings struct {
	// Every is the least time between samples that have size classes, and Window how far growth
	// looks back.
	Every, Window time.Duration
	// Least is the growth that is told, bytes a minute, of all classes that grow together.
	Least float64
	// Ladder are the windows that a leak is looked for in. The longest comes last.
	Ladder []Rung
}

// Rung is a window of the ladder: with so much growth at least, bytes a minute, surely, it is a
// leak, if that was found Times in a row, each Step after the one before.
type Rung struct {
	Window, Step time.Duration
	Least        float64
	Times        int
}

const mib = 1 << 20

// Default are the settings of live detection.
func Default() Settings {
	return Settings{
		Every: 10 * time.Second, Window: 5 * time.Minute, Least: 1 * mib,
		Ladder: []Rung{
			{60 * time.Minute, 10 * time.Minute, 0.5 * mib, 3},
			{120 * time.Minute, 60 * time.Minute, 0.15 * mib, 3},
			{360 * time.Minute, 35 * time.Minute, 0.05 * mib, 3},
			{720 * time.Minute, 120 * time.Minute, 0.03 * mib, 3},
		},
	}
}

// Growth is the verdict on the last minutes. PerMinute 0: there is none that load does not explain.
type Growth struct {
	// Samples is how many it rests on; 0 = there are too few yet.
	Samples   int     `json:"samples"`
	PerMinute float64 `json:"per_minute"` // bytes, of all classes that grow
	// Of the class that grows most: the size of its objects, how many more of them there are each
	// minute, and how many requests finished in that time. 0 = not known.
	Size     int64   `json:"size"`
	Objects  float64 `json:"objects"`
	Requests float64 `json:"requests"`
}

// Found says whether there is any.
func (g Growth) Found() bool { return g.PerMinute > 0 }

// Leak is the verdict of the ladder. Zero: there is none.
type Leak struct {
	PerMinute float64       `json:"per_minute"` // bytes
	Window    time.Duration `json:"window"`     // that told it
}

// Found says whether there is one.
func (l Leak) Found() bool { return l.PerMinute > 0 }

// Detector takes samples in and gives verdicts. Its memory is bounded: 30 samples of each of
// maxClasses size classes, and one point a minute of the longest window. Make it with New. It is
// not safe for concurrent use.
type Detector struct {
	settings Settings
	last     Sample
	any      bool
	growth   growth
	ladder   ladder
	judge    judge
}

// New returns a detector that has seen nothing yet.
func New(s Settings) *Detector {
	d := &Detector{settings: s}
	d.growth.init(s)
	d.ladder.init(s.Ladder)
	return d
}

// Add takes a sample in. One that is not later than the last one is left out.
func (d *Detector) Add(s Sample) {
	if d.any && s.At <= d.last.At {
		return
	}
	if d.any {
		gone := s.Process != d.last.Process || s.Config != d.last.Config || s.Finished < d.last.Finished
		if gone || s.At-d.last.At > d.settings.Window {
			d.growth.forget()
		}
		if gone || s.At-d.last.At > longestGap {
			d.ladder.forget()
		}
	}
	d.last, d.any = s, true
	d.last.Classes = nil
	if s.Classes != nil {
		d.growth.add(s, &d.judge)
	}
	d.ladder.add(s, &d.judge)
}

// longestGap is how long samples may be missing without the ladder beginning again.
const longestGap = 30 * time.Minute

// Growth is the verdict as of the last sample that had size classes.
func (d *Detector) Growth() Growth { return d.growth.verdict }

// Leak is the verdict as of the last sample. It stays until the ladder no longer tells it.
func (d *Detector) Leak() Leak { return d.ladder.verdict }
