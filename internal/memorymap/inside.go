package memorymap

import (
	"github.com/highwater-envoy/highwater/internal/allocator"
)

// The parts of the second level.
const (
	StartUp     = "start-up and configuration"
	Clusters    = "clusters, with their stats"
	Plugins     = "Wasm plugins, in Envoy's heap"
	Connections = "connections"
	TLS         = "TLS"
	Requests    = "requests"
	Buffers     = "buffers"
)

// InsideNames are those of the second level, in their order.
func InsideNames() []string {
	return []string{StartUp, Clusters, Plugins, Connections, TLS, Requests, Buffers, Unexplained}
}

// The prices of the second level, bytes: what Envoy 1.40 had more of in its heap for each, by
// size classes, without buffers. `go run ./bench/explain -prices` measures them again.
const (
	priceStartUp    = 4_900 << 10 // two workers, a listener, three clusters
	priceCluster    = 48 << 10    // a static one, of its 49 KiB
	priceConnection = 8 << 10
	priceTLS        = 31 << 10 // beside the connection
	priceUpstream   = 9 << 10
	priceRequest    = 22 << 10
	// startUpBuffers are the objects of whole 4 KiB that Envoy starts with: tables, strings, logs.
	startUpBuffers = 1_330 << 10
	fewClusters    = 3
)

// page: Envoy's buffers have slices of whole 4 KiB, most of them of 16, and little else has.
// https://github.com/envoyproxy/envoy/blob/main/source/common/buffer/buffer_impl.h, Slice::sliceSize
const page = 4 << 10

// What tcmalloc's text itself takes while it is printed: one object of 512 KiB.
const itself = 512 << 10

// heapShape is how the application's bytes fall into sizes.
type heapShape struct {
	pages int64 // in objects of whole 4 KiB
	large int64 // in objects that are larger than any class
	small int64 // in the rest
}

func shapeOf(r *allocator.Report) (s heapShape) {
	s.small, s.large = r.Application, r.Large
	if r.Kind == allocator.TCMalloc {
		s.large = max(s.large-itself, 0)
	}
	for _, c := range r.Classes {
		if c.Size%page == 0 {
			s.pages += c.LiveBytes()
		}
	}
	s.small = max(r.Application-r.Large-s.pages, 0)
	return s
}

// inside splits the application's bytes.
//
// Buffers are measured: slices are objects of whole 4 KiB, and size classes tell how many there
// are. Envoy's own gauges of buffers would count twice what is on its way from one connection to
// another, and miss what filters and codecs keep. The rest are numbers of connections, requests and
// clusters times their prices. What that leaves, or has too much, is the error.
func (m *Map) inside(in Input, app int64) {
	r, g := in.Allocator, in.Gauges
	if r == nil || len(r.Classes) == 0 || app == 0 {
		return
	}
	if g == nil {
		m.missing("Envoy's gauges: connections, requests and clusters are not told apart")
		g = &Gauges{}
	}
	shape := shapeOf(r)
	var list []Part
	put := func(name string, n int64) {
		if n > 0 {
			list = append(list, Part{Name: name, Bytes: n})
		}
	}
	base := heapShape{pages: startUpBuffers, small: priceStartUp}
	switch {
	case in.Base != nil:
		base = shapeOf(in.Base)
		put(StartUp, base.pages+base.small+base.large)
	default:
		put(StartUp, base.pages+base.small)
		if more := g.Clusters - fewClusters; more > 0 {
			put(Clusters, more*priceCluster)
			base.pages += more * priceCluster / 120 // 1.6 of 192 MiB
		}
		if g.WasmVMs > 0 {
			// V8 keeps a module's code, and beside it in Envoy's heap its bytes, and of small
			// objects nearly as much again as the code has.
			code := m.Of(WasmCode)
			plugins := min(shape.large, 3*code)
			base.pages += code * 3 / 10
			put(Plugins, plugins+code*9/10)
		}
	}
	put(Connections, g.Connections*priceConnection+g.UpstreamConnections*priceUpstream)
	put(TLS, g.TLS*priceTLS)
	put(Requests, g.Requests*priceRequest)
	put(Buffers, shape.pages-base.pages)
	sum := int64(0)
	for _, p := range list {
		sum += p.Bytes
	}
	if r.Kind == allocator.TCMalloc {
		app -= min(itself, r.Large, app)
	}
	rest := app - sum
	m.Inside = append(list, Part{Name: Unexplained, Bytes: rest})
	if m.Resident > 0 {
		m.InsideError = float64(max(rest, -rest)) / float64(m.Resident)
	}
}
