package main

import (
	"fmt"
	"time"

	"github.com/highwater-envoy/highwater/internal/load"
)

// payers are the floods that ask who pays: the one noisy route or tenant, or everybody.
func payers() []flood {
	noisy := flood{
		name:    "noisy-neighbour",
		about:   "100 clients of 4 MiB on one route, beside 20 uploads of 1 MiB a second on another; fair by route",
		clients: 100, envoy: settings{plugin: fairBy("route")},
		hogs: uploads{count: 100}.hogs,
		quiet: func(addr string) *load.Small {
			return &load.Small{Addr: addr, Path: "/quiet/upload?delay=50ms", Upload: mib, Rate: 20}
		},
		want: want{peak: 1, quiet: 99, quietTail: 1.5, noneWaits: true},
	}
	unfair := noisy
	unfair.name, unfair.about = "noisy-neighbour-unfair", "the same, fair to nobody: what fairness is worth"
	unfair.envoy.plugin, unfair.want = fairBy("none"), want{peak: 1}

	weights := make([]float64, 10)
	for i := range weights {
		weights[i] = float64(i + 1)
	}
	return append([]flood{
		noisy,
		unfair,
		{
			name:    "tenants",
			about:   "10 tenants of weight 1 to 10, each 160 clients of 256 KiB over HTTP/2 that want more than there is",
			clients: 1600, envoy: settings{sendBuffer: 16 * kib, plugin: fairTenants(weights)}, duration: 45 * time.Second,
			hogs: func(addr string) load.Load { return tenants(addr, len(weights), 160) },
			want: want{peak: 1, weights: weights, deviation: 0.1},
		},
		{
			name:    "warm-readers",
			about:   "20 slow readers of 16 MiB for 3 s, then 300 on the same route; 1 MiB buffers",
			clients: 300, envoy: settings{buffers: mib, plugin: fairBy("route")}, duration: 15 * time.Second,
			hogs: func(addr string) load.Load {
				readers := func(n int) load.Load { return &load.SlowReaders{Addr: addr, Count: n, Size: 16 * mib, Length: true} }
				return load.Then{First: readers(20), For: 3 * time.Second, Next: readers(300)}
			},
			want: want{peak: 1, late: 0.05, wasted: 0.05},
		},
		{
			name:    "crowd-40k",
			about:   "6,000 clients of 40 KiB over 60 connections of HTTP/2, upstream waits 2 s",
			clients: 6000, envoy: settings{plugin: fairBy("route")},
			hogs: func(addr string) load.Load {
				return &load.Uploads{Addr: addr, Count: 6000, Size: 40 * kib, Protocol: load.HTTP2, PerConnection: 100}
			},
			want: want{peak: 1.05, small: 99},
		},
		{
			name:    "evict-h2",
			about:   "300 readers over HTTP/2 that stall after 2 of 24 MiB, 16 MiB windows of which the guard knows 1 MiB",
			clients: 300, envoy: understated(), duration: 20 * time.Second,
			hogs: func(addr string) load.Load {
				return &load.SlowReaders{Addr: addr, Count: 300, Size: 24 * mib, Length: true, Protocol: load.HTTP2, Fast: 2 * mib, Leave: true}
			},
			want: want{back: 2 * time.Second},
		},
		{
			name:    "evict-idle",
			about:   "500 idle HTTP/2 streams that each moved 10 MiB, then 50 stalled readers, 16 MiB windows of which the guard knows 1 MiB",
			clients: 550, envoy: understated(), duration: 45 * time.Second,
			hogs: func(addr string) load.Load { return idleThenStalled(addr, 500, 50) },
			want: want{spared: 500, back: 2 * time.Second},
		},
	}, healthyMixes()...)
}

func fairBy(key string) func(map[string]any) {
	return func(plugin map[string]any) { plugin["fairness"] = map[string]any{"by": key} }
}

func tenant(i int) string { return fmt.Sprintf("t%d", i+1) }

func fairTenants(weights []float64) func(map[string]any) {
	byName := map[string]any{}
	for i, w := range weights {
		byName[tenant(i)] = w
	}
	return func(plugin map[string]any) {
		plugin["fairness"] = map[string]any{"by": "header:x-tenant", "weights": byName}
	}
}

// understated is an Envoy that holds some 17 MiB of a response that nobody reads, and a guard that
// was told of 2.
func understated() settings {
	return settings{buffers: mib, streamWindow: 16 * mib, connWindow: 100 * mib, plugin: func(plugin map[string]any) {
		fairBy("route")(plugin)
		buffers := plugin["buffers"].(map[string]any)
		buffers["http2_window"] = text(mib)
	}}
}

// tenants hold all equally long what they upload, so that what each is served is in proportion to
// what he may hold. Over HTTP/1 a rejected one loses its connection, and a thousand that connect
// again every 20 ms leave the two cores no time for anything else. Over HTTP/2 who comes back as
// often has his connection closed, with all that is under way on it: a client resets the upload
// that was rejected, and Envoy's codec bears 1,000 resets and 33 a second
// (nghttp2_option_set_stream_reset_rate_limit). They hold it for so long that memory is what is
// short, and not how many a busy worker can resume: of two workers with lines the faster one serves
// more of its own tenants else.
func tenants(addr string, n, clients int) (all load.Mix) {
	for i := range n {
		all = append(all, &load.Uploads{
			Addr: addr, Path: "/upload?delay=3s", Tenant: tenant(i), Count: clients, Size: 256 * kib,
			Protocol: load.HTTP2, PerConnection: 80, Retry: time.Second,
		})
	}
	return all
}

// idleThenStalled begins to stall some seconds after the last idle stream has moved its bytes: what
// moved a moment ago is not idle yet.
func idleThenStalled(addr string, idle, stalled int) load.Mix {
	streams := &load.IdleStreams{Addr: addr, Streams: idle, Bytes: 10 * mib}
	return load.Mix{streams, load.Once{
		Ready: func() bool {
			s := streams.Snapshot()
			return s.Served+s.Rejected+s.Cut+s.Closed+s.Errors >= int64(idle)
		},
		Pause: 4 * time.Second,
		Load:  &load.SlowReaders{Addr: addr, Count: stalled, Size: 24 * mib, Length: true, Protocol: load.HTTP2, Leave: true},
	}}
}

// healthyMixes are of all kinds and several tenants, at some 40 % of the budget: below soft no kind
// of fairness holds anybody back.
func healthyMixes() (mixes []flood) {
	for _, by := range []struct{ name, key string }{
		{"route", "route"}, {"header", "header:x-tenant"}, {"source", "source"}, {"none", "none"},
	} {
		mixes = append(mixes, flood{
			name:    "healthy-mix-" + by.name,
			about:   "uploads, slow readers, downloads and gRPC streams at some 40 % of the budget, fair by " + by.key,
			clients: 350, envoy: settings{plugin: fairBy(by.key)},
			hogs: func(addr string) load.Load {
				return load.Mix{
					&load.Uploads{Addr: addr, Path: "/upload?delay=200ms", Tenant: tenant(0), Count: 8, Size: mib, Drain: drain},
					&load.Uploads{Addr: addr, Path: "/upload?delay=50ms", Tenant: tenant(1), Count: 8, Size: 100 * kib, Protocol: load.HTTP2, Drain: drain},
					&load.SlowReaders{Addr: addr, Tenant: tenant(2), Count: 250, Size: 16 * mib, Length: true},
					&load.SlowReaders{Addr: addr, Tenant: tenant(3), Count: 30, Size: 4 * mb, Protocol: load.HTTP2},
					&load.Downloads{Addr: addr, Clients: 4, Size: 100_000},
					&load.Echoes{Addr: addr, Streams: 50, Size: kib, Pause: 50 * time.Millisecond},
				}
			},
			want: want{noVerdicts: true, noneCut: true},
		})
	}
	return mixes
}
