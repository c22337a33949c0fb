package replay

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/guard"
	"github.com/highwater-envoy/highwater/internal/recording"
	"github.com/highwater-envoy/highwater/internal/unit"
)

// low is how examples/envoy.yaml is set.
var low = guard.Buffers{
	Downstream: 64 * unit.KiB, Upstream: 64 * unit.KiB, HTTP2Window: 64 * unit.KiB, HTTP2ConnectionWindow: 16 * unit.MiB, Linger: unit.Duration(100 * time.Millisecond),
	WholeRequest: 16 * unit.MiB,
}

func variant(limit unit.Bytes, by string) Variant {
	c := guard.Default()
	c.Budget.Limit.Bytes, c.Buffers, c.Fairness.By = limit, low, by
	return Variant{Name: limit.String(), Config: &c, Envoy: Envoy{Buffers: low, SendBuffer: 64 * unit.KiB}}
}

func read(tb testing.TB, in io.Reader, headers ...string) *recording.Recording {
	tb.Helper()
	r, err := recording.Read(context.Background(), in, "load", recording.Options{Headers: headers})
	require.NoError(tb, err)
	tb.Cleanup(func() { require.NoError(tb, r.Close()) })
	return r
}

const flood = `{"name":"uploads","clients":60,"stop":"4s","upload":"4MiB","wait":"2s","apart":"200us"}
{"name":"small","clients":20,"stop":"4s","every":"100ms","apart":"5ms","response":"1000B"}`

// A flood is held below the limit, and the keys are told apart.
func TestAFlood(t *testing.T) {
	r := read(t, strings.NewReader(flood))
	o := Options{Back: Back{After: 20 * time.Millisecond}}
	var far float64
	none, err := Run(t.Context(), r, Variant{Name: "no guard", Envoy: Envoy{Buffers: low}, By: "route"}, o, func(share float64) { far = max(far, share) })
	require.NoError(t, err)
	require.InDelta(t, 1, far, .05, "progress")
	v := variant(150*unit.MiB, "route")
	res, err := Run(t.Context(), r, v, o, nil)
	require.NoError(t, err)
	require.Greater(t, none.Peak, 200*unit.MiB)
	require.Less(t, res.Peak, v.Config.Budget.Limit.Bytes)
	require.Zero(t, none.All.Waited+none.All.Lost())
	require.Positive(t, res.All.Waited)
	require.Positive(t, res.All.WaitP99)
	require.GreaterOrEqual(t, res.All.WaitP99, res.All.WaitP50)
	require.Len(t, res.Keys, 2)
	require.Equal(t, "uploads", res.Keys[0].Key)
	require.Greater(t, res.Keys[0].Peak, 50*unit.MiB)
	require.Equal(t, res.All.Served, res.Keys[0].Served+res.Keys[1].Served)
	require.Zero(t, res.Keys[1].Lost(), "small requests")
	again, err := Run(t.Context(), r, v, o, nil)
	require.NoError(t, err)
	require.Equal(t, res, again, "it is deterministic")

	var text bytes.Buffer
	Text(&text, []*Result{none, res}, 1)
	Charts(&text, []*Result{none, res})
	for _, want := range []string{"configuration", "no guard", "150MiB", "uploads", "1 keys more", "─ limit 150.0MiB"} {
		require.Contains(t, text.String(), want)
	}
	image := SVG([]*Result{none, res}, "a <load>")
	decoder := xml.NewDecoder(bytes.NewReader(image))
	for err == nil {
		_, err = decoder.Token()
	}
	require.ErrorIs(t, err, io.EOF)
	require.Contains(t, string(image), "limit 150.0MiB")
	_, err = json.Marshal(res)
	require.NoError(t, err)
}

// The limit that is found rejects nobody, and one a little smaller does.
func TestFindLimit(t *testing.T) {
	r := read(t, strings.NewReader(flood))
	o := Options{}
	v := variant(unit.GiB, "route")
	none, err := Run(t.Context(), r, Variant{Envoy: v.Envoy, By: "route"}, o, nil)
	require.NoError(t, err)
	told := 0
	found, err := FindLimit(t.Context(), r, v, o, none.Peak, func(unit.Bytes, float64) {}, func(Tried) { told++ })
	require.NoError(t, err)
	require.Len(t, found.Tried, told)
	require.Less(t, found.Limit, none.Peak+2*unit.MiB)
	require.Zero(t, found.Result.All.Lost())
	require.Equal(t, found.Limit, found.Result.Limit)
	lost := false
	for _, tried := range found.Tried {
		lost = lost || tried.Lost && tried.Limit >= found.Limit-found.Limit/50-2*unit.MiB
	}
	require.True(t, lost, "%+v", found.Tried)
	require.Equal(t, unit.GiB, v.Config.Budget.Limit.Bytes, "the caller's configuration is as it was")
}

// Clients that come back count as often as they come; those that never do, once.
func TestComingBack(t *testing.T) {
	var log strings.Builder
	for i := range 60 {
		fmt.Fprintf(&log, `{"start_time":"1000000.%03d","duration":3000,"request_duration":2000,"response_duration":3000,"request_length":16777216,"bytes_received":16777216,"bytes_sent":3}`+"\n", i)
	}
	fmt.Fprintln(&log, `{"start_time":"1000040","duration":1,"bytes_sent":3}`)
	r := read(t, strings.NewReader(log.String()))
	v := variant(100*unit.MiB, "route")
	results := map[string]*Result{}
	for name, back := range map[string]Back{"never": {}, "at once": {After: 20 * time.Millisecond}, "told": {Told: true}} {
		res, err := Run(t.Context(), r, v, Options{Back: back}, nil)
		require.NoError(t, err)
		results[name] = res
	}
	never, once, told := results["never"].All, results["at once"].All, results["told"].All
	require.Positive(t, never.Lost())
	require.Equal(t, r.Requests, never.Served+never.Lost())
	require.Greater(t, once.Lost(), never.Lost())
	require.Greater(t, once.Served, never.Served)
	require.Greater(t, told.Served, never.Served)
	require.Less(t, told.Lost(), once.Lost(), "who does as he is told is rejected less often")
}

// What was recorded of a client, its upstream and Envoy is told apart.
func TestCalls(t *testing.T) {
	line := func(fields string) string {
		return `{"start_time":"1000000",` + fields + "}\n"
	}
	v := variant(unit.GiB, "route")
	shape := &shaper{Settings: v.Envoy.settings(Machine{}), busy: &busy{bytes: []float64{0}, step: time.Hour, most: 1}}
	for _, c := range []struct{ name, fields, want string }{
		{"a slow upload", `"duration":3000,"request_duration":2000,"request_tx_duration":2001,"response_duration":3000,"request_length":"1000000","bytes_received":1000000,"bytes_sent":5,"response_length":"5"`, "body 1000000 of 1000000 at 500000/s, think 1s, response 5"},
		{"an upstream that does not read", `"duration":3000,"request_duration":100,"request_tx_duration":2100,"response_duration":3000,"bytes_received":1000000,"bytes_sent":5,"response_length":"5"`, "body 1000000 of -1 at 10000000/s, taken at 500000/s, think 900ms, response 5"},
		{"a slow reader", `"duration":4100,"request_duration":0,"response_duration":100,"response_tx_duration":4000,"bytes_sent":8388608,"response_length":"8388608","bytes_received":0`, "think 100ms, response 8388608 read at 2048000/s"},
		{"events", `"duration":60000,"request_duration":0,"response_duration":100,"bytes_sent":60000,"bytes_received":0`, "think 100ms, response 60000 chunked given at 1001/s"},
		{"one that hangs up", `"duration":500,"request_length":1000,"bytes_received":10,"bytes_sent":0,"response_flags":"DC"`, "body 10 of 1000, response 200, hangs up 500ms"},
		{"answered by Envoy", `"duration":1,"request_length":1000,"bytes_received":0,"bytes_sent":9`, "body 1000 of 1000, response 200"},
	} {
		r := read(t, strings.NewReader(line(c.fields)))
		require.NoError(t, r.Each(func(q *recording.Request) bool {
			got := shape.call(q)
			text := ""
			add := func(when bool, format string, args ...any) {
				if when {
					text += fmt.Sprintf(format, args...)
				}
			}
			add(got.Body > 0, "body %d of %d", got.Body, got.Announce)
			add(got.SendRate > 0, " at %d/s", got.SendRate)
			add(got.TakeRate > 0, ", taken at %d/s", got.TakeRate)
			add(got.Body > 0 && got.Think > 0, ", ")
			add(got.Think > 0, "think %v", got.Think)
			add(text != "", ", ")
			add(true, "response %d", got.Response)
			add(got.Chunked, " chunked")
			add(got.GiveRate > 0, " given at %d/s", got.GiveRate)
			add(got.ReadRate > 0, " read at %d/s", got.ReadRate)
			add(got.HangUp > 0, ", hangs up %v", got.HangUp)
			require.Equal(t, c.want, text, c.name)
			return true
		}))
	}
}

// Where Envoy moves as much as it can, its clients wait for it, and not it for them.
func TestBusy(t *testing.T) {
	var log strings.Builder
	for i := range 400 {
		fmt.Fprintf(&log, `{"start_time":"1000000.%03d","duration":4000,"request_duration":2000,"bytes_received":4194304,"bytes_sent":3}`+"\n", i)
	}
	fmt.Fprintln(&log, `{"start_time":"1000060","duration":4000,"request_duration":2000,"bytes_received":4194304,"bytes_sent":3}`)
	r := read(t, strings.NewReader(log.String()))
	settings := Envoy{Buffers: low}.settings(Machine{})
	b, err := busyOf(r, settings)
	require.NoError(t, err)
	shape := &shaper{Settings: settings, busy: b}
	bound := 0
	require.NoError(t, r.Each(func(q *recording.Request) bool {
		if shape.call(q).SendRate > 0 {
			bound++
		}
		return true
	}))
	require.Equal(t, 1, bound, "of the burst none is slow, and the one by itself is")
}

// A load ends when its caller does, and an error in the configuration is told.
func TestEnds(t *testing.T) {
	r := read(t, strings.NewReader(`{"clients":10,"stop":"24h","every":"1ms","response":"1B"}`))
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	begun := time.Now()
	_, err := Run(ctx, r, variant(100*unit.MiB, "route"), Options{}, nil)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.Less(t, time.Since(begun), 10*time.Second)
	_, err = FindLimit(ctx, r, variant(100*unit.MiB, "route"), Options{}, unit.GiB, func(unit.Bytes, float64) {}, func(Tried) {})
	require.ErrorIs(t, err, context.DeadlineExceeded)
}

// Log writes an access log of n requests, as many a second as given: most are small, some are
// uploads, some are large responses, of clients of all speeds.
func writeLog(w io.Writer, n, perSecond int) {
	random := rand.New(rand.NewPCG(1, 2))
	at := 1_000_000.0
	for i := range n {
		at += random.ExpFloat64() / float64(perSecond)
		up, down, receiving, sending := 0, 200+random.IntN(20_000), 0, 0
		thinks := 1 + random.IntN(60)
		switch random.IntN(20) {
		case 0:
			up = 20_000 + random.IntN(2_000_000)
			receiving = up / (100 + random.IntN(5000))
		case 1:
			down = 100_000 + random.IntN(4_000_000)
			sending = down / (100 + random.IntN(5000))
		}
		length := "null"
		if up > 0 {
			length = fmt.Sprint(up)
		}
		fmt.Fprintf(w, `{"start_time":"%.6f","duration":%d,"request_duration":%d,"request_tx_duration":%d,"response_duration":%d,"response_tx_duration":%d,`+
			`"request_length":%s,"bytes_received":%d,"response_length":"%d","bytes_sent":%d,"protocol":"HTTP/1.1","connection_id":%d,"response_flags":"-",`+
			`"route_name":"r%d","upstream_cluster":"c","authority":"example.com","path":"/%d","downstream_remote_address":"10.0.0.%d"}`+"\n",
			at, receiving+thinks+sending, receiving, receiving, receiving+thinks, sending, length, up, down, down, 100_000+i, i%8, i%500, i%250)
	}
}

// As fast as docs/reference/replay.md says (BenchmarkAMillion), and in bounded memory: of what a
// longer recording takes more, none stays.
func TestALongRecording(t *testing.T) {
	const n = 5000
	in, out := io.Pipe()
	go func() { writeLog(out, n, 300); _ = out.Close() }()
	r := read(t, in)
	v := variant(300*unit.MiB, "route")
	begun := time.Now()
	res, err := Run(t.Context(), r, v, Options{}, nil)
	require.NoError(t, err)
	require.EqualValues(t, n, res.All.Served+res.All.Lost()+res.All.GaveUp+res.Late)
	require.Less(t, time.Since(begun), time.Minute)
	require.Len(t, res.Keys, 8)
}

// A million requests of an access log, with the reading of it:
//
//	go test ./internal/replay -run '^$' -bench Million -benchtime 1x
func BenchmarkAMillion(b *testing.B) {
	for range b.N {
		in, out := io.Pipe()
		go func() { writeLog(out, 1_000_000, 300); _ = out.Close() }()
		r := read(b, in)
		_, err := Run(b.Context(), r, variant(300*unit.MiB, "route"), Options{}, nil)
		require.NoError(b, err)
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		b.ReportMetric(float64(m.Sys)/(1<<20), "MiB")
	}
}
