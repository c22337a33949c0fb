package recording

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// full is a line as docs/reference/replay.md has Envoy write it.
const full = `{"authority":"api.example.com","bytes_received":4194304,"bytes_sent":3,"connection_id":7,"downstream_remote_address":"10.0.0.9",` +
	`"duration":2412,"headers":{"x-tenant":"blue"},"path":"/upload?delay=2s","protocol":"HTTP/1.1","request_duration":350,"request_length":"4194304",` +
	`"request_tx_duration":351,"response_duration":2400,"response_flags":"-","response_length":null,"response_tx_duration":12,"route_name":"upload",` +
	`"start_time":"1764568800.250000","upstream_cluster":"upstream"}`

func read(t *testing.T, text string, headers ...string) (*Recording, error) {
	t.Helper()
	r, err := Read(t.Context(), strings.NewReader(text), "log", Options{Headers: headers})
	if err == nil {
		t.Cleanup(func() { require.NoError(t, r.Close()) })
	}
	return r, err
}

func requests(t *testing.T, r *Recording) (all []Request) {
	t.Helper()
	require.NoError(t, r.Each(func(q *Request) bool { all = append(all, *q); return true }))
	return all
}

func TestALine(t *testing.T) {
	r, err := read(t, full+"\n", "x-tenant")
	require.NoError(t, err)
	require.Empty(t, r.Skipped)
	require.Empty(t, r.Unused)
	require.Equal(t, time.Date(2025, 12, 1, 6, 0, 0, 250e6, time.UTC), r.First)
	require.Equal(t, 2412*time.Millisecond, r.Span)
	all := requests(t, r)
	require.Len(t, all, 1)
	q := all[0]
	names := []string{r.NameOf(q.Route), r.NameOf(q.Cluster), r.NameOf(q.VirtualHost), r.NameOf(q.Source), r.NameOf(q.Path), r.NameOf(q.Headers[0])}
	require.Equal(t, []string{"upload", "upstream", "api.example.com", "10.0.0.9", "/upload", "blue"}, names)
	q.Route, q.Cluster, q.VirtualHost, q.Source, q.Path, q.Headers[0] = 0, 0, 0, 0, 0, 0
	require.Equal(t, Request{
		Duration: 2412 * time.Millisecond, Received: 350 * time.Millisecond, Forwarded: 351 * time.Millisecond, Answered: 2400 * time.Millisecond,
		Sending: 12 * time.Millisecond, Announced: 4 << 20, Body: 4 << 20, Length: Unknown, Response: 3, Connection: 7,
	}, q)
}

// What Istio's sidecars log by default has other fields beside those that are read, and times in
// ISO 8601.
func TestOtherFormats(t *testing.T) {
	r, err := read(t, `{"authority":"a:80","bytes_received":0,"bytes_sent":178,"connection_termination_details":null,"downstream_remote_address":"10.44.1.27:37652",
`+`"duration":5,"method":"GET","path":"/","protocol":"HTTP/2","response_code":200,"response_flags":"DC,UH","route_name":null,"start_time":"2020-11-25T21:26:18.409Z","upstream_service_time":"4"}`)
	require.Error(t, err, "an object is on one line")
	_ = r
	r, err = read(t, `{"bytes_received":0,"bytes_sent":178,"downstream_remote_address":"[fd00::1]:37652","duration":5,"method":"GET","protocol":"HTTP/2",`+
		`"response_flags":"DC","route_name":null,"start_time":"2020-11-25T21:26:18.409Z","upstream_service_time":"4","x":{"y":[1]}}`)
	require.NoError(t, err)
	require.Equal(t, []string{"method", "x"}, r.Unused)
	q := requests(t, r)[0]
	require.Equal(t, HTTP2|Broken, q.Flags)
	require.Equal(t, 4*time.Millisecond, q.Answered)
	require.Equal(t, "fd00::1", r.NameOf(q.Source))
	require.Equal(t, Unknown, q.Announced)
}

// Lines are in the order in which requests ended; they come in the order in which they began, also
// where a file is needed for that, and as often as one wants.
func TestOrder(t *testing.T) {
	const n = 6_300
	random := rand.New(rand.NewPCG(1, 1))
	in, out := io.Pipe()
	go func() {
		for i := range n {
			start := float64(i)/1000 - 600*random.Float64()
			if i == n/2 {
				start = -700
			}
			fmt.Fprintf(out, `{"start_time":"%.6f","duration":%d,"bytes_sent":%d}`+"\n", 1e9+start, random.IntN(5000), i)
		}
		_ = out.Close()
	}()
	r, err := Read(t.Context(), in, "log", Options{inMemory: 1500})
	require.NoError(t, err)
	defer r.Close()
	require.EqualValues(t, n, r.Requests)
	for range 2 {
		last, seen := time.Duration(0), 0
		require.NoError(t, r.Each(func(q *Request) bool {
			if seen == 0 {
				require.EqualValues(t, n/2, q.Response)
				require.Zero(t, q.Start)
			}
			seen++
			if q.Start < last {
				require.Fail(t, "out of order")
			}
			last = q.Start
			return true
		}))
		require.Equal(t, n, seen)
	}
}

func TestGzip(t *testing.T) {
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	for i := range 20_000 {
		fmt.Fprintf(z, `{"start_time":"%d.5","duration":1,"bytes_sent":%d}`+"\n", 1_000_000+i, i*i%7919)
	}
	require.NoError(t, z.Close())
	r, err := read(t, packed.String())
	require.NoError(t, err)
	require.EqualValues(t, 20_000, r.Requests)

	r, err = read(t, packed.String()[:packed.Len()/2])
	require.NoError(t, err)
	require.Greater(t, r.Requests, int64(5000))
	told := fmt.Sprint(r.Skipped)
	require.Contains(t, told, "the gzip ends in the middle")

	_, err = read(t, packed.String()[:12])
	require.ErrorContains(t, err, "log: there is no request in it")
	_, err = read(t, "\x1f\x8bnone")
	require.ErrorContains(t, err, "log: it begins as a gzip does, and is none")
	damaged := packed.Bytes()
	damaged[len(damaged)/2] ^= 0xff
	_, err = read(t, string(damaged))
	require.ErrorContains(t, err, "the gzip is damaged there")
}

// What is wrong with a line is told by its reason, with the first line of each, and the others are
// read.
func TestBadLines(t *testing.T) {
	good := func(second int) string {
		return fmt.Sprintf(`{"start_time":"%d","duration":1,"bytes_sent":1}`, 1_000_000+second)
	}
	lines := []string{
		good(0), "", "[1]", "nothing", `{"start_time":`, good(1), `{"duration":1,"bytes_sent":1}`, `{"start_time":"soon","duration":1,"bytes_sent":1}`,
		`{"start_time":"1000002","bytes_sent":1}`, `{"start_time":"1000002","duration":1}`, `{"start_time":"1000002","duration":-5,"bytes_sent":1}`,
		`{"start_time":"1000002","duration":"x","bytes_sent":1}`, `{"start_time":"1000002","duration":1,"bytes_sent":1e300}`, `{"start_time":"9999999","duration":1,"bytes_sent":1}`,
		`{"start_time":"1000002","duration":{},"bytes_sent":1}`, `{"start_time":"1000002","duration":1,"bytes_sent":1,"route_name":5}`, `{"start_time":"5","duration":1,"bytes_sent":1}`,
		"[2]", good(2), strings.Repeat("x", 3<<20), good(3),
	}
	r, err := read(t, strings.Join(lines, "\r\n"))
	require.NoError(t, err)
	require.EqualValues(t, 4, r.Requests)
	var told []string
	for _, n := range r.Skipped {
		told = append(told, n.String())
	}
	require.Equal(t, []string{
		"line 3 and 2 more: it is no JSON object; write json_format into Envoy's access log",
		"line 5: it ends in the middle of its JSON",
		`line 7: start_time: it is missing; write "%START_TIME(%s.%6f)%" into the format`,
		`line 8: start_time: "soon" is no time; write "%START_TIME(%s.%6f)%" into the format`,
		`line 9: duration: it is missing; write "%DURATION%" into the format`,
		`line 10: bytes_received and bytes_sent: both are missing; write "%BYTES_RECEIVED%" and "%BYTES_SENT%" into the format`,
		`line 11: duration: "-5" is out of range`,
		`line 12: duration: "x" is no number`,
		`line 13: bytes_sent: "1e300" is out of range`,
		"line 14 and 1 more: start_time: it is more than 24h0m0s from the request before: times jump there; split the recording",
		"line 15: it is no JSON: {}: a number or a string must be here",
		"line 16: route_name: it is a JSON number, and must be a string",
		"line 20: it is longer than 1MiB",
	}, told)
}

func TestNothingToRead(t *testing.T) {
	for text, want := range map[string]string{
		"":                                       "log: it is empty: it must have a JSON object a line, as docs/reference/replay.md shows",
		"\n\n":                                   "log: it is empty",
		"GET / 200\n":                            "log: there is no request in it; line 1: it is no JSON object; write json_format into Envoy's access log",
		`{"clients":0}`:                          "log: line 1: clients: must be at least 1",
		`{"clients":3}`:                          "log: line 1: stop: write when the clients make no call any more",
		`{"clients":1,"calls":1,"uplod":"1MiB"}`: `log: line 1: unknown field "uplod"`,
		`{"clients":1,"calls":1,"upload":"1 apple"}`:                      "log: line 1: ",
		`{"clients":1,"calls":1} {}`:                                      "log: line 1: something stands behind the object; write one object a line",
		"{\"clients\":1,\"calls\":1}\n" + full:                            "log: line 2: unknown field",
		`{"clients":100000,"calls":1}` + "\n" + `{"clients":1,"calls":1}`: "log: line 2: clients: there are 100001 in all, no more than 100000 may be",
		`{"clients":1,"stop":"48h"}`:                                      "log: line 1: stop: must be from 0s to 24h0m0s",
	} {
		_, err := read(t, text)
		require.ErrorContains(t, err, want, "%.60s", text)
	}
	_, err := Read(t.Context(), strings.NewReader(full), "log", Options{Headers: []string{"a", "b", "c", "d", "e"}})
	require.ErrorContains(t, err, "no more than 4 are kept")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = Read(ctx, strings.NewReader(full), "log", Options{})
	require.ErrorIs(t, err, context.Canceled)
	_, err = Read(t.Context(), io.MultiReader(strings.NewReader(full+"\n"), failing{}), "log", Options{})
	require.ErrorContains(t, err, "log: line 2: the disk is gone")
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, errors.New("the disk is gone") }

func TestDescribed(t *testing.T) {
	r, err := read(t, `{"name":"uploads","clients":100,"stop":"8s","upload":"4MiB","wait":"2s"}`+"\n\n"+`{"clients":2,"calls":3,"every":"1s","http2":true}`+"\n")
	require.NoError(t, err)
	require.Len(t, r.Groups, 2)
	require.Equal(t, "uploads", r.Groups[0].Route)
	require.Equal(t, "group 2", r.Groups[1].Name)
	require.Equal(t, 8*time.Second, r.Span)
}

// Names that clients make up, and lines without an end, take no more than their bounds.
func TestBounded(t *testing.T) {
	in, out := io.Pipe()
	go func() {
		for i := range 2100 {
			fmt.Fprintf(out, `{"start_time":"1000000","duration":1,"bytes_sent":1,"path":"/%d%s"}`+"\n", i, strings.Repeat("x", 500))
		}
		chunk := bytes.Repeat([]byte("x"), 1<<16)
		for range 800 { // 50 MiB
			_, _ = out.Write(chunk)
		}
		_ = out.Close()
	}()
	r, err := Read(t.Context(), in, "log", Options{names: 2000})
	require.NoError(t, err)
	defer r.Close()
	require.Len(t, r.names.all, 2000)
	require.Equal(t, "line 2101: it is longer than 1MiB", r.Skipped[0].String())
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	require.Less(t, m.HeapAlloc, uint64(64<<20))
	var last Request
	require.NoError(t, r.Each(func(q *Request) bool { last = *q; return true }))
	require.Equal(t, Others, r.NameOf(last.Path))
}

func FuzzRead(f *testing.F) {
	f.Add([]byte(full))
	f.Add([]byte(`{"clients":1,"calls":1,"upload":"4MiB"}`))
	f.Add([]byte("\x1f\x8b\x08"))
	f.Fuzz(func(t *testing.T, text []byte) {
		r, err := Read(t.Context(), bytes.NewReader(text), "log", Options{Headers: []string{"x-tenant"}})
		if err != nil {
			return
		}
		last := time.Duration(0)
		require.NoError(t, r.Each(func(q *Request) bool {
			require.GreaterOrEqual(t, q.Start, last)
			require.GreaterOrEqual(t, q.Duration, time.Duration(0))
			last = q.Start
			return true
		}))
		require.LessOrEqual(t, last, r.Span)
		require.NoError(t, r.Close())
	})
}
