package guard

import (
	"math"
	"sort"

	"github.com/highwater-envoy/highwater/internal/budget"
	"github.com/highwater-envoy/highwater/internal/fairness"
	"github.com/highwater-envoy/highwater/internal/metric"
	"github.com/highwater-envoy/highwater/internal/verdict"
)

// lingerMore: what was evicted counts as leaving for so much longer than the linger. By then there
// is a reading that can show that it has gone.
const lingerMore = 50 * 1e6 // scenario eviction

// evict does this worker's part of what the one who polls has found to be too much, and says
// whether it ended anything. All workers come to the same plan: of the keys, those most above their
// share give up what is too much (fairness.Cuts); of a key, the streams that likely hold most go
// first, each worker's in proportion to what it has of them. What is likely held is scaled to what
// was measured: where `buffers` understate, eight times too much would go otherwise.
func (w *Worker) evict(now Time, a *Actions) (ended bool) {
	n := w.account.ToEvict()
	if n == 0 {
		return false
	}
	w.exchangeShares(now)
	x, t := &w.shares, w.account.Table()
	var likely int64
	for i := range x.All {
		likely += x.All[i].Likely
	}
	held := t.Reading - t.Base - t.Sum().Evicted.Leaving
	if likely <= 0 || held <= 0 {
		return false
	}
	scale := float64(held) / float64(likely)
	x.Cut(max(held-n, 0), func(t *fairness.Total) int64 { return int64(scale * float64(t.Likely)) })
	w.eachKey(func(k *key) {
		i := fairness.Find(x.All, k.ID)
		if i < 0 || x.Parts[i] == 0 || x.All[i].Likely <= 0 {
			return
		}
		var before int64
		if j := fairness.Find(x.Before, k.ID); j >= 0 && x.Before[j].ID == k.ID {
			before = x.Before[j].Likely
		}
		perByte := float64(x.Parts[i]) / float64(x.All[i].Likely)
		ended = w.evictOf(now, a, k, scale, x.All[i].Most, perByte*float64(before), perByte*float64(before+k.Value.likelyPriced())) || ended
	})
	w.publish()
	return ended
}

// evictOf evicts a key's part from one byte to another of what is cut from it on all workers. As
// many streams go on all of them together as one worker alone would take: the cut is counted in
// streams, and each takes those that begin in its part. What holds less than half of most, of what
// one stream of the key holds anywhere, stays for another time: 500 idle streams that may hold a
// tenth of their bound each would go for the sake of 50 stalled readers, who hold all of what is
// too much.
func (w *Worker) evictOf(now Time, a *Actions, k *key, scale float64, most int64, from, to float64) (ended bool) {
	w.evictable = w.evictable[:0]
	w.candidates(func(of *key, c candidate) {
		if of == k && 2*c.likely >= most {
			w.evictable = append(w.evictable, c)
		}
	})
	sort.Slice(w.evictable, func(i, j int) bool { return sooner(&w.evictable[i], &w.evictable[j]) })
	for _, c := range w.evictable {
		size := max(scale*float64(c.likely), 1)
		if math.Ceil(to/size) <= math.Ceil(from/size) {
			break
		}
		if c.stream != nil && !w.evictStream(now, a, c.stream) || c.connection != nil && !w.evictLeft(a, c.connection) {
			continue
		}
		w.count(verdict.Evicted)
		w.leaving.Add(now, Time(w.linger)+lingerMore, int64(size))
		from += size
		ended = true
	}
	clear(w.evictable)
	return ended
}

// sooner says that a goes before b: those first that share their connection with nobody, and of
// those the ones that hold most (TestAConnectionThatIsSharedIsCutLast).
func sooner(a, b *candidate) bool {
	if a.shared != b.shared {
		return b.shared
	}
	return a.likely > b.likely
}

func (w *Worker) evictStream(now Time, a *Actions, s *Stream) bool {
	if r, ok := s.host.(*raw); ok {
		return w.evictRaw(a, r)
	}
	c := s.conn()
	if c != nil && c.cut == w.ticks {
		return false
	}
	begun := s.Expected(budget.Response)
	if begun {
		w.counts[metric.CountRejectedResponses]++
	}
	if s.guard.observesBeside() {
		s.evictedOnce = true
		return true
	}
	if shadow := s.reject(now); shadow {
		return true
	}
	w.end(c)
	v := Verdict{Action: verdict.Answer, Reason: verdict.Evicted}
	if begun {
		v.Action = verdict.Reset
	} else {
		v.RetryAfter = s.guard.retryAfter(now, s.total())
	}
	w.account.End(now, &s.Stream, budget.Request)
	w.account.End(now, &s.Stream, budget.Response)
	a.Rejected = append(a.Rejected, Decision{s, v})
	return true
}

func (w *Worker) evictLeft(a *Actions, c *Connection) bool {
	if c.observed {
		c.evictedOnce = true
		return true
	}
	if !w.claimCut(c) {
		return false
	}
	a.Cut = append(a.Cut, c)
	return true
}

// evictRaw has a raw connection closed, once.
func (w *Worker) evictRaw(a *Actions, r *raw) bool {
	if r.guard.enforcesTCP() {
		if !w.claimCut(r.of) {
			return false
		}
		r.of.ends = true
		a.Cut = append(a.Cut, r.of)
	}
	r.evictedOnce = true
	return true
}

// candidates calls do with each that can be evicted.
func (w *Worker) candidates(do func(k *key, c candidate)) {
	w.account.Owners(func(owner any) {
		// What has ended is out of reach: Envoy ignores a local reply then, and the rest stays with
		// the connection.
		if s, ok := owner.(*Stream); ok && s.admitted() && s.exempt == notExempt && !s.evictedOnce && s.likely() > 0 && !s.Ended(budget.Response) && !mayBeIdle(s) {
			do(s.key, candidate{stream: s, likely: s.likely()})
		}
	})
	for _, c := range w.residual {
		if c.Left() > 0 && !c.evictedOnce {
			do(c.key, candidate{connection: c, likely: c.Left(), shared: c.use.Requests() > 0})
		}
	}
}

// weigh finds what one stream of each key likely holds at most.
func (w *Worker) weigh() {
	w.eachKey(func(k *key) { k.Value.most = 0 })
	w.candidates(func(k *key, c candidate) { k.Value.most = max(k.Value.most, c.likely) })
}

// mayBeIdle says that a stream is that of a connection on which next to nothing has passed.
func mayBeIdle(s *Stream) bool {
	r, ok := s.host.(*raw)
	return ok && r.of.kind == unsettled
}
