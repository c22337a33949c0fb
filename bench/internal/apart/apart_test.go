package apart

import (
	"context"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/highwater-envoy/highwater/internal/load"
)

func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == "load" { // this is the child
		if err := Serve(os.Stdin, os.Stdout, loads); err != nil {
			panic(err)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

func loads(addr string) []load.Load {
	return []load.Load{
		&load.Downloads{Addr: addr, Clients: 2, Size: 1000},
		&load.Uploads{Addr: addr, Path: "/upload", Count: 2, Size: 1000, Drain: time.Second},
	}
}

func TestChild(t *testing.T) {
	c, err := Start("load")
	require.NoError(t, err)
	defer c.Close()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- c.Run(ctx, c.Upstream()) }()
	require.Eventually(t, func() bool { return c.Snapshot(0).Served > 10 && c.Snapshot(1).Served > 10 }, 10*time.Second, time.Millisecond)
	cancel()
	require.NoError(t, <-done)
	for i := range 2 {
		s := c.Snapshot(i)
		require.Zero(t, s.InFlight+s.Errors+s.Closed+s.Rejected+s.Cut, s.Problem)
		require.Positive(t, s.P99)
	}
	require.Zero(t, c.Snapshot(2))

	// The upstream is still there.
	var after load.Downloads
	after.Addr, after.Clients, after.Size = c.Upstream(), 1, 10
	ctx, cancel = context.WithCancel(t.Context())
	go func() { after.Run(ctx); done <- nil }()
	require.Eventually(t, func() bool { return after.Snapshot().Served > 0 }, 10*time.Second, time.Millisecond)
	cancel()
	require.NoError(t, <-done)
}

// A parent that changes its mind, at any time, leaves no child behind.
func TestChildClosed(t *testing.T) {
	c, err := Start("load")
	require.NoError(t, err)
	c.Close()
	c.Close()
	require.Error(t, c.Run(t.Context(), c.Upstream()))

	c, err = Start("load")
	require.NoError(t, err)
	done := make(chan error)
	go func() { done <- c.Run(t.Context(), c.Upstream()) }()
	require.Eventually(t, func() bool { return c.Snapshot(0).Served > 0 }, 10*time.Second, time.Millisecond)
	c.Close()
	require.Error(t, <-done)
}
