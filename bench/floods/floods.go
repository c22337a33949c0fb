package main

import (
	"fmt"
	"math"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/highwater-envoy/highwater/internal/load"
	"github.com/highwater-envoy/highwater/internal/unit"
)

const (
	kib = 1 << 10
	mib = 1 << 20
	mb  = 1_000_000
)

// A flood is one load in front of one setting of Envoy.
type flood struct {
	name  string
	about string

	envoy    settings
	hogs     func(addr string) load.Load   // a Mix: with a snapshot of each
	quiet    func(addr string) *load.Small // in the parent, on a route of its own (/quiet): who is to notice nothing
	clients  int                           // how many hogs there are
	duration time.Duration                 // instead of -duration
	limit    unit.Bytes                    // the budget, instead of -limit
	recovery bool                          // measure how long full service takes to come back
	obeys    bool                          // rejected hogs come back when they are told to
	never    bool                          // or never

	want want
}

// settings of Envoy, and of the guard's buffers block with them. Zero: as in examples/envoy.yaml.
type settings struct {
	buffers                  int // of the listener and the cluster
	streamWindow, connWindow int
	maxStreams               int
	linger                   time.Duration
	patience                 time.Duration // throttle.timeout
	sendBuffer               int           // of the kernel, towards the upstream: what that does not read stays with Envoy
	unbuffered               bool          // without the buffer filter on /upload
	plain                    bool          // without what else the example sets: a bounded send buffer, a soft limit for the allocator

	plugin func(cfg map[string]any) // edits the guard's configuration, last of all
}

// envoyDefaults is what most people have: what Envoy does if it isn't told otherwise.
var envoyDefaults = settings{buffers: mib, streamWindow: 16 * mib, connWindow: 24 * mib, maxStreams: 1024, linger: time.Second, plain: true}

// stock is the same, and nothing that holds whole requests.
var stock = settings{buffers: mib, streamWindow: 16 * mib, connWindow: 24 * mib, maxStreams: 1024, linger: time.Second, plain: true, unbuffered: true}

// want is what issue "A memory budget that holds" asks of the guard in a flood. Zero: nothing.
type want struct {
	peak       float64 // allocated / limit at most
	smallTail  float64 // p99 of the small requests against that beside no guard, at most
	goodput    float64 // against that of no guard, at least
	rejected   float64 // rejects per request that was finished, at most; negative: none
	served     float64 // hogs served per client, at least
	noneCut    bool
	noVerdicts bool // nobody is touched
	recovery   time.Duration

	small     float64       // percent of the small requests that are answered 200, at least; 0: all
	quiet     float64       // the same of the quiet ones
	quietTail float64       // p99 of the quiet ones against that beside no guard, at most
	noneWaits bool          // the guard did nothing to any of the quiet ones
	weights   []float64     // of the hogs' loads: what each is served in the second half is in this proportion
	deviation float64       // but for this part of its share
	late      float64       // part of the rejects that came when the upstream had done its work, at most
	wasted    float64       // requests that reached the upstream and were not served, against those served, at most
	back      time.Duration // from the second reading over the limit until memory is below hard, each time
	spared    int64         // as many of the first of the hogs' loads are served, and none is cut
	truth     float64       // of those who came back when they were told to, served at least
}

// from is what is wanted of one of our faces. The server sees headers, no connections, and of
// bodies only those without a length.
func (w want) from(guard string) want {
	if guard != extproc {
		return w
	}
	return want{
		peak: w.peak, small: w.small, goodput: min(w.goodput, 0.5), noVerdicts: w.noVerdicts, quiet: w.quiet, recovery: w.recovery,
	}
}

var uploadWant = want{peak: 1, smallTail: 1.5, goodput: 0.95}

// uploads of 4 MiB each, or of mixed sizes.
type uploads struct {
	count    int
	mixed    bool // 256 KiB to 16 MiB, which is all that the example's buffer filter takes
	chunked  bool
	protocol load.Protocol
	drain    time.Duration
	obey     time.Duration
}

func (u uploads) hogs(addr string) load.Load {
	l := &load.Uploads{Addr: addr, Count: u.count, Size: 4 * mib, Chunked: u.chunked, Protocol: u.protocol, Drain: u.drain, Obey: u.obey}
	if u.mixed {
		l.Size, l.Largest, l.Seed = 256*kib, 16*mib, 1
	}
	return l
}

// Those under way when a flood ends may finish, so that goodput is that of whole uploads over the
// time they took.
const drain = 10 * time.Second

func floods() []flood {
	withLength := uploadWant
	withLength.rejected = 0.01

	all := []flood{
		{
			name: "upload-h1", about: "100 uploads of 4 MiB over HTTP/1, buffered whole, upstream waits 2 s", clients: 100,
			hogs: uploads{count: 100, drain: drain}.hogs, want: withLength,
		},
		{
			name: "upload-chunked", about: "the same without Content-Length", clients: 100,
			hogs: uploads{count: 100, chunked: true, drain: drain}.hogs, want: uploadWant,
		},
		{
			name: "upload-h2", about: "the same over HTTP/2, all on one connection", clients: 100,
			hogs: uploads{count: 100, protocol: load.HTTP2, drain: drain}.hogs, want: withLength,
		},
		{
			name: "upload-400", about: "400 such uploads over HTTP/1", clients: 400,
			hogs: uploads{count: 400, drain: drain}.hogs, want: want{peak: 1},
		},
		{
			name: "upload-default-100", about: "100 uploads, Envoy's defaults: 1 MiB buffers, 16 MiB windows, 1 s linger", clients: 100,
			envoy: envoyDefaults, hogs: uploads{count: 100, drain: drain}.hogs, want: want{peak: 1, goodput: 0.95},
		},
		{
			name: "upload-default-200", about: "200 uploads, Envoy's defaults", clients: 200,
			envoy: envoyDefaults, hogs: uploads{count: 200, drain: drain}.hogs, want: want{peak: 1},
		},
		{
			name: "stock-upload", about: "100 uploads, Envoy's defaults, no buffer filter; the upstream reads at once and answers after 2 s; who is rejected stays away for a minute",
			clients: 100, envoy: stock, never: true,
			hogs: func(addr string) load.Load {
				return &load.Uploads{Addr: addr, Path: "/upload?think=2s", Count: 100, Size: 4 * mib, Retry: time.Minute}
			},
			want: want{peak: 1},
		},
	}

	for _, buffers := range []string{"1m", "64k"} {
		for _, size := range []struct {
			name  string
			bytes int64
		}{{"16m", 16 * mib}, {"4m", 4 * mb}, {"1m", mb}} {
			for _, length := range []bool{true, false} {
				for _, protocol := range []load.Protocol{load.HTTP1, load.HTTP2} {
					all = append(all, slowReaders(buffers, size.name, size.bytes, length, protocol))
				}
			}
		}
	}

	all = append(all,
		flood{
			name: "slow-1000", about: "1,000 slow readers of 16 MiB over HTTP/1, 64 KiB buffers", clients: 1000,
			hogs: func(addr string) load.Load {
				return &load.SlowReaders{Addr: addr, Count: 1000, Size: 16 * mib, Length: true}
			},
			want: want{peak: 1, noneCut: true, served: 0.9},
		},

		flood{
			name: "healthy-download", about: "64 clients on 1 MB responses as fast as they go", clients: 64,
			hogs: func(addr string) load.Load { return &load.Downloads{Addr: addr, Clients: 64, Size: mb} },
			want: want{noVerdicts: true},
		},
		flood{
			name: "healthy-small", about: "256 clients on 5 kB responses as fast as they go", clients: 256,
			hogs: func(addr string) load.Load { return &load.Downloads{Addr: addr, Clients: 256, Size: 5000} },
			want: want{noVerdicts: true},
		},
		// To move 5 GB takes half of these.
		flood{
			name: "healthy-idle-h2", about: "500 idle HTTP/2 streams that each moved 10 MiB", clients: 500, duration: 30 * time.Second,
			hogs: func(addr string) load.Load { return &load.IdleStreams{Addr: addr, Streams: 500, Bytes: 10 * mib} },
			want: want{noVerdicts: true, noneCut: true, served: 1},
		},
		flood{
			name: "healthy-grpc", about: "200 gRPC streams with a message of 1 KiB every 50 ms", clients: 200,
			hogs: func(addr string) load.Load {
				return &load.Echoes{Addr: addr, Streams: 200, Size: kib, Pause: 50 * time.Millisecond}
			},
			want: want{noVerdicts: true, noneCut: true},
		},
		flood{
			name: "healthy-40", about: "use at some 40 % of the budget: 500 slow readers of 16 MiB, 64 KiB buffers", clients: 500,
			hogs: func(addr string) load.Load {
				return &load.SlowReaders{Addr: addr, Count: 500, Size: 16 * mib, Length: true}
			},
			want: want{noVerdicts: true, noneCut: true},
		},

		flood{
			name: "retry-100", about: "100 clients of 4 MiB that retry a reject after 20 ms for a minute, then stop", clients: 100,
			hogs: uploads{count: 100}.hogs, duration: time.Minute, recovery: true,
			want: want{peak: 1, recovery: time.Second},
		},
		flood{
			name: "obey-300", about: "300 clients of 4 MiB that come back when they are told to, and wait in the queue for 200 ms at most", clients: 300,
			envoy: settings{patience: 200 * time.Millisecond}, obeys: true,
			hogs: uploads{count: 300, obey: 30 * time.Second, drain: drain}.hogs, want: want{peak: 1, truth: 0.8},
		},
		flood{
			name: "obey-600", about: "600 such clients that wait in the queue for 2 s at most", clients: 600, obeys: true,
			hogs: uploads{count: 600, obey: 30 * time.Second, drain: drain}.hogs, want: want{peak: 1},
		},
		flood{
			name: "retry-1000", about: "1,000 such clients", clients: 1000,
			hogs: uploads{count: 1000}.hogs, duration: time.Minute, recovery: true,
			want: want{peak: 1, recovery: time.Second},
		},
	)
	return slices.Concat(all, untuned(all), hostile(), payers())
}

// loads are what the child runs.
func (f flood) loads(addr string) []load.Load {
	hogs := f.hogs(addr)
	if mix, ok := hogs.(load.Mix); ok {
		return mix
	}
	return []load.Load{hogs}
}

// untuned are uploads at other budgets than the example's: nothing but budget.limit is changed.
// What rejects and waits cost does not shrink with the budget, so that a small one is the harder.
func untuned(all []flood) (untuned []flood) {
	at := func(f flood, limit int, want want) {
		f.limit, f.want = unit.Bytes(limit*mib), want
		f.name = fmt.Sprintf("%s@%d", f.name, limit)
		f.about += fmt.Sprintf(", budget %s", f.limit)
		untuned = append(untuned, f)
	}
	for _, f := range all {
		switch f.name {
		case "upload-h1", "upload-chunked", "upload-h2":
			at(f, 100, want{peak: 1, goodput: 0.95})
			at(f, 400, want{peak: 1, goodput: 0.95})
		}
	}
	for _, protocol := range []load.Protocol{load.HTTP1, load.HTTP2} {
		mixed := flood{
			name:  "mixed-" + string(protocol),
			about: fmt.Sprintf("100 uploads of 256 KiB to 16 MiB over %s, buffered whole, upstream waits 2 s", protocol), clients: 100,
			hogs: uploads{count: 100, mixed: true, protocol: protocol, drain: drain}.hogs,
		}
		for _, limit := range []int{100, 200, 400} {
			at(mixed, limit, want{peak: 1})
		}
	}
	return untuned
}

// hostilePart is how much of each crowd is in hostile-all.
const hostilePart = 0.25

// hostile are the floods of clients that mean harm: hostile-<kind>, and all of them at once for a
// minute.
func hostile() (floods []flood) {
	all := 0
	for _, kind := range load.Kinds() {
		all += int(math.Ceil(hostilePart * float64(kind.Crowd())))
		floods = append(floods, flood{
			name: "hostile-" + string(kind), about: fmt.Sprintf("%d clients: %s", kind.Crowd(), kind.About()), clients: kind.Crowd(),
			hogs: func(addr string) load.Load {
				return &load.Hostile{Addr: addr, Kind: kind, Count: kind.Crowd(), Seed: 1}
			},
			want: want{peak: 1},
		})
	}
	return append(floods, flood{
		name: "hostile-all", about: "a quarter of each of these, all at once for a minute", clients: all, duration: time.Minute,
		hogs: func(addr string) load.Load { return load.AllHostile(addr, hostilePart, 1) },
		want: want{peak: 1},
	})
}

// slowReaders is one of the family slow-<buffers>-<size>-<len|nolen>-<h1|h2>: 300 readers. Behind 1
// MiB buffers the windows of HTTP/2 are Envoy's default too.
func slowReaders(buffers, sizeName string, size int64, length bool, protocol load.Protocol) flood {
	f := flood{clients: 300, want: want{peak: 1}}
	f.hogs = func(addr string) load.Load {
		return &load.SlowReaders{Addr: addr, Count: 300, Size: size, Length: length, Protocol: protocol}
	}
	framing, windows := "len", ""
	if !length {
		framing = "nolen"
	}
	if buffers == "1m" {
		f.envoy = settings{buffers: mib}
		if protocol == load.HTTP2 {
			f.envoy.streamWindow, f.envoy.connWindow, windows = 16*mib, 24*mib, ", 16 MiB windows"
		}
		if !length {
			f.want.peak = 1.1
		}
	} else {
		f.want.rejected = -1
		if protocol == load.HTTP2 {
			windows = ", 64 KiB windows"
		}
	}
	f.name = strings.Join([]string{"slow", buffers, sizeName, framing, string(protocol)}, "-")
	f.about = fmt.Sprintf("300 slow readers of %s%s over %s, %s buffers%s", sizeName,
		map[bool]string{true: "", false: " without Content-Length"}[length], protocol, buffers, windows)
	return f
}

// choose returns the floods that the patterns name, in the order of the patterns, each once.
func choose(all []flood, patterns string) ([]flood, error) {
	var chosen []flood
	taken := map[string]bool{}
	for pattern := range strings.SplitSeq(patterns, ",") {
		pattern = strings.TrimSpace(pattern)
		if pattern == "all" {
			pattern = "*"
		}
		found := false
		for _, f := range all {
			matched, err := path.Match(pattern, f.name)
			if err != nil {
				return nil, fmt.Errorf("-flood %q: %w", pattern, err)
			}
			found = found || matched
			if matched && !taken[f.name] {
				taken[f.name] = true
				chosen = append(chosen, f)
			}
		}
		if !found {
			return nil, fmt.Errorf("-flood %q: no such flood; -list names them", pattern)
		}
	}
	return chosen, nil
}
