package e2e

import (
	"bufio"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// overfull is a reading at which only what the floor has room for passes: some connections, and no
// body of 60,000 bytes.
const overfull = 205 * mib

func exempting(rules ...map[string]any) func(cfg map[string]any) {
	return func(cfg map[string]any) {
		section(cfg, "throttle")["timeout"] = "0s"
		section(cfg, "budget")["floor"] = "0.02%" // 42 KiB
		list := []any{}
		for _, r := range rules {
			list = append(list, r)
		}
		cfg["exempt"] = list
	}
}

// What a path exempts is small, and no other path is taken for it. The upstream knows none of these
// paths, and answers 404.
func TestExemptPaths(t *testing.T) {
	forEachFace(t, func(t *testing.T, b base) {
		s := b.start(t, setup{fake: 40 * mib, plugin: exempting(map[string]any{"path_prefix": "/healthz"})})
		s.reading(overfull)
		const refused = 503
		status := func(request string) int {
			t.Helper()
			c := s.dial(request)
			defer c.Close()
			require.NoError(t, c.SetReadDeadline(time.Now().Add(20*time.Second)))
			res, err := http.ReadResponse(bufio.NewReader(c), nil)
			if err != nil { // what it would leave unread has no room: the plugin closes its connection
				require.NotErrorIs(t, err, os.ErrDeadlineExceeded)
				return refused
			}
			return res.StatusCode
		}
		get := func(path string) string { return "GET " + path + " HTTP/1.1\r\nhost: test\r\n\r\n" }
		brings := func(path string) string { return upload("content-length: 60000", path) + strings.Repeat("x", 60_000) }
		require.Equal(t, refused, status(brings("/small")), "memory is full")
		for _, path := range []string{"/healthz", "/healthz?x=/../y", "/healthz/x"} {
			require.Equal(t, 404, status(get(path)), path)
			require.Equal(t, 404, status(brings(path)), path)
		}
		for _, path := range []string{
			"/healthzzz", "/healthz/../upload", "/healthz%2f..%2fupload", "/healthz/%2e%2E/upload", "/healthz/..%5cupload", "/healthz/..;/upload",
		} {
			require.Equal(t, refused, status(brings(path)), path)
			require.Equal(t, refused, status(upload("content-length: 16777216", path)+strings.Repeat("x", 50_000)), path)
		}
		require.Equal(t, refused, status(upload("content-length: 16777216", "/healthz")+strings.Repeat("x", 50_000)), "it is large")
		// Where all of it is there before the plugin has an answer, it is Envoy that refuses: what
		// a paused request has brought is more than its buffer limit (413).
		chunk := "8000\r\n" + strings.Repeat("x", 0x8000) + "\r\n"
		require.Contains(t, []int{refused, 413}, status(upload("transfer-encoding: chunked", "/healthz")+strings.Repeat(chunk, 3)), "it has grown large")
		require.Zero(t, s.upstream.Requests("/upload"))
		require.Zero(t, s.upstream.Requests("/small"))
		s.drained()
	})
}

// Where it is the operator's own routing that exempts, the size does not matter.
func TestExemptRoutes(t *testing.T) {
	forEachFace(t, func(t *testing.T, b base) {
		s := b.start(t, setup{fake: 40 * mib, plugin: exempting(map[string]any{"route": "upload"}, map[string]any{"cluster": "nobody"})})
		s.reading(overfull)
		c := client(t, false)
		require.Equal(t, 200, do(t, c, "POST", s.url("/upload?delay=0s"), zeros(mib), mib).StatusCode)
		require.Equal(t, 200, do(t, c, "POST", s.url("/upload?delay=0s"), zeros(mib), -1).StatusCode)
		require.EqualValues(t, 2, s.upstream.Requests("/upload"))
		res, err := c.Post(s.url("/small"), "text/plain", strings.NewReader(strings.Repeat("x", 60_000)))
		if err == nil { // else its connection was closed
			require.NoError(t, res.Body.Close())
			require.Equal(t, 503, res.StatusCode)
		}
		require.Zero(t, s.upstream.Requests("/small"))
		s.drained(c.CloseIdleConnections)
	})
}
