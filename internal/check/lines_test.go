package check

import (
	"bytes"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// Each finding of a broken example names the line at which the thing stands that it is about.
func TestLines(t *testing.T) {
	text := example(t, "envoy.yaml")
	for _, c := range []struct{ finding, from, to, line string }{
		{"buffers-low", "delayed_close_timeout: 0.1s", "delayed_close_timeout: 1s", "          - name: highwater.requests"},
		{"send-buffer", "name: 7 ", "name: 8 ", "  - name: ingress"},
		{"http2-upstream-window", "            # * What a response may send ahead of its reader (default 16 MiB).\n            initial_stream_window_size: 65536\n", "", "  - name: grpc_upstream"},
		{"readings", "- name: envoy_admin", "- name: envoy_admins", "          - name: highwater.requests"},
		{"unknown-field", "codec_type: AUTO", "codec_types: AUTO", "          codec_types: AUTO"},
		{"unreadable", "codec_type: AUTO", "codec_type: AUTOS", "          codec_type: AUTOS"},
		{"allow-paths", "admin:\n", "admin:\n  allow_paths: [{exact: /stats}]\n", "admin:"},
		{"unnamed-routes", "name: upload\n                match", "match", "              - match: {prefix: /upload}"},
	} {
		t.Run(c.finding, func(t *testing.T) {
			broken := edit(t, text, c.from, c.to, false)
			r := report(t, broken, Options{})
			r.File = "envoy.yaml"
			r.Locate([]byte(broken))
			for _, f := range r.Findings {
				if f.Name != c.finding {
					continue
				}
				require.Len(t, f.Lines, len(f.Places))
				require.Positive(t, f.Lines[0], "%+v", f)
				require.Equal(t, c.line, strings.Split(broken, "\n")[f.Lines[0]-1], "%+v", f)
				var b bytes.Buffer
				r.Print(&b)
				require.Regexp(t, `(?m)^    envoy\.yaml:\d+: `+f.Places[0][:5], b.String())
				return
			}
			t.Fatalf("no %s: %v", c.finding, short(r))
		})
	}
}

// A file that is JSON on one line has lines too, and what has none is told without.
func TestLinesOfOtherTexts(t *testing.T) {
	r := report(t, `{"admin": {}, "static_resources": {"listeners": [{"name": "a: b", "filter_chains": [{"filters": [{"name": "tcp", "typed_config":
		{"@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy", "stat_prefix": "x", "cluster": "c"}}]}]}]}}`, Options{})
	r.Locate([]byte("no such text"))
	r.Locate([]byte("- 1"))
	for _, f := range r.Findings {
		for _, line := range f.Lines {
			require.Zero(t, line)
		}
	}
}
