package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/envoytest"
	"github.com/highwater-envoy/highwater/internal/peak"
)

// By source, a client is whoever X-Forwarded-For says, unless Envoy has use_remote_address.
func TestTheSourceIsForwarded(t *testing.T) {
	forEachFace(t, func(t *testing.T, b base) {
		for _, c := range []struct {
			name string
			hcm  map[string]any
			want string // of one who writes 203.0.113.7 into X-Forwarded-For, and comes from 127.0.0.1
		}{
			{"not set", nil, "203.0.113.7"},
			{"false", map[string]any{"use_remote_address": false}, "203.0.113.7"},
			{"true", map[string]any{"use_remote_address": true}, "127.0.0.1"},
			{"true, behind one proxy", map[string]any{"use_remote_address": true, "xff_num_trusted_hops": 1}, "203.0.113.7"},
		} {
			t.Run(c.name, func(t *testing.T) {
				s := b.start(t, setup{
					plugin: func(cfg map[string]any) {
						section(cfg, "fairness")["by"] = "source"
						section(cfg, "trace")["every"] = "1KiB" // each request is in the sample
					},
					edit: func(e envoytest.Config) {
						e.SetConnectionManager(func(hcm map[string]any) {
							for key, v := range c.hcm {
								hcm[key] = v
							}
						})
						e.SetExtProc(func(filter map[string]any) {
							filter["request_attributes"] = append(filter["request_attributes"].([]any), "source.address")
						})
					},
				})
				// Two addresses: the last one is that of whom a trusted proxy has seen.
				conn := s.dial("GET /bytes?n=60000&length=0&hold=1 HTTP/1.1\r\nhost: test\r\nx-forwarded-for: 198.51.100.1, 203.0.113.7\r\n\r\n")
				defer conn.Close()
				require.Equal(t, []string{c.want}, s.keysInFlight(), c.name)
			})
		}
	})
}

// keysInFlight are those of the requests that are sampled now, once there is any.
func (s *scene) keysInFlight() (keys []string) {
	s.t.Helper()
	url := s.debugURL()
	require.Eventually(s.t, func() bool {
		status, body, _ := s.ask(http.MethodGet, url)
		var v peak.View
		if status != http.StatusOK || json.Unmarshal([]byte(body), &v) != nil {
			return false
		}
		keys = nil
		for _, k := range v.Keys {
			keys = append(keys, fmt.Sprint(*k.Key))
		}
		return len(keys) > 0
	}, 10*time.Second, 50*time.Millisecond)
	return keys
}

// debugURL answers with the requests in flight, on either face.
func (s *scene) debugURL() string {
	if server := s.Server(); server != nil {
		return "http://" + server.HTTP + "/current"
	}
	return s.debug("current")
}
