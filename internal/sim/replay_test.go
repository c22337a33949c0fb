package sim_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/guard"
	"github.com/highwater-envoy/highwater/internal/recording"
	"github.com/highwater-envoy/highwater/internal/replay"
	"github.com/highwater-envoy/highwater/internal/unit"
	"github.com/highwater-envoy/highwater/internal/wasmhost/hosttest"
)

// The compiled plugin does what the native guard does, also where keys are a header's values.
func TestThePluginOnARecording(t *testing.T) {
	m, err := hosttest.Plugin()
	require.NoError(t, err)
	var log strings.Builder
	for i := range 40 {
		fmt.Fprintf(&log, `{"start_time":"1000000.%03d","duration":5000,"request_duration":4000,"response_duration":5000,"request_length":16777216,"bytes_received":16777216,`+
			`"bytes_sent":3,"protocol":"HTTP/%d","connection_id":%d,"authority":"a","headers":{"x-tenant":"t%d"}}`+"\n", i*5, 1+i%2, i/2, i%3)
	}
	v := tenants()
	headers := replay.Headers([]replay.Variant{v})
	require.Equal(t, []string{"x-tenant"}, headers)
	r := load(t, log.String(), headers)
	o := replay.Options{Headers: headers}
	native, err := replay.Run(t.Context(), r, v, o, nil)
	require.NoError(t, err)
	o.Module = m
	compiled, err := replay.Run(t.Context(), r, v, o, nil)
	require.NoError(t, err)
	require.Len(t, native.Keys, 3)
	require.Positive(t, native.All.Waited)
	require.NotEmpty(t, native.All.Reasons)
	require.Equal(t, native, compiled)
}

// tenants is a small budget that is shared out by a header.
func tenants() replay.Variant {
	c := guard.Default()
	c.Budget.Limit.Bytes, c.Fairness.By = 100*unit.MiB, "header:x-tenant"
	c.Buffers = guard.Buffers{
		Downstream: 64 * unit.KiB, Upstream: 64 * unit.KiB, HTTP2Window: 64 * unit.KiB, HTTP2ConnectionWindow: 16 * unit.MiB,
		Linger: unit.Duration(100 * time.Millisecond), WholeRequest: 16 * unit.MiB,
	}
	return replay.Variant{Name: "100MiB", Config: &c, Envoy: replay.Envoy{Buffers: c.Buffers}}
}

func load(t *testing.T, log string, headers []string) *recording.Recording {
	t.Helper()
	r, err := recording.Read(t.Context(), strings.NewReader(log), "log", recording.Options{Headers: headers})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, r.Close()) })
	return r
}
