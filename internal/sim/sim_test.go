package sim

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/guard"
	"github.com/highwater-envoy/highwater/internal/unit"
)

const (
	kib = 1 << 10
	mib = 1 << 20
)

// config is the guard's for a proxy with the settings, if it is told the truth.
func config(s Settings, limit int64) guard.Config {
	c := guard.Default()
	c.Budget.Limit.Bytes = unit.Bytes(limit)
	c.Buffers = guard.Buffers{
		Downstream: unit.Bytes(s.Downstream), Upstream: unit.Bytes(s.Upstream), HTTP2Window: unit.Bytes(s.StreamWindow),
		HTTP2ConnectionWindow: unit.Bytes(s.ConnectionWindow), Linger: unit.Duration(s.Linger), WholeRequest: unit.Bytes(s.WholeRequest),
	}
	return c
}

func run(t *testing.T, s Settings, limit int64, guarded bool, seed uint64, l Load) *Report {
	t.Helper()
	if !guarded {
		return New(s, limit, seed).Run(l)
	}
	r, _ := runGuard(t, s, limit, config(s, limit), seed, l)
	return r
}

// runGuard runs the load in front of a guard with this configuration.
func runGuard(t *testing.T, s Settings, limit int64, c guard.Config, seed uint64, l Load) (*Report, *Native) {
	t.Helper()
	require.NoError(t, c.Validate())
	e := New(s, limit, seed)
	n, err := NewNative(e, c, s.Workers)
	require.NoError(t, err)
	e.Use(n)
	return e.Run(l), n
}

func uploads(n int, size int64) []Client {
	return Repeat(n, 200*time.Microsecond, Client{
		Class: "hog", Worker: -1, Retry: 20 * time.Millisecond,
		MakeCall: func(*rand.Rand) Call { return Upload(size, 2*time.Second) },
	})
}
