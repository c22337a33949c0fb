package e2e

import (
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"sigs.k8s.io/yaml"

	"github.com/highwater-envoy/highwater/internal/envoytest"
	"github.com/highwater-envoy/highwater/internal/guard"
	"github.com/highwater-envoy/highwater/internal/recording"
	"github.com/highwater-envoy/highwater/internal/replay"
	"github.com/highwater-envoy/highwater/internal/unit"
)

// An Envoy takes the access log that docs/how-to/predict-before-enforcing.md shows, and what it
// writes is a load for highwater replay, of which nothing is left out.
func TestReplayOfAnAccessLog(t *testing.T) {
	text, err := os.ReadFile("../docs/how-to/predict-before-enforcing.md")
	require.NoError(t, err)
	block := regexp.MustCompile("(?ms)^```yaml\n(.*?)^```$").FindSubmatch(text)
	require.NotNil(t, block)
	var shown struct {
		AccessLog []any `json:"access_log"`
	}
	require.NoError(t, yaml.Unmarshal(block[1], &shown))
	log := filepath.Join(t.TempDir(), "load.jsonl")
	shown.AccessLog[0].(map[string]any)["typed_config"].(map[string]any)["path"] = log

	s := start(t, setup{edit: func(c envoytest.Config) {
		c.SetConnectionManager(func(hcm map[string]any) { hcm["access_log"] = shown.AccessLog })
		c.RemoveGuard()
	}})
	for _, http2 := range []bool{false, true} {
		c := client(t, http2)
		for range 2 {
			require.Equal(t, 200, do(t, c, "POST", s.url("/upload?delay=200ms"), zeros(2*mib), 2*mib).StatusCode)
			require.Equal(t, 200, do(t, c, "GET", s.url("/bytes?n=100000&length=0"), nil, 0).StatusCode)
		}
		request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.url("/bytes?n=8000000&hold=1"), nil)
		require.NoError(t, err)
		request.Header.Set("x-tenant", "blue")
		response, err := c.Do(request)
		require.NoError(t, err)
		_, err = io.CopyN(io.Discard, response.Body, 1000)
		require.NoError(t, err)
		require.NoError(t, response.Body.Close()) // it hangs up
		c.CloseIdleConnections()
	}
	require.NoError(t, s.Stop()) // writes the rest of its log

	in, err := os.Open(log)
	require.NoError(t, err)
	defer in.Close()
	r, err := recording.Read(t.Context(), in, log, recording.Options{Headers: []string{"x-tenant"}})
	require.NoError(t, err)
	defer r.Close()
	require.Empty(t, r.Skipped)
	require.Empty(t, r.Unused)
	require.EqualValues(t, 10, r.Requests)
	require.Equal(t, recording.Has{Connections: true, RequestTimes: true, ResponseTimes: true, Lengths: true}, r.Has)
	uploads, broken, blue, http2 := 0, 0, 0, 0
	connections := map[uint64]int{}
	require.NoError(t, r.Each(func(q *recording.Request) bool {
		connections[q.Connection]++
		if q.Announced == 2*mib {
			uploads++
			require.EqualValues(t, 2*mib, q.Body)
			require.Equal(t, "upload", r.NameOf(q.Route))
			require.Equal(t, "/upload", r.NameOf(q.Path))
			require.Equal(t, "127.0.0.1", r.NameOf(q.Source))
			require.GreaterOrEqual(t, q.Answered, 200*time.Millisecond)
		}
		if q.Flags&recording.Broken != 0 {
			broken++
		}
		if q.Flags&recording.HTTP2 != 0 {
			http2++
		}
		if r.NameOf(q.Headers[0]) == "blue" {
			blue++
		}
		return true
	}))
	require.Equal(t, []int{4, 2, 2, 5}, []int{uploads, broken, blue, http2})
	require.Len(t, connections, 2)

	c := guard.Default()
	c.Budget.Limit.Bytes = 200 * unit.MiB
	res, err := replay.Run(t.Context(), r, replay.Variant{Config: &c, Envoy: replay.Envoy{Buffers: c.Buffers}}, replay.Options{}, nil)
	require.NoError(t, err)
	require.Zero(t, res.All.Lost())
	require.LessOrEqual(t, res.Late, int64(2), "the last ones, where those before them take a little longer than they did")
	require.Equal(t, r.Requests, res.All.Served+res.All.GaveUp+res.Late)
	require.GreaterOrEqual(t, res.All.Served, int64(7))
}
