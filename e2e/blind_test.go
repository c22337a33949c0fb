package e2e

import (
	"net"
	"net/http"
	"net/http/httptest"
	"regexp"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/envoytest"
)

// lines are those of the log that match.
func (s *scene) lines(expression string) []string {
	return regexp.MustCompile("(?m)^.*"+expression+".*$").FindAllString(s.Logs(), -1)
}

// Whatever keeps readings away, the guard says once that it is blind, why, and what to change.
func TestTheGuardSaysWhenItIsBlind(t *testing.T) {
	forEachFace(t, func(t *testing.T, b base) {
		t.Helper()
		blind := func(t *testing.T, s *scene, want ...string) {
			t.Helper()
			s.gauge("highwater_blind", 1)
			m, err := s.Until(t.Context(), "highwater", func(m map[string]float64) bool { return m["wasmcustom.highwater_reading_age_milliseconds"] > 4000 })
			require.NoError(t, err, "it goes on for as long as there is none")
			require.NotZero(t, m["wasmcustom.highwater_failed_readings_total"])
			said := s.lines("no reading of Envoy's memory for")
			require.Len(t, said, 1, "once, not for each failure, and not by each worker")
			for _, w := range want {
				require.Regexp(t, w, said[0])
			}
			require.Equal(t, 200, do(t, client(t, false), "GET", s.url("/small"), nil, 0).StatusCode)
		}
		plugin := b.face != envoytest.ExtProc
		asks := func(cfg map[string]any) { // the module asks nobody unless it is told whom
			if b.face == envoytest.Module {
				section(cfg, "memory")["cluster"] = "envoy_admin"
			}
		}
		admin := func(c envoytest.Config, addr string) {
			if b.face == envoytest.Module {
				c.AddCluster("envoy_admin", addr)
			} else if plugin {
				c.SetEndpoint("envoy_admin", addr)
			}
		}
		t.Run("wrong port", func(t *testing.T) {
			t.Parallel()
			l, err := net.Listen("tcp", "127.0.0.1:0")
			require.NoError(t, err)
			addr := l.Addr().String()
			require.NoError(t, l.Close())
			s := b.start(t, setup{
				edit: func(c envoytest.Config) { admin(c, addr) },
				plugin: func(cfg map[string]any) {
					if asks(cfg); !plugin {
						section(cfg, "memory")["url"] = "http://" + addr
					}
				},
			})
			want := `Check that the endpoint of cluster .*envoy_admin.* is the address and port`
			if !plugin {
				want = "Check that memory.url .* is the address of Envoy's admin interface"
			}
			blind(t, s, "onnection (refused|failure)", want, "on_stale is estimate")

			// Somebody listens there after all.
			l, err = net.Listen("tcp", addr)
			require.NoError(t, err)
			s.memory.inUse.Store(50 * mib)
			there := &httptest.Server{Listener: l, Config: &http.Server{Handler: s.memory}}
			there.Start()
			defer there.Close()
			s.gauge("highwater_blind", 0)
			s.gauge("highwater_in_use_bytes", 50*mib)
			require.Len(t, s.lines("readings of Envoy's memory are back after"), 1)
			require.Len(t, s.lines("no reading of Envoy's memory for"), 1)
		})
		t.Run("allow_paths", func(t *testing.T) {
			t.Parallel()
			s := b.start(t, setup{plugin: asks, edit: func(c envoytest.Config) {
				if b.face == envoytest.Module {
					admin(c, c.AdminAddr())
				}
				var paths []any
				for _, path := range []string{"/ready", "/server_info", "/stats", "/listeners"} {
					paths = append(paths, map[string]any{"prefix": path})
				}
				c["admin"].(map[string]any)["allow_paths"] = paths
			}})
			blind(t, s, "403", `Add \{exact: /memory\} to allow_paths of Envoy's admin`)
		})
		if !plugin {
			return
		}
		t.Run("no cluster", func(t *testing.T) {
			t.Parallel()
			s := b.start(t, setup{plugin: func(cfg map[string]any) { section(cfg, "memory")["cluster"] = "nobody" }})
			blind(t, s, `from cluster "nobody", path "/memory"`, `Add a cluster "nobody" that points at Envoy's admin interface`)
		})
	})
}

// An idle Envoy asks seldom, and its guard is not blind.
func TestAnIdleGuardIsNotBlind(t *testing.T) {
	forFaces(t, func(t *testing.T, b base) {
		t.Helper()
		s := b.start(t, setup{})
		_, err := s.Until(t.Context(), "highwater", func(m map[string]float64) bool { return m["wasmcustom.highwater_in_use_bytes"] > 0 })
		require.NoError(t, err)
		for until := time.Now().Add(5 * time.Second); time.Now().Before(until); time.Sleep(100 * time.Millisecond) {
			m, err := s.Stats(t.Context(), "highwater")
			require.NoError(t, err)
			require.Zero(t, m["wasmcustom.highwater_blind"])
			require.Less(t, m["wasmcustom.highwater_reading_age_milliseconds"], 2000.)
		}
		require.Empty(t, s.lines("reading"))
	})
}
