package doctor

import (
	"fmt"
	"time"

	"github.com/highwater-envoy/highwater/internal/leak"
	"github.com/highwater-envoy/highwater/internal/memorymap"
)

// Growth is what package leak says of samples over some time, or of what serve sees.
type Growth struct {
	Over    time.Duration `json:"over"`    // of the samples
	Growing leak.Growth   `json:"growing"` // what load does not explain
	Leak    leak.Leak     `json:"leak"`
}

// growthOver is how far leak's verdict on growth looks back.
const growthOver = 5 * time.Minute

// grows tells growth, and what went on for long enough to be called a leak.
func grows(p *patient) {
	g := p.in.Growth
	if g == nil {
		return
	}
	if l := g.Leak; l.Found() {
		p.find(Leaks, int64(l.PerMinute*l.Window.Minutes()), "Envoy leaks memory: "+l.String()+".")
	}
	if v := g.Growing; v.Found() {
		p.find(Grows, int64(v.PerMinute*min(g.Over, growthOver).Minutes()), "Memory grows, and load does not explain it: "+v.String()+".")
	}
	if a := p.now.Allocator; a != nil && !a.Counted {
		p.report.Missing = append(p.report.Missing, "growth that load does not explain: this allocator does not tell its size classes")
	}
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
