package doctor

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/highwater-envoy/highwater/internal/memorymap"
)

// Growth keeps what each size class had at first and has now. The zero value has seen nothing. It
// says what grew, and not why: a load that began meanwhile grows too.
type Growth struct {
	From    time.Time     `json:"from"`
	To      time.Time     `json:"to"`
	Samples int           `json:"samples"`
	Classes []ClassGrowth `json:"classes,omitempty"` // largest growth first, in bytes

	first, last map[int64]int64
}

// ClassGrowth is how one size class grew.
type ClassGrowth struct {
	Size  int64 `json:"size"`  // of an object, bytes
	First int64 `json:"first"` // objects
	Last  int64 `json:"last"`
}

// Bytes is by how much it grew.
func (c ClassGrowth) Bytes() int64 { return (c.Last - c.First) * c.Size }

const maxGrowing = 8

// Add takes in how many objects of each size were live at a time. Times must not go back.
func (g *Growth) Add(at time.Time, live map[int64]int64) {
	if g.first == nil {
		g.From, g.first = at, live
	}
	g.To, g.last = at, live
	g.Samples++
	g.Classes = g.Classes[:0]
	for size, n := range live {
		if c := (ClassGrowth{Size: size, First: g.first[size], Last: n}); c.Bytes() > 0 {
			g.Classes = append(g.Classes, c)
		}
	}
	slices.SortFunc(g.Classes, func(a, b ClassGrowth) int {
		return cmp.Or(cmp.Compare(b.Bytes(), a.Bytes()), cmp.Compare(a.Size, b.Size))
	})
	g.Classes = g.Classes[:min(len(g.Classes), maxGrowing)]
}

// Over is how long it watched.
func (g *Growth) Over() time.Duration { return g.To.Sub(g.From) }

// growthPerMinute is from which growth of a class is told: less is what traffic does.
const (
	growthPerMinute = 2 << 20
	leastWatched    = 30 * time.Second
)

// loadGrew says whether there is more load than at first, by a tenth: then all that has to do with
// it grew too.
func (p *patient) loadGrew() bool {
	if p.in.First == nil || p.in.First.Gauges == nil {
		return false
	}
	old, now := p.in.First.Gauges, p.gauges()
	return now.Requests > old.Requests+old.Requests/10 || now.Connections > old.Connections+old.Connections/10
}

func classGrows(p *patient) {
	g := p.in.Growth
	if g == nil || g.Over() < leastWatched || len(g.Classes) == 0 || p.loadGrew() {
		return
	}
	c := g.Classes[0]
	if perMinute := float64(c.Bytes()) / g.Over().Minutes(); perMinute < growthPerMinute {
		return
	}
	p.find(ClassGrows, c.Bytes(), fmt.Sprintf("Objects of %d bytes grew from %d to %d in %s: %s.",
		c.Size, c.First, c.Last, g.Over().Round(time.Second), human(c.Bytes())))
}

// unexplained sets what the map does not explain against the gauges that are there: what takes
// memory by its number is most likely what its gauge counts.
//
// With two moments it is growth against growth. With one it is what is there against what is
// counted, which is less sure: several gauges may fit, and all that fit are named.
func unexplained(p *patient) {
	rest := p.report.Map.In(memorymap.Unexplained)
	if rest < 16*mib || rest < p.whole()/20 || p.now.Gauges == nil {
		return
	}
	best, n := p.grownGauge()
	if best == "" {
		best, n = mostActive(p.now.Gauges.Active)
	}
	if best == "" || rest/n < minEach || rest/n > maxEach {
		p.find(UnexplainedLoad, rest, fmt.Sprintf("%s of Envoy's heap are not explained by connections, requests, buffers or clusters.", human(rest)))
		return
	}
	text := fmt.Sprintf("memory grew with %s: %s each", best, human(rest/n))
	advice := Advice{
		Setting: "max_connections or max_requests of circuit_breakers, or max_concurrent_streams, for what " + best + " counts",
		Value:   fmt.Sprint(max(n/2, 1)), Bytes: rest / 2, Brings: fmt.Sprintf("at most %s of it", human(rest/2)),
	}
	if g := p.now.Gauges; g.Compressed > 0 {
		text += ", and responses are compressed: a compressor holds its window for as long as the response lasts"
		advice = Advice{
			Setting: "memory_level and window_bits of the compressor's library (gzip)", Value: "memory_level: 4, window_bits: 11", Bytes: rest * 9 / 10,
			Brings: fmt.Sprintf("some 30KiB a response in place of %s", human(rest/n)),
		}
	}
	p.find(UnexplainedLoad, rest, text+".", advice)
}

// What one of something may hold, bytes: beyond that it is not what its gauge counts.
const (
	minEach = 4 << 10
	maxEach = 64 << 20
)

// grownGauge is the gauge that grew the most since the first sample, with by how much; "" = none.
func (p *patient) grownGauge() (name string, n int64) {
	if p.in.First == nil || p.in.First.Gauges == nil {
		return "", 0
	}
	grown := map[string]int64{}
	for name, v := range p.now.Gauges.Active {
		if d := v - p.in.First.Gauges.Active[name]; d > 0 {
			grown[name] = d
		}
	}
	return mostActive(grown)
}

// mostActive prefers requests to connections of the same number: a request has a connection.
func mostActive(gauges map[string]int64) (best string, n int64) {
	for name, v := range gauges {
		if v > n || v == n && (rank(name) < rank(best) || rank(name) == rank(best) && name < best) {
			best, n = name, v
		}
	}
	return best, n
}

var ranks = []string{".downstream_rq_active", ".upstream_rq_pending_active", ".upstream_rq_active", ".downstream_cx_active", ".upstream_cx_active"}

func rank(name string) int {
	for i, end := range ranks {
		if len(name) > len(end) && name[len(name)-len(end):] == end {
			return i
		}
	}
	return len(ranks)
}
