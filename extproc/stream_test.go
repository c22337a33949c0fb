package extproc

import (
	"io"
	"testing"
	"time"

	filterv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"

	"github.com/highwater-envoy/highwater/internal/guard"
	"github.com/highwater-envoy/highwater/internal/unit"
)

func TestLifeOfARequest(t *testing.T) {
	s, _ := serve(t, 40*mib, nil)
	c := s.dial(t)
	c.say(request(false, "content-length", "1000000", ":method", "POST"))
	m := c.heard()
	require.NotNil(t, m.GetRequestHeaders())
	require.Zero(t, m.GetModeOverride().GetRequestBodyMode(), "its length is known")
	require.Equal(t, filterv3.ProcessingMode_SEND, m.GetModeOverride().GetResponseTrailerMode(), "so that the stream stays, whatever the filter is set to")
	require.Equal(t, int64(1), s.gauge("streams"))
	require.GreaterOrEqual(t, s.gauge("coming_bytes"), int64(1000000))
	c.say(response(false, "content-length", "5000"))
	m = c.heard()
	require.NotNil(t, m.GetResponseHeaders())
	require.Nil(t, m.GetModeOverride(), "once is enough")
	require.Less(t, s.gauge("coming_bytes"), int64(1000000), "who is answered has sent all")
	require.GreaterOrEqual(t, s.gauge("fresh_bytes"), int64(1000000), "and that may be in no reading yet")
	require.NoError(t, s.outcome(io.EOF), "a request that ends, ends with OK")
	c.close()
	c.silent()
	s.drained(t)
	require.Equal(t, int64(1), s.counter("admitted_total"))
}

func TestWaiting(t *testing.T) {
	s, readings := serve(t, 40*mib, func(c *guard.Config) { c.Fairness.By = "none"; c.Fairness.Weights = nil })
	full := func() {
		t.Helper()
		readings.set(178 * mib)
		until(t, func() bool { return s.gauge("in_use_bytes") == 178*mib })
	}
	full()
	c := s.dial(t)
	c.say(request(false, "content-length", "16000000"))
	until(t, func() bool { return s.gauge("waiting") == 1 })
	c.silent()
	small := s.dial(t)
	small.say(request(true))
	require.NotNil(t, small.heard().GetRequestHeaders(), "small ones pass")
	small.close()
	readings.set(50 * mib)
	m := c.heard()
	require.NotNil(t, m.GetRequestHeaders())
	verdict := m.GetDynamicMetadata().GetFields()["highwater"].GetStructValue().GetFields()["verdict"].GetStringValue()
	require.Contains(t, verdict, "admitted waited=")
	c.close()
	s.drained(t)

	full()
	c = s.dial(t)
	c.say(request(false, "content-length", "16000000"))
	im := c.heard().GetImmediateResponse()
	require.EqualValues(t, 503, im.GetStatus().GetCode())
	require.Nil(t, im.GetGrpcStatus())
	require.Contains(t, im.GetDetails(), "highwater{rejected,timeout,waited=")
	require.NotContains(t, im.GetDetails(), " ")
	require.Equal(t, "timeout", mutation(im, "x-highwater-reason"))
	require.NotEmpty(t, mutation(im, "retry-after"))
	c.say(requestBody(1000, true)) // what it had sent before it knew
	c.silent()
	c.close()

	// A client that goes away while it waits, and one that speaks gRPC.
	c = s.dial(t)
	c.say(request(false, "content-length", "16000000"))
	until(t, func() bool { return s.gauge("waiting") == 1 })
	c.close()
	require.Zero(t, s.gauge("waiting"))
	c = s.dial(t)
	c.say(request(false, "content-length", "16000000", "content-type", "application/grpc+proto"))
	im = c.heard().GetImmediateResponse()
	require.EqualValues(t, 8, im.GetGrpcStatus().GetStatus())
	require.NotEmpty(t, mutation(im, "grpc-retry-pushback-ms"))
	require.Contains(t, string(im.GetBody()), "timeout")
	c.close()
	readings.set(40 * mib)
	s.drained(t)
	require.Empty(t, s.mu.connections, "nothing is kept of a connection that nobody waits on")
	require.Empty(t, s.mu.streams)
}

func mutation(im *extprocv3.ImmediateResponse, key string) string {
	for _, h := range im.GetHeaders().GetSetHeaders() {
		if h.GetHeader().GetKey() == key {
			return string(h.GetHeader().GetRawValue())
		}
	}
	return ""
}

// With send_body_without_waiting_for_header_response the body comes while the answer to the headers
// is held. It is answered behind it.
func TestBodyThatDoesNotWait(t *testing.T) {
	s, readings := serve(t, 40*mib, func(c *guard.Config) { c.Throttle.Timeout = unit.Duration(10 * time.Second) })
	readings.set(178 * mib)
	until(t, func() bool { return s.gauge("in_use_bytes") == 178*mib })
	c := s.dial(t)
	r := request(false, "content-length", "16000000")
	r.ProtocolConfig = &extprocv3.ProtocolConfiguration{RequestBodyMode: filterv3.ProcessingMode_STREAMED, SendBodyWithoutWaitingForHeaderResponse: true}
	c.say(r)
	c.say(requestBody(1000, false))
	c.say(requestBody(1000, true))
	c.silent()
	readings.set(40 * mib)
	require.NotNil(t, c.heard().GetRequestHeaders())
	require.NotNil(t, c.heard().GetRequestBody())
	require.NotNil(t, c.heard().GetRequestBody())
	c.close()

	readings.set(178 * mib)
	until(t, func() bool { return s.gauge("in_use_bytes") == 178*mib })
	c = s.dial(t)
	c.say(r)
	for range 5 {
		c.say(requestBody(mib, false))
	}
	ended, code, text := c.status()
	require.True(t, ended)
	require.Equal(t, codes.ResourceExhausted, code, text)
	c.close()
	readings.set(40 * mib)
	s.drained(t)
}

func TestEvict(t *testing.T) {
	s, readings := serve(t, 40*mib, func(c *guard.Config) { c.Buffers.Downstream, c.Buffers.Upstream = 8*unit.MiB, 8*unit.MiB })
	waits, reads := s.dial(t), s.dial(t)
	waits.say(request(false, "content-length", "16000000"))
	waits.heard()
	reads.say(request(true))
	reads.heard()
	reads.say(response(false, "content-length", "16000000"))
	reads.heard()
	readings.set(230 * mib)
	for _, c := range []*client{waits, reads} {
		im := c.heard().GetImmediateResponse()
		require.Equal(t, "evicted", mutation(im, "x-highwater-reason"))
		c.close()
	}
	readings.set(40 * mib)
	s.drained(t)
	require.Equal(t, int64(2), s.counter("rejected_total.reason.evicted"))
}

// A filter in observability mode can carry nothing out: what is decided is counted.
func TestObservability(t *testing.T) {
	s, readings := serve(t, 40*mib, nil)
	readings.set(199 * mib)
	until(t, func() bool { return s.gauge("in_use_bytes") == 199*mib })
	c := s.dial(t)
	r := request(false, "content-length", "16000000")
	r.ObservabilityMode = true
	c.say(r)
	require.NotNil(t, c.heard().GetRequestHeaders())
	require.Positive(t, s.counter("throttled_total")+s.counter("rejected_total.reason.too_large"))
	c.close()
}

// A path exempts what is small, and no other path is taken for it.
func TestExemptPaths(t *testing.T) {
	s, _ := serve(t, 230*mib, func(c *guard.Config) {
		c.Throttle.Timeout = 0
		c.Exempt = []guard.Exempt{{PathPrefix: "/healthz"}}
	})
	says := func(m ...*extprocv3.ProcessingRequest) (last *extprocv3.ProcessingResponse) {
		t.Helper()
		c := s.dial(t)
		defer c.close()
		for _, m := range m {
			c.say(m)
			last = c.heard()
		}
		return last
	}
	const large = "16000000"
	for _, path := range []string{"/healthz", "/healthzzz", "/healthz/../upload", "/healthz%2f..%2fupload", "/healthz/x"} {
		require.NotNil(t, says(request(false, ":path", path, "content-length", large)).GetImmediateResponse(), path)
	}
	require.NotNil(t, says(request(false, ":path", "/healthz?x", "content-length", "60000")).GetRequestHeaders())
	get := request(true, ":path", "/healthz/x")
	require.NotNil(t, says(get, response(false, "content-length", "60000")).GetResponseHeaders())
	require.NotNil(t, says(get, response(false, "content-length", large)).GetImmediateResponse(), "its response is large")
	chunked := request(false, ":path", "/healthz")
	require.NotNil(t, says(chunked, requestBody(60_000, false)).GetRequestBody())
	require.NotNil(t, says(chunked, requestBody(60_000, false), requestBody(60_000, false)).GetImmediateResponse(), "it has grown")
	s.drained(t)
}
