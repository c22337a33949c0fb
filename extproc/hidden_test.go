package extproc

import (
	"testing"
	"time"

	filterv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"github.com/highwater-envoy/highwater/internal/coverage"
	"github.com/stretchr/testify/require"
)

// What was announced counts as coming for a second, and as held for as long as it may be.
func TestWhatIsNotSeenLapses(t *testing.T) {
	s, _ := serve(t, 40*mib, nil)
	c := s.dial(t)
	c.say(request(false, "content-length", "4000000"))
	c.heard()
	began := time.Now()
	until(t, func() bool { return s.gauge("coming_bytes") == 0 })
	require.InDelta(t, time.Second, time.Since(began), float64(400*time.Millisecond))
	c.say(response(false, "content-length", "100000000"))
	c.heard()
	until(t, func() bool { return s.gauge("coming_bytes") == 0 })
	var likely int64
	for _, k := range s.Status().Keys {
		likely += k.Likely
	}
	require.Equal(t, int64(4000000+128<<10), likely, "someone does not read: it holds what it can")
	c.close()
	s.drained(t)
}

func TestMessagesWithoutALengthAreAskedFor(t *testing.T) {
	s, _ := serve(t, 40*mib, nil)
	c := s.dial(t)
	c.say(request(false))
	m := c.heard().GetModeOverride()
	require.Equal(t, filterv3.ProcessingMode_STREAMED, m.GetRequestBodyMode())
	require.Equal(t, filterv3.ProcessingMode_NONE, m.GetResponseBodyMode())
	require.Equal(t, filterv3.ProcessingMode_SEND, m.GetRequestTrailerMode())
	for range 10 {
		c.say(requestBody(mib, false))
		require.NotNil(t, c.heard().GetRequestBody())
	}
	require.GreaterOrEqual(t, s.gauge("fresh_bytes"), int64(mib))
	c.say(requestTrailers())
	require.NotNil(t, c.heard().GetRequestTrailers())
	c.say(response(false))
	m = c.heard().GetModeOverride()
	require.Equal(t, filterv3.ProcessingMode_STREAMED, m.GetResponseBodyMode())
	require.Equal(t, filterv3.ProcessingMode_STREAMED, m.GetRequestBodyMode(), "the request may still be going on")
	c.say(responseBody(1000, false))
	require.NotNil(t, c.heard().GetResponseBody())
	c.say(responseTrailers())
	require.NotNil(t, c.heard().GetResponseTrailers())
	c.close()
	s.drained(t)

	// An upgrade is no body to be held up by answers.
	for _, kind := range [][]string{{"upgrade", "websocket"}, {":method", "CONNECT"}} {
		c := s.dial(t)
		c.say(request(false, kind...))
		require.Zero(t, c.heard().GetModeOverride().GetRequestBodyMode())
		c.say(response(false))
		require.Nil(t, c.heard().GetModeOverride())
		c.close()
	}
}

// A filter that ignores what it is asked for is asked no more, and its bodies are forecast.
func TestOverridesThatAreIgnored(t *testing.T) {
	s, _ := serve(t, 40*mib, nil)
	asked := 0
	for range 2 * coverage.EnoughMissed {
		c := s.dial(t)
		c.say(request(false))
		if c.heard().GetModeOverride().GetRequestBodyMode() != filterv3.ProcessingMode_NONE {
			asked++
		}
		c.say(response(true))
		c.heard()
		c.close()
	}
	require.Equal(t, coverage.EnoughMissed, asked)
	c := s.dial(t)
	c.say(request(false))
	c.heard()
	require.Positive(t, s.gauge("coming_bytes"))
	c.close()
	s.drained(t)
}

// response_header_mode: SKIP. What nobody tells of is taken for as much as buffers can hold, until
// something is told.
func TestResponsesThatAreNotTold(t *testing.T) {
	const response128 = 128 << 10 // both buffers
	s, _ := serve(t, 40*mib, nil)
	for range coverage.EnoughSilent {
		require.Zero(t, s.gauge("coming_bytes"))
		c := s.dial(t)
		c.say(request(true))
		require.NotNil(t, c.heard().GetRequestHeaders())
		c.close()
	}
	s.drained(t)
	upload := s.dial(t)
	upload.say(request(false, "content-length", "1000000"))
	upload.heard()
	require.Equal(t, int64(1000000+response128), s.gauge("coming_bytes"), "its request is still to come")
	get := s.dial(t)
	get.say(request(true))
	get.heard()
	until(t, func() bool { return s.gauge("coming_bytes") == 0 })
	require.Equal(t, int64(1000000+2*response128), s.gauge("exposure_bytes"))
	upload.close()
	get.close()
	s.drained(t)

	// Where they do not fit, requests wait, and none goes upstream for an answer that would be
	// refused.
	held := []*client{}
	for range 2000 {
		c := s.dial(t)
		c.say(request(true))
		held = append(held, c)
	}
	require.Positive(t, s.gauge("waiting"))
	require.LessOrEqual(t, s.gauge("coming_bytes"), int64(200*mib))
	for _, c := range held {
		c.close()
	}
	s.drained(t)

	told := s.dial(t)
	told.say(request(true))
	told.heard()
	told.say(response(true))
	told.heard()
	told.close()
	require.True(t, told.stream.server.coverage.TellsResponses())
}

func TestOtherModes(t *testing.T) {
	s, _ := serve(t, 40*mib, nil)
	for mode := range filterv3.ProcessingMode_BodySendMode_name {
		c := s.dial(t)
		r := request(false)
		mode := filterv3.ProcessingMode_BodySendMode(mode)
		r.ProtocolConfig = &extprocv3.ProtocolConfiguration{RequestBodyMode: mode, ResponseBodyMode: mode}
		c.say(r)
		m := c.heard()
		require.NotNil(t, m.GetRequestHeaders(), mode)
		require.Equal(t, mode == filterv3.ProcessingMode_NONE, m.GetModeOverride() != nil, mode)
		c.say(requestBody(100_000, true))
		body := c.heard().GetRequestBody()
		require.NotNil(t, body, mode)
		c.say(response(false))
		require.NotNil(t, c.heard().GetResponseHeaders(), mode)
		c.say(responseBody(50_000, true))
		require.NotNil(t, c.heard().GetResponseBody(), mode)
		echoes := mode == filterv3.ProcessingMode_FULL_DUPLEX_STREAMED || mode == filterv3.ProcessingMode_GRPC
		echo := body.GetResponse().GetBodyMutation().GetStreamedResponse()
		require.Equal(t, echoes, echo != nil, mode)
		if echoes {
			require.Len(t, echo.GetBody(), 100_000)
			require.True(t, echo.GetEndOfStream())
		}
		require.GreaterOrEqual(t, s.gauge("fresh_bytes"), int64(100_000), "%v: it is counted", mode)
		c.close()
		s.drained(t)
	}
	// Another filter's answer, before ours: there was no request.
	c := s.dial(t)
	c.say(response(false, "content-length", "5"))
	require.NotNil(t, c.heard().GetResponseHeaders())
	c.close()
	// response_header_mode: SKIP with bodies.
	c = s.dial(t)
	c.say(request(true))
	c.heard()
	c.say(responseBody(100_000, true))
	require.NotNil(t, c.heard().GetResponseBody())
	c.close()
	s.drained(t)
}
