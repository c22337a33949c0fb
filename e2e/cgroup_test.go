//go:build oom

package e2e

import (
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/envoytest"
	"github.com/highwater-envoy/highwater/internal/observer"
)

// A filter whose readings come from the companion knows the container: budget.limit: 80% is 80 % of the cgroup's limit, and follows it
// within two seconds when it is changed while Envoy runs. Nobody is turned away before it is known.
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
	for _, limit := range []int64{400 * mib, 200 * mib, 250 * mib} {
		require.NoError(t, group.SetLimit(limit))
		changed := time.Now()
		s.gauge("highwater_limit_bytes", float64(limit/10*8))
		t.Logf("the limit of the cgroup is %d MiB, and the budget follows after %v", limit/mib, time.Since(changed).Round(time.Millisecond))
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
