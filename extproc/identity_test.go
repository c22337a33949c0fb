package extproc

import (
	"bytes"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/highwater-envoy/highwater/internal/guard"
	"github.com/highwater-envoy/highwater/internal/version"
)

// log is what a server has logged.
type log struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *log) count(text string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.b.String(), text)
}

// An attribute that is told and empty is no missing one: the route has no name. Each is said once.
func TestAnEmptyAttributeIsNotAMissingOne(t *testing.T) {
	for name, c := range map[string]struct {
		attributes        map[string]any
		missing, unnamed  int
		missingIsTheRoute bool
	}{
		"all are told":           {map[string]any{"xds.route_name": "all", "xds.cluster_name": "upstream"}, 0, 0, false},
		"the route has no name":  {map[string]any{"xds.route_name": "", "xds.cluster_name": "upstream"}, 0, 1, false},
		"there is no route":      {map[string]any{"xds.route_name": "", "xds.cluster_name": ""}, 0, 0, false},
		"the route is not told":  {map[string]any{"xds.cluster_name": "upstream"}, 1, 0, true},
		"nothing is told at all": {map[string]any{}, 1, 0, true},
	} {
		t.Run(name, func(t *testing.T) {
			s, _ := serve(t, 40*mib, nil)
			said := &log{}
			s.log = slog.New(slog.NewTextHandler(said, nil))
			c.attributes["request.protocol"] = "HTTP/1.1"
			for range 3 {
				r := request(false, "content-length", "5")
				fields, err := structpb.NewStruct(c.attributes)
				require.NoError(t, err)
				r.Attributes = map[string]*structpb.Struct{"envoy.filters.http.ext_proc": fields}
				d := s.dial(t)
				d.say(r)
				d.heard()
				d.close()
			}
			require.Equal(t, c.missing, said.count("without an attribute"), said.b.String())
			require.Equal(t, c.unnamed, said.count("whose route has no name"), said.b.String())
			if c.missingIsTheRoute {
				require.Equal(t, 1, said.count("attribute=xds.route_name"))
			}
		})
	}
}

func TestTheServerSaysWhatItIs(t *testing.T) {
	for _, mode := range []guard.Mode{guard.Enforce, guard.Observe} {
		s, _ := serve(t, 40*mib, func(c *guard.Config) { c.Mode = mode })
		registry := prometheus.NewRegistry()
		registry.MustRegister(collector{s})
		all, err := registry.Gather()
		require.NoError(t, err)
		var said []string
		for _, family := range all {
			if name := family.GetName(); name == "highwater_info" || name == "highwater_enforcing" {
				m := family.GetMetric()[0]
				said = append(said, name, strconv.FormatFloat(m.GetGauge().GetValue(), 'g', -1, 64))
				for _, l := range m.GetLabel() {
					said = append(said, l.GetName()+"="+l.GetValue())
				}
			}
		}
		require.Equal(t, []string{
			"highwater_enforcing", map[guard.Mode]string{guard.Enforce: "1", guard.Observe: "0"}[mode],
			"highwater_info", "1", "face=ext_proc", "mode=" + string(mode), "version=" + version.String(),
		}, said)

		web := httptest.NewServer(s.Admin(registry, nil))
		res, err := http.Get(web.URL + "/status")
		require.NoError(t, err)
		text, err := io.ReadAll(res.Body)
		require.NoError(t, err)
		require.NoError(t, res.Body.Close())
		var status map[string]any
		require.NoError(t, json.Unmarshal(text, &status))
		require.Equal(t, []any{version.String(), "ext_proc", string(mode)}, []any{status["version"], status["face"], status["mode"]})
		require.Contains(t, status["counters"], "highwater_rejected_total.reason.closed")
		http.DefaultClient.CloseIdleConnections()
		web.Close()
	}
}
