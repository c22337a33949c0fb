package guard

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/budget"
	"github.com/highwater-envoy/highwater/internal/httptext"
	"github.com/highwater-envoy/highwater/internal/unit"
	"github.com/highwater-envoy/highwater/internal/verdict"
)

func TestAnswer(t *testing.T) {
	later := Verdict{Action: verdict.Answer, Reason: verdict.Timeout, RetryAfter: unit.Duration(1500 * time.Millisecond)}
	never := Verdict{Action: verdict.Answer, Reason: verdict.TooLarge}
	for _, c := range []struct {
		reject  Reject
		verdict Verdict
		grpc    bool
		headers [][2]string
		body    string
	}{
		{Reject{}, later, false, [][2]string{{"x-highwater-reason", "timeout"}, {"retry-after", "2"}}, ""},
		{Reject{Body: "busy"}, never, false, [][2]string{{"x-highwater-reason", "too_large"}}, "busy"},
		{Reject{}, later, true, [][2]string{{"x-highwater-reason", "timeout"}, {"retry-after", "2"}, {"grpc-retry-pushback-ms", "1500"}}, "highwater: timeout"},
		{Reject{Body: "busy"}, never, true, [][2]string{{"x-highwater-reason", "too_large"}, {"grpc-retry-pushback-ms", "-1"}}, "busy"},
	} {
		headers, body := c.verdict.Answer(&c.reject, c.grpc)
		require.Equal(t, c.headers, headers)
		require.Equal(t, c.body, body)
	}
}

func TestContentLength(t *testing.T) {
	for text, want := range map[string]int64{
		"0": 0, "5": 5, "007": 7, "1125899906842623": 1<<50 - 1, "1125899906842624": 1 << 50,
		"": budget.Unknown, "-1": budget.Unknown, "+1": budget.Unknown, " 1": budget.Unknown, "5, 5": budget.Unknown, "5x": budget.Unknown,
		"\xb2": budget.Unknown,
		// More than any memory is as long as that, and not a message whose length is not known.
		"1125899906842625": 1 << 50, "9223372036854775807": 1 << 50, "9223372036854775808": 1 << 50, "18446744073709551616": 1 << 50,
		strings.Repeat("9", 1000): 1 << 50, strings.Repeat("9", 1000) + "x": budget.Unknown,
	} {
		require.Equal(t, want, httptext.ContentLength(text), text)
	}
}

func TestWithoutPort(t *testing.T) {
	for address, want := range map[string]string{"127.0.0.1:80": "127.0.0.1", "[::1]:80": "[::1]", "pipe": "pipe", "": ""} {
		require.Equal(t, want, httptext.WithoutPort(address))
	}
	require.True(t, httptext.IsGRPC("application/grpc+proto"))
	require.False(t, httptext.IsGRPC("application/json"))
}
