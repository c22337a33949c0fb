package guard

import (
	"fmt"
	"slices"
	"time"

	"github.com/highwater-envoy/highwater/internal/budget"
	"github.com/highwater-envoy/highwater/internal/price"
	"github.com/highwater-envoy/highwater/internal/unit"
)

// Some of what a stream holds is no byte that passes: a compressor, copies of its body, its headers
// where they are sent on. The worker that polls learns from readings, and from how many streams
// each key has on all workers, what a stream of a key holds beside what is counted of it: its
// price. A stream likely holds that at least, and not both, and only while bytes explain less than
// half of what traffic holds: much rises with uploads beside what each of them costs, and is easily
// taken for that.
//
// A price says who holds the memory: what a peak shows, who is evicted first, and what nobody
// explains. Nobody is let in or rejected by it, so that who teaches a low one gains nothing, and
// who teaches a high one locks nobody out.

const (
	// toldEvery is how often a worker tells what it has, and hears what it costs. Two changes of
	// the numbers in it are one to the model.
	toldEvery = 50 * time.Millisecond // TestAPriceIsLearntFromReadings
	// priceSlot is where what is told is kept: beyond those of peaks.
	priceSlot = 1 << 10
	// priceMatters: a price that makes less than 1/32 of the limit is not told apart from noise.
	priceMatters = 32 // TestACheapKeyHasNoPrice
	// unexplained: what bytes explain less than half of is told by prices.
	unexplained = 2 // TestAWrongPriceEvictsNobody
	// tellOff: a price is logged where it is more than twice as much as is configured.
	tellOff   = 2
	tellEvery = time.Minute // TestAPriceIsLoggedOnce
)

// learnPrices takes a reading: the worker that polls does. While something leaves that was evicted
// or rejected, what a reading has is of nobody who is there, and it teaches nothing.
func (w *Worker) learnPrices(now Time, inUse int64) {
	p, t := &w.prices, w.account.Table()
	all := t.Sum()
	if all.Evicted.Leaving > 0 || all.Left > 0 || t.Level == budget.Over {
		return
	}
	w.countStreams()
	p.counts = p.counts[:0]
	stream, connection := w.costs()
	for _, of := range p.parts {
		p.counts = append(p.counts, price.Count{ID: of.ID, N: of.Streams, Prior: stream})
	}
	if p.model == nil {
		p.model = &price.Model{}
	}
	p.model.Matters = w.limits.Limit / priceMatters
	p.model.Observe(now, inUse-all.Queue.Come, max(all.Connections.Open-all.Streams, 0), connection, all.Bounds, p.counts)
	learnt := p.told.Prices[:0]
	p.model.Known(func(id uint64, bytes int64) { learnt = append(learnt, price.Price{ID: id, Bytes: bytes}) })
	price.Sort(learnt)
	p.told.Prices = learnt
	w.usePrices(now, learnt)
}

// costs are what is configured. Where listeners differ, the most.
func (w *Worker) costs() (stream, connection int64) {
	for _, g := range w.guards {
		stream, connection = max(stream, int64(g.config.Costs.Stream)), max(connection, int64(g.config.Costs.Connection))
	}
	return stream, connection
}

// ownStreams are those that are let in, of each of this worker's keys.
func (w *Worker) ownStreams(buf []price.Part) []price.Part {
	w.eachKey(func(k *key) {
		if n := k.Value.streams(); n > 0 {
			buf = append(buf, price.Part{ID: k.ID, Streams: n, Likely: max(k.Value.Likely, 0)})
		}
	})
	return buf
}

// countStreams counts them on all workers. A key may be there more than once.
func (w *Worker) countStreams() {
	p := &w.prices
	p.parts = w.ownStreams(p.parts[:0])
	for _, e := range w.account.Table().Entries {
		if e.ID == w.account.ID() || e.Streams == 0 {
			continue
		}
		published, err := w.account.Store().Kept(e.ID, priceSlot)
		if err != nil {
			w.HostError()
		} else if len(published) > 0 && p.heard.Decode(published) == nil {
			p.parts = append(p.parts, p.heard.Parts...)
		}
	}
}

// exchangePrices tells how many streams this worker has, and the prices where it has learnt them,
// and hears them where another has.
func (w *Worker) exchangePrices(now Time) {
	p, own := &w.prices, w.account.Own().Streams
	if now-p.at < toldEvery || own == 0 && !p.hasTold && !w.polls {
		return
	}
	p.at = now
	p.told.Parts = w.ownStreams(p.told.Parts[:0])
	if !w.polls {
		p.told.Prices = p.told.Prices[:0]
	}
	if has := len(p.told.Parts)+len(p.told.Prices) > 0; has || p.hasTold {
		p.hasTold = has
		p.buf = p.told.Append(p.buf[:0])
		if w.account.Store().Keep(w.account.ID(), priceSlot, p.buf) != nil {
			w.HostError()
		}
	}
	if poller := w.account.Table().Poller.ID; !w.polls && poller != 0 {
		published, err := w.account.Store().Kept(poller, priceSlot)
		if err != nil {
			w.HostError()
		} else if p.heard.Decode(published) == nil {
			w.usePrices(now, p.heard.Prices)
		}
	}
}

// usePrices hands prices, by id, to this worker's keys, and tells of one that is far from what is
// configured.
func (w *Worker) usePrices(now Time, all []price.Price) {
	p := &w.prices
	p.inForce = append(p.inForce[:0], all...)
	t := w.account.Table()
	sum := t.Sum()
	explained := t.Reading-t.Base <= unexplained*sum.Likely
	stream, _ := w.costs()
	w.eachKey(func(k *key) {
		v := &k.Value
		v.price, v.holds = price.Of(all, k.ID), 0
		if !explained {
			v.holds = v.price
		}
		if v.price > tellOff*stream && v.streams() > 0 {
			w.tellPrice(now, k, stream)
		}
	})
}

// tellPrice logs a key's price once, and one key each minute at most.
func (w *Worker) tellPrice(now Time, k *key, configured int64) {
	p := &w.prices
	if p.toldAt > 0 && now-p.toldAt < tellEvery || slices.Contains(p.logged, k.ID) || len(p.logged) >= price.MaxKeys || !w.logsPrices() {
		return
	}
	p.toldAt, p.logged = now, append(p.logged, k.ID)
	whose := k.Name.Value
	if k.ID == 0 {
		whose = "no key"
	}
	w.telling.Later(fmt.Sprintf("a request of %s holds %s beside the bytes that pass, by readings, and costs.stream says %s: a compressor, copies of bodies or large headers may be the cause",
		whose, unit.Bytes(k.Value.price).Human(), unit.Bytes(configured).Human()))
}

// logsPrices says that this worker is the first that has streams: so one line is logged, not one
// each.
func (w *Worker) logsPrices() bool {
	for _, e := range w.account.Table().Entries {
		if e.Streams > 0 {
			return e.ID == w.account.ID()
		}
	}
	return false
}

// priced is what all streams hold by their prices, beyond what they likely hold by their bytes.
func (w *Worker) priced() (sum int64) {
	w.countStreams()
	for _, of := range w.prices.parts {
		sum += max(of.Streams*price.Of(w.prices.inForce, of.ID)-of.Likely, 0)
	}
	return sum
}
