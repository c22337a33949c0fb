//go:build oom

package e2e

import (
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/budget"
	"github.com/highwater-envoy/highwater/internal/envoytest"
	"github.com/highwater-envoy/highwater/internal/guard"
	"github.com/highwater-envoy/highwater/internal/memory"
	"github.com/highwater-envoy/highwater/internal/metric"
	"github.com/highwater-envoy/highwater/internal/observer"
	"github.com/highwater-envoy/highwater/internal/unit"
)

// A filter whose readings come from the companion knows the container: budget.limit: 80% is 80 % of
// the cgroup's limit, and follows it within two seconds when it is changed while Envoy runs. Nobody
// is rejected before it is known.
func TestOOMLimitFollowsTheCgroup(t *testing.T) {
	group, err := envoytest.NewCgroup(300 * mib)
	require.NoError(t, err)
	t.Cleanup(group.Remove)                         // after Envoy
	var companion atomic.Pointer[observer.Observer] // it needs Envoy's address, and Envoy needs its
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if c := companion.Load(); c != nil {
			c.Memory().ServeHTTP(w, r)
			return
		}
		http.Error(w, "not yet", http.StatusServiceUnavailable)
	}))
	defer server.Close()
	s := start(t, setup{
		workers: 2, cgroup: group.Dir(),
		plugin: func(cfg map[string]any) { section(cfg, "budget")["limit"] = "80%" },
		edit:   func(c envoytest.Config) { c.SetEndpoint("envoy_admin", server.Listener.Addr().String()) },
	})
	res, err := http.Get(s.url("/small"))
	require.NoError(t, err)
	res.Body.Close()
	require.Equal(t, http.StatusOK, res.StatusCode)
	s.gauge("highwater_limit_bytes", 0)

	config := observer.Default()
	config.Envoy.PID = s.PID()
	w, _ := observe(t, observer.Options{Config: config, URL: s.AdminURL()})
	companion.Store(w)
	s.gauge("highwater_limit_bytes", 240*mib)
	served := serveLimit(t, w)
	for _, limit := range []int64{400 * mib, 200 * mib, 250 * mib} {
		require.NoError(t, group.SetLimit(limit))
		changed := time.Now()
		s.gauge("highwater_limit_bytes", float64(limit/10*8))
		t.Logf("the limit of the cgroup is %d MiB, and the budget follows after %v", limit/mib, time.Since(changed).Round(time.Millisecond))
		require.Eventually(t, func() bool { return served.Load() == limit/10*8 }, 2*time.Second-time.Since(changed), time.Millisecond, "a server's guard")
		require.Less(t, time.Since(changed), 2*time.Second)
	}
	// What the companion sees outside of the heap is in the reading: the plugin's virtual machines.
	status := w.Status()
	require.Greater(t, status.Reading.Resident, status.Reading.Mapped)
	require.Greater(t, status.Reading.InUse, status.Reading.Mapped-status.Reading.Free)
	require.Equal(t, group.Dir(), status.Cgroup)
	t.Logf("%+v", status.Reading)
	s.quiet()
}

// serveLimit runs a guard as a server does: it ticks, and asks the observer. It returns the limit
// that the guard goes by, bytes.
func serveLimit(t *testing.T, w *observer.Observer) *atomic.Int64 {
	t.Helper()
	config := guard.Default()
	config.Budget.Limit = unit.Limit{Share: 0.8}
	worker, err := guard.NewWorker(&budget.Memory{}, func() float64 { return 0.5 })
	require.NoError(t, err)
	guard.New(config, worker)
	limit := &atomic.Int64{}
	begin, end := time.Now(), make(chan struct{})
	var lock sync.Mutex
	var run sync.WaitGroup
	run.Go(func() {
		tick := time.NewTicker(guard.Tick)
		defer tick.Stop()
		for {
			select {
			case <-end:
				return
			case <-tick.C:
			}
			lock.Lock()
			if worker.Tick(time.Since(begin)).Ask {
				w.Ask(func(r memory.Reading, err error) {
					lock.Lock()
					defer lock.Unlock()
					worker.Observe(time.Since(begin), r, err)
				})
			}
			limit.Store(worker.Gauges(time.Since(begin))[metric.GaugeLimit])
			lock.Unlock()
		}
	})
	t.Cleanup(func() { close(end); run.Wait() })
	return limit
}
