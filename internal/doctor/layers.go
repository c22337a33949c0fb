package doctor

import (
	"time"

	"github.com/highwater-envoy/highwater/internal/memorymap"
)

// Layer is what a chart draws as one: parts of the map that go together.
type Layer struct {
	Name  string
	Bytes int64
}

// The layers, from the one at the bottom.
const (
	layerProgram = iota
	layerWasm
	layerConfiguration
	layerLoad
	layerCaches
	layerFree
	layerUnexplained
	numLayers
)

var layerNames = [numLayers]string{
	"Envoy's program", "Wasm and V8", "configuration", "load", "caches and books", "free pages", "not explained",
}

// layersOf folds a map into its layers. They add up to what is resident, but where more is
// explained than there is.
func layersOf(m *memorymap.Map) (list [numLayers]Layer) {
	for i := range list {
		list[i].Name = layerNames[i]
	}
	at := map[string]int{
		memorymap.WasmMemory: layerWasm, memorymap.WasmCode: layerWasm, memorymap.V8: layerWasm, memorymap.Application: layerLoad,
		memorymap.Caches: layerCaches, memorymap.Books: layerCaches, memorymap.FreePages: layerFree, memorymap.Unexplained: layerUnexplained,
	}
	for _, p := range m.Parts {
		list[at[p.Name]].Bytes += p.Bytes // what is not in it is the program's
	}
	move := func(to int, n int64) {
		n = min(max(n, 0), list[layerLoad].Bytes)
		list[layerLoad].Bytes -= n
		list[to].Bytes += n
	}
	move(layerConfiguration, m.In(memorymap.StartUp)+m.In(memorymap.Clusters))
	move(layerWasm, m.In(memorymap.Plugins))
	move(layerUnexplained, m.In(memorymap.Unexplained))
	return list
}

// Point is the layers at a time.
type Point struct {
	At     time.Time
	Layers [numLayers]int64
}

// Resident is what they come to.
func (p *Point) Resident() (n int64) {
	for _, b := range p.Layers {
		n += b
	}
	return n
}

// Series keeps the layers over time in little memory: when it is full it drops every second point,
// the lower one of two, and from then on keeps half as many. The zero value is empty. It is not
// safe for concurrent use.
type Series struct {
	points []Point
	least  time.Duration // between two points
}

const maxPoints = 480

// Add takes a report in. Of those that come too close to the last point the highest is kept.
func (s *Series) Add(r *Report) {
	if r.Map.Resident == 0 {
		return
	}
	p := Point{At: r.Time}
	for i, l := range layersOf(&r.Map) {
		p.Layers[i] = max(l.Bytes, 0)
	}
	n := len(s.points)
	if n > 0 && p.At.Sub(s.points[n-1].At) < s.least {
		if p.Resident() > s.points[n-1].Resident() {
			p.At = s.points[n-1].At
			s.points[n-1] = p
		}
		return
	}
	if n == maxPoints {
		s.thin()
	}
	s.points = append(s.points, p)
}

func (s *Series) thin() {
	kept := s.points[:0]
	for i := 0; i+1 < len(s.points); i += 2 {
		a, b := s.points[i], s.points[i+1]
		if b.Resident() > a.Resident() {
			a.Layers = b.Layers
		}
		kept = append(kept, a)
	}
	s.points = kept
	if n := len(kept); n > 1 {
		s.least = kept[n-1].At.Sub(kept[0].At) / time.Duration(n-1) * 3 / 4
	}
}

// Points are what it has, oldest first. They are not to be changed.
func (s *Series) Points() []Point { return s.points }
