package e2e

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/doctor"
	"github.com/highwater-envoy/highwater/internal/envoybin"
	"github.com/highwater-envoy/highwater/internal/observer"
)

// growthFull runs the test of growth as it is in production: samples each ten seconds, a window of
// five minutes, and 2 MB a minute. Without it samples come each second, so that the window with as
// many of them has thirty seconds, and twelve times as much leaks: as much in a window. All else of
// the settings is the same.
var growthFull = flag.Bool("growth-full", false, "watch growth for windows of five minutes, in place of thirty seconds: twelve minutes in all")

// growthCase is what a load does.
type growthCase struct{ leaks, steady bool }

// swing sends GETs, of which some leak, at a rate that goes from low to five times as much and
// back, or stays. A wave is a third of the window. It counts what was answered.
type swing struct {
	s      *scene
	low    float64 // requests a second
	wave   time.Duration
	steady bool
	leaks  bool
	sent   atomic.Int64
}

func (g *swing) run(ctx context.Context, c *http.Client, name string) {
	slots := make(chan struct{}, 64)
	var running sync.WaitGroup
	defer running.Wait()
	began, due := time.Now(), time.Now()
	for n := 0; ctx.Err() == nil; n++ {
		rate := g.low
		if !g.steady {
			rate *= 3 - 2*math.Cos(2*math.Pi*time.Since(began).Seconds()/g.wave.Seconds())
		}
		due = due.Add(time.Duration(float64(time.Second) / rate))
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Until(due)):
		}
		slots <- struct{}{}
		running.Go(func() {
			defer func() { <-slots }()
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, g.s.url("/small"), nil)
			if err != nil {
				return
			}
			if g.leaks {
				req.Header.Set("x-test-trap", fmt.Sprintf("leak-%s-%d", name, n))
			}
			res, err := c.Do(req)
			if err != nil {
				return
			}
			_, _ = io.Copy(io.Discard, res.Body)
			res.Body.Close()
			g.sent.Add(1)
		})
	}
}

// A plugin that leaks in Envoy's own heap is told as growth that load does not explain, alone and
// under a load that swings by five, with the objects that it leaks. The same load without the leak
// is told of by nobody.
func TestGrowthIsTold(t *testing.T) {
	// Requests a second: each leaks 896 bytes, and some more for a key.
	window, within, rate := 30*time.Second, 40*time.Second, 400.0
	cases := map[string]growthCase{"under a load that swings": {leaks: true}}
	if *growthFull {
		window, within, rate = 5*time.Minute, 5*time.Minute, 40
		cases["alone"], cases["no leak"] = growthCase{leaks: true, steady: true}, growthCase{}
	}
	root, err := envoybin.ModuleRoot()
	require.NoError(t, err)
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := start(t, setup{workers: 2, wasm: filepath.Join(root, "build", "highwater-trap.wasm")})
			l, err := net.Listen("tcp", "127.0.0.1:0")
			require.NoError(t, err)
			address := l.Addr().String()
			require.NoError(t, l.Close())
			companion(t, address, fmt.Sprintf("budget: {limit: 1GiB}\nmemory: {url: %q}\nenvoy: {pid: %d}\nleak: {interval: %v, window: %v}\n",
				s.AdminURL(), s.PID(), window/30, window))

			ctx, cancel := context.WithCancel(t.Context())
			low := rate / 3
			if c.steady {
				low = rate
			}
			g := &swing{s: s, low: low, wave: window / 3, steady: c.steady, leaks: c.leaks}
			var running sync.WaitGroup
			running.Go(func() { g.run(ctx, client(t, false), "a") })
			defer running.Wait()
			defer cancel()

			before, err := s.Memory(t.Context())
			require.NoError(t, err)
			began := time.Now()
			var x observer.Status
			for time.Since(began) < within {
				if x = observed(t, address); x.Growing.Found() {
					break
				}
				time.Sleep(window / 100)
			}
			after, err := s.Memory(t.Context())
			require.NoError(t, err)
			took := time.Since(began)
			perMinute := float64(after.Allocated-before.Allocated) / took.Minutes()
			t.Logf("%s: after %v: %v; allocated grew by %.1f MB a minute; %d requests", name, took.Round(time.Second), x.Growing, perMinute/1e6, g.sent.Load())
			require.Equal(t, c.leaks, x.Growing.Found(), "%+v", x)
			require.False(t, x.Leak.Found(), "that takes an hour")
			if c.leaks {
				require.Equal(t, int64(896), x.Growing.Size)
				require.Contains(t, x.Growing.String(), "896-byte objects, about one a request")
				require.Less(t, took, within)
				res, err := http.Get("http://" + address + "/report")
				require.NoError(t, err)
				defer res.Body.Close()
				page, err := io.ReadAll(res.Body)
				require.NoError(t, err)
				require.Contains(t, string(page), "Memory grows, and load does not explain it: ")
				require.Contains(t, string(page), "896-byte objects, about one a request")
			}
			if *growthFull { // doctor watches for itself, and says the same
				r := s.examine("-watch", "2m")
				require.NotZero(t, r.Growth.Growing.Samples)
				require.Equal(t, c.leaks, r.Has(doctor.Grows), "%+v", r.Growth)
				t.Logf("%s: doctor -watch: %v", name, r.Growth.Growing)
			}
		})
	}
}

// observed is what a companion says of its observer.
func observed(t *testing.T, address string) (x observer.Status) {
	t.Helper()
	res, err := http.Get("http://" + address + "/status")
	if err != nil {
		return x // it is starting
	}
	defer res.Body.Close()
	var answer struct {
		Observer observer.Status `json:"observer"`
	}
	require.NoError(t, json.NewDecoder(res.Body).Decode(&answer))
	return answer.Observer
}
