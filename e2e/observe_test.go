package e2e

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/envoytest"
	"github.com/highwater-envoy/highwater/internal/load"
)

// stock is Envoy as it comes: buffers of 1 MiB and a delayed_close_timeout of 1 s.
func stock(mode, limit, upstream string) setup {
	return setup{
		upstream: upstream,
		plugin: func(cfg map[string]any) {
			cfg["mode"] = mode
			section(cfg, "budget")["limit"] = limit
			b := section(cfg, "buffers")
			b["downstream"], b["upstream"], b["linger"] = "1MiB", "1MiB", "1s"
		},
		edit: func(c envoytest.Config) { c.SetBuffers(mib, mib); c.SetLinger(time.Second) },
	}
}

// readsAtOnce is an upstream that takes an upload as fast as it comes, and answers after two
// seconds.
func readsAtOnce(t *testing.T) string {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		load.Sleep(r.Context(), 2*time.Second)
	}))
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

// reasons sums up why requests were not admitted.
func (s *scene) reasons() (sum float64, by map[string]float64) {
	s.t.Helper()
	time.Sleep(600 * time.Millisecond) // until each worker has told
	m, err := s.Stats(s.t.Context(), "highwater")
	require.NoError(s.t, err)
	by = map[string]float64{}
	for name, v := range m {
		if _, reason, ok := strings.Cut(name, "rejected_total.reason."); ok && v > 0 {
			by[reason] = v
			sum += v
		}
	}
	return sum, by
}

// On stock settings mode observe counts what mode enforce then does with the same requests: clients
// that upload once and do not come back, 100 at a time. The sum over the reasons is the same within
// a tenth; and in mode enforce it is what the clients see. What becomes of such a crowd depends on
// which of its bytes Envoy reads first, so that one by itself says little.
func TestObserveCountsWhatEnforceDoes(t *testing.T) {
	upstream := readsAtOnce(t)
	for _, c := range []struct {
		limit  string
		crowds int64
	}{{"200MiB", 5}, {"100MiB", 2}} {
		t.Run(c.limit, func(t *testing.T) {
			run := func(mode string) (sum float64, by map[string]float64, clients load.Snapshot) {
				s := start(t, stock(mode, c.limit, upstream))
				_, err := s.Until(t.Context(), "highwater_in_use", func(m map[string]float64) bool { return m["wasmcustom.highwater_in_use_bytes"] > 0 })
				require.NoError(t, err)
				for range c.crowds {
					ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
					crowd := &load.Uploads{Addr: s.addr, Path: "/upload", Count: 100, Size: 4 * mib, Once: true}
					crowd.Run(ctx)
					cancel()
					s.streams(0)
					came := crowd.Snapshot()
					require.Zero(t, came.Errors, "%+v", came)
					clients.Served += came.Served
					clients.Rejected += came.Rejected
					clients.Closed += came.Closed
					time.Sleep(1500 * time.Millisecond) // longer than what was rejected lingers
				}
				sum, by = s.reasons()
				require.NoError(t, s.Stop()) // the other one has the machine for itself
				return sum, by, clients
			}
			enforced, enforcedBy, turned := run("enforce")
			observed, observedBy, let := run("observe")
			t.Logf("enforce %v %v, observe %v %v", enforced, enforcedBy, observed, observedBy)
			require.Equal(t, 100*c.crowds, let.Served, "mode observe does nothing: %+v", let)
			require.Equal(t, int64(enforced), turned.Closed+turned.Rejected, "each is counted once: %+v", turned)
			require.Greater(t, enforcedBy["closed"], 40*float64(c.crowds))
			require.InEpsilon(t, enforced, observed, .1, "enforce %v, observe %v", enforcedBy, observedBy)
		})
	}
}
