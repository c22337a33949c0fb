package extproc

import (
	"strings"
	"testing"
	"time"

	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/highwater-envoy/highwater/internal/guard"
	"github.com/highwater-envoy/highwater/internal/unit"
)

func TestBadStreams(t *testing.T) {
	s, _ := serve(t, 40*mib, nil)
	attribute := func(name string, v any) *extprocv3.ProcessingRequest {
		r := request(true)
		a, err := structpb.NewStruct(map[string]any{name: v})
		require.NoError(t, err)
		r.Attributes = map[string]*structpb.Struct{"envoy.filters.http.ext_proc": a}
		return r
	}
	huge := request(true, "x", strings.Repeat("x", 10*mib))
	for name, c := range map[string]struct {
		say  []*extprocv3.ProcessingRequest
		code codes.Code
		kind bad
	}{
		"request headers twice":             {[]*extprocv3.ProcessingRequest{request(true), request(true)}, codes.InvalidArgument, badTwice},
		"response headers twice":            {[]*extprocv3.ProcessingRequest{request(true), response(true), response(true)}, codes.InvalidArgument, badTwice},
		"a body before the headers":         {[]*extprocv3.ProcessingRequest{requestBody(1, false)}, codes.InvalidArgument, badOrder},
		"trailers before the headers":       {[]*extprocv3.ProcessingRequest{requestTrailers()}, codes.InvalidArgument, badOrder},
		"request headers behind a response": {[]*extprocv3.ProcessingRequest{response(true), request(true)}, codes.InvalidArgument, badOrder},
		"no headers in the request":         {[]*extprocv3.ProcessingRequest{{Request: &extprocv3.ProcessingRequest_RequestHeaders{RequestHeaders: &extprocv3.HttpHeaders{}}}}, codes.InvalidArgument, badHeaders},
		"none in the response":              {[]*extprocv3.ProcessingRequest{request(true), {Request: &extprocv3.ProcessingRequest_ResponseHeaders{ResponseHeaders: &extprocv3.HttpHeaders{}}}}, codes.InvalidArgument, badHeaders},
		"nothing at all":                    {[]*extprocv3.ProcessingRequest{{}}, codes.InvalidArgument, badUnknown},
		"10 MiB of headers":                 {[]*extprocv3.ProcessingRequest{huge}, codes.ResourceExhausted, badSize},
		"a route that is a number":          {[]*extprocv3.ProcessingRequest{attribute("xds.route_name", 5)}, codes.InvalidArgument, badAttribute},
		"a source that is a list":           {[]*extprocv3.ProcessingRequest{attribute("source.address", []any{"x"})}, codes.InvalidArgument, badAttribute},
		"a protocol that is null":           {[]*extprocv3.ProcessingRequest{attribute("request.protocol", nil)}, codes.InvalidArgument, badAttribute},
		"a connection that is text":         {[]*extprocv3.ProcessingRequest{attribute("connection.id", "x")}, codes.InvalidArgument, badAttribute},
		"a connection that is negative":     {[]*extprocv3.ProcessingRequest{attribute("connection.id", -1)}, codes.InvalidArgument, badAttribute},
	} {
		t.Run(name, func(t *testing.T) {
			before := s.counts.bad[c.kind].Load()
			peer := s.dial(t)
			for _, m := range c.say {
				peer.say(m)
			}
			ended, code, text := peer.status()
			require.True(t, ended)
			require.Equal(t, c.code, code, text)
			require.NotEmpty(t, text)
			require.Equal(t, before+1, s.counts.bad[c.kind].Load())
			peer.close()
			s.drained(t)
		})
	}
	// Of a oneof case that is not known here, and what is no message at all.
	for _, data := range [][]byte{protowire.AppendBytes(protowire.AppendTag(nil, 99, protowire.BytesType), []byte("x")), {0xff, 0xff}} {
		c := s.dial(t)
		c.message(data)
		ended, code, _ := c.status()
		require.True(t, ended)
		require.Equal(t, codes.InvalidArgument, code)
		c.close()
	}
	require.Zero(t, s.counts.faults.Load())
}

// Whatever messages come in whatever order, nothing panics, each message has at most one answer,
// and nothing stays charged.
func FuzzStream(f *testing.F) {
	messages := []*extprocv3.ProcessingRequest{
		request(false, "content-length", "1000000"), request(true), request(false), response(false, "content-length", "100000"), response(true), response(false),
		requestBody(1000, false), requestBody(0, true), responseBody(100_000, false), responseBody(5, true), requestTrailers(), responseTrailers(),
		{},
	}
	var all [][]byte
	for _, m := range messages {
		data, err := proto.Marshal(m)
		require.NoError(f, err)
		all = append(all, data)
		f.Add([]byte{0, byte(len(all) - 1)}, data)
	}
	f.Add([]byte{0, 3, 4, 255, 9, 10, 11}, []byte{})
	s, readings := serve(f, 40*mib, func(c *guard.Config) { c.Throttle.Timeout = unit.Duration(50 * time.Millisecond) })
	levels := []int64{40 * mib, 170 * mib, 230 * mib}
	f.Fuzz(func(t *testing.T, order, raw []byte) {
		c := s.dial(t)
		said := 0
		for _, i := range order {
			switch {
			case i == 255:
				c.message(raw)
				said++
			case i >= 250:
				readings.set(levels[int(i)%len(levels)])
			default:
				c.message(all[int(i)%len(all)])
				said++
			}
			if len(c.answers) > 900 {
				break
			}
		}
		c.close()
		require.LessOrEqual(t, len(c.answers), said+1, "and one that ends it")
		require.Zero(t, s.counts.faults.Load())
		for _, name := range []string{"streams", "coming_bytes", "waiting", "exposure_bytes"} {
			require.Zero(t, s.gauge(name), name)
		}
	})
}
