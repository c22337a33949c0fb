package guard

import (
	"slices"
	"time"

	"github.com/highwater-envoy/highwater/internal/budget"
	"github.com/highwater-envoy/highwater/internal/config"
	"github.com/highwater-envoy/highwater/internal/fairness"
	"github.com/highwater-envoy/highwater/internal/metric"
	"github.com/highwater-envoy/highwater/internal/reservoir"
)

const (
	traceEvery = 500 * time.Millisecond // TestLabelsAreThereWhenTheMarkIsMade
	// A mark or a wish that is older is none of a worker that has just begun, or hangs.
	freezeWithin = time.Second // TestALateWorkerFreezesNothing
	maxNames     = 512         // TestTextsOfLabelsAreBounded
)

// holding is what a stream, or what one left, holds, bytes.
type holding struct {
	request, response int64 // at most
	likely            int64
	phase             reservoir.Phase
}

func (h *holding) bound() int64 { return h.request + h.response }

func (s *Stream) holds() holding {
	h := holding{request: s.Held(budget.Request), response: s.Held(budget.Response), likely: s.likely()}
	h.response += h.likely - s.Likely() // what it holds beside its bytes
	switch {
	case !s.admitted() && s.pauseCost > 0 && !s.Shadow():
		// It lies unread in the codec, and is in no sum of the account: on HTTP/1 exactly what the
		// network filter saw.
		come := s.pauseCost
		if s.state != rejected && s.seen() && !s.http2 {
			come = min(come, s.connection.arrived)
		}
		h.request += s.pauseCost
		h.likely += come
		h.phase = reservoir.Paused
	case s.Expected(budget.Response) || s.Ended(budget.Response):
		h.phase = reservoir.Downloading
	case !s.Ended(budget.Request):
		h.phase = reservoir.Uploading
	default:
		h.phase = reservoir.Waiting
	}
	return h
}

func (c *Connection) holds() holding {
	return holding{response: c.Unread(), likely: c.Left(), phase: reservoir.Downloading}
}

// noteHighWater holds a reading against the high-water marks.
func (w *Worker) noteHighWater(now Time, t *budget.Table) {
	if w.trace.Capacity == 0 {
		return
	}
	m, rules := w.marks(t), w.trace.Rules()
	m.Next(now, t.InUse-t.Base, &rules)
	m.Allocated = t.Allocated
	t.Marks = m.Fields()
}

func (w *Worker) marks(t *budget.Table) reservoir.Marks {
	if m := reservoir.MarksOf(t.Marks); m.Valid() {
		return m
	}
	return reservoir.Marks{}
}

// traceOpen keeps the method of a request that will be in the sample if it brings what is expected
// of it: later Envoy does not tell it any more.
func (w *Worker) traceOpen(s *Stream) {
	if s.total() > 0 && w.warm() && w.isSampled(&s.traced, s.total()) {
		s.labels = &reservoir.Labels{Method: s.host.Header(":method")}
	}
}

// hasOwnKey says whether it is told apart from others, as far as it was asked for.
func (s *Stream) hasOwnKey() bool { return s.keyed && s.key != &s.guard.worker.keys.Other }

// isSampled says whether one that has come to reach bytes is in the sample, as of the last gap.
func (w *Worker) isSampled(t *traced, reach int64) bool {
	return w.rank(t, reach) >= max(w.tracer.gap, float64(w.trace.Every))
}

// rank draws where that has not been done.
func (w *Worker) rank(t *traced, reach int64) float64 {
	if reach == 0 {
		return 0
	}
	if t.draw == 0 {
		t.draw = reservoir.Draw(w.random())
	}
	return reservoir.Rank(t.draw, reach)
}

// traceLeave hands a stream's place in the sample to what its response leaves unread. Now is the
// last time to ask whose it was.
func (w *Worker) traceLeave(s *Stream, c *Connection) {
	h := s.holds()
	s.reach = max(s.reach, h.bound())
	if w.warm() && w.isSampled(&s.traced, s.reach) {
		w.describe(&s.traced, s.host, s)
	}
	c.traced = s.traced
}

// members calls do with all that can be in the sample.
func (w *Worker) members(do func(t *traced, h holding, s *Stream, c *Connection)) {
	w.account.Owners(func(owner any) {
		if s, ok := owner.(*Stream); ok {
			do(&s.traced, s.holds(), s, nil)
		}
	})
	for _, c := range w.residual {
		if c.Unread() > 0 {
			do(&c.traced, c.holds(), nil, c)
		}
	}
}

// sample looks at the requests where it is time to, and freezes the sample where a mark was made or
// somebody wants to see it.
func (w *Worker) sample(now Time) {
	x, m := &w.tracer, w.marks(w.account.Table())
	if w.trace.Capacity == 0 || !w.account.Joined() {
		return
	}
	marked := m.Epoch != x.epoch && m.Height > 0 && now-m.At < freezeWithin
	wanted := m.Looked != x.looked && now-m.Looked < freezeWithin
	x.epoch, x.looked = m.Epoch, m.Looked
	switch {
	case marked || wanted:
		w.look(now, true)
		if marked {
			w.keep(int(m.Slot), m.Episode, m.Epoch)
		}
		if wanted {
			w.keep(lookSlot, 0, 0)
		}
	case now-x.at >= traceEvery && w.warm():
		w.look(now, false)
	}
}

// look chooses the gap and with it who is in the sample, asks whose those are that are new in it,
// and, if it is to be frozen, makes the snapshot.
func (w *Worker) look(now Time, freeze bool) {
	x, own := &w.tracer, w.account.Own()
	x.count.Reset(int64(w.trace.Every))
	totals := reservoir.Totals{Streams: own.Streams, Connections: own.Connections.Open}
	w.members(func(t *traced, h holding, _ *Stream, _ *Connection) {
		t.reach = max(t.reach, h.bound())
		x.count.Add(w.rank(t, t.reach))
		totals.Likely += h.likely
		totals.Bound += h.bound()
		totals.Phases[h.phase] += h.likely
		totals.PhaseBounds[h.phase] += h.bound()
	})
	x.at, x.gap = now, x.count.Gap(w.trace.Capacity)
	samples := x.snapshot.Samples[:0]
	w.members(func(t *traced, h holding, s *Stream, c *Connection) {
		rank := w.rank(t, t.reach)
		if rank < x.gap {
			t.labels, t.described = nil, false
			return
		}
		switch {
		case s != nil:
			w.describe(t, s.host, s)
		case t.labels == nil: // whose it was can't be asked any more
			t.labels = labelsOf(c.key.Name)
		}
		if freeze {
			samples = append(samples, reservoir.Sample{
				Labels: t.labels, Phase: h.phase, Age: max(now-t.opened, 0),
				Request: h.request, Response: h.response, Likely: h.likely, Reach: t.reach, Rank: rank,
			})
		}
	})
	x.snapshot = w.empty(now)
	x.snapshot.Gap, x.snapshot.Totals, x.snapshot.Samples = x.gap, totals, samples
}

// empty is a snapshot of no requests: what the process has in use, and its limit.
func (w *Worker) empty(now Time) reservoir.Snapshot {
	t := w.account.Table()
	return reservoir.Snapshot{
		Worker: w.account.ID(), At: now, Level: uint8(t.Level), Limit: w.limits.Known(),
		InUse: t.InUse, Allocated: w.marks(t).Allocated, Base: t.Base, Gap: float64(w.trace.Every),
	}
}

// describe asks the host once whose a stream is.
func (w *Worker) describe(t *traced, h Host, s *Stream) {
	if t.described {
		return
	}
	l := h.Describe(s.guard.header)
	if t.labels != nil {
		l.Method = t.labels.Method
	}
	if s.hasOwnKey() {
		l.Key = s.key.Name.Value
	} else if label := labelBy(&l, s.guard.config.Fairness.By); label != nil {
		l.Key = *label
	}
	l.Cut()
	for _, text := range [...]*string{&l.VirtualHost, &l.Route, &l.Cluster, &l.Method, &l.Key, &l.Source, &l.Protocol} {
		*text = w.tracer.once(*text)
	}
	t.labels, t.described = &l, true
}

// labelsOf is what a key alone tells.
func labelsOf(n fairness.Name) *reservoir.Labels {
	l := &reservoir.Labels{Key: n.Value}
	if label := labelBy(l, n.By); label != nil {
		*label = n.Value
	}
	l.Cut()
	return l
}

// labelBy is the label by which requests are told apart; nil if it is none of its own.
func labelBy(l *reservoir.Labels, by string) *string {
	switch by {
	case config.ByRoute:
		return &l.Route
	case config.ByCluster:
		return &l.Cluster
	case config.ByVirtualHost:
		return &l.VirtualHost
	case config.BySource:
		return &l.Source
	}
	return nil
}

// once returns one and the same text for equal ones: most streams have the same labels.
func (x *tracer) once(text string) string {
	if text == "" {
		return ""
	}
	if known, ok := x.names[text]; ok {
		return known
	}
	if x.names == nil || len(x.names) >= maxNames {
		x.names = map[string]string{}
	}
	x.names[text] = text
	return text
}

// lookSlot is where a worker keeps its sample as of the last wish; those of marks begin at 1.
const lookSlot = 0

// keep publishes the snapshot.
func (w *Worker) keep(slot int, episode, epoch int64) {
	x := &w.tracer
	x.snapshot.Episode, x.snapshot.Epoch = episode, epoch
	x.buf = x.snapshot.Append(x.buf[:0])
	if w.account.Store().Keep(w.account.ID(), slot, x.buf) != nil {
		w.HostError()
	}
}

// Look asks all workers to freeze their samples as of now. Looked says when they have.
func (w *Worker) Look(now Time) {
	err := w.account.Change(now, func(t *budget.Table) {
		m := w.marks(t)
		if m.Looked < now || m.Looked > now+budget.Ahead { // one that is ahead for ever would be the last
			m.Looked = now
		}
		t.Marks = m.Fields()
	})
	if err != nil {
		w.HostError() // those that are there are older, and say so
	}
}

// Looked says whether this worker and all that have requests have frozen their samples since, or no
// answer can be expected any more.
func (w *Worker) Looked(now, since Time) bool {
	if now-since >= freezeWithin || w.trace.Capacity == 0 {
		return true
	}
	for i := range w.account.Table().Entries {
		e := &w.account.Table().Entries[i]
		if idles(e) && e.ID != w.account.ID() {
			continue
		}
		value, err := w.account.Store().Kept(e.ID, lookSlot)
		if at, ok := reservoir.AtOf(value); err != nil || !ok || at < since {
			return false
		}
	}
	return true
}

// Current are the samples that Look had frozen. A worker without requests is not waited for: what
// it froze for an older wish is of requests that have ended since.
func (w *Worker) Current() reservoir.Peak {
	t := w.account.Table()
	looked := w.marks(t).Looked
	all := slices.DeleteFunc(w.kept(lookSlot), func(s reservoir.Snapshot) bool {
		i := slices.IndexFunc(t.Entries, func(e budget.Entry) bool { return e.ID == s.Worker })
		return s.At < looked && (i < 0 || idles(&t.Entries[i]))
	})
	if len(all) == 0 { // nobody had a request yet, or nothing is to be sampled
		all = append(all, w.empty(looked))
	}
	p, _ := reservoir.Gather(all)
	return p
}

// idles says that a worker has no requests, and nothing that ended ones left.
func idles(e *budget.Entry) bool { return e.Streams == 0 && e.Bounds == 0 }

// Peaks are the kept ones of all workers, the oldest first.
func (w *Worker) Peaks() []reservoir.Peak {
	var all []reservoir.Peak
	m, rules := w.marks(w.account.Table()), w.trace.Rules()
	for slot := 1; slot <= rules.Slots(); slot++ {
		if p, ok := reservoir.Gather(w.kept(slot)); ok {
			p.Highest = int64(slot) == m.HighSlot
			all = append(all, p)
		}
	}
	reservoir.SortPeaks(all)
	return all
}

// kept are what the workers have in a slot. What can't be read is counted.
func (w *Worker) kept(slot int) (all []reservoir.Snapshot) {
	for i := range w.account.Table().Entries {
		value, err := w.account.Store().Kept(w.account.Table().Entries[i].ID, slot)
		switch {
		case err != nil:
			w.HostError()
		case len(value) > 0:
			s, err := reservoir.Decode(value)
			if err != nil {
				w.counts[metric.CountBadSnapshots]++
				continue
			}
			all = append(all, s)
		}
	}
	return all
}
