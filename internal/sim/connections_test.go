package sim

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/wasmhost/hosttest"
)

// 1,000 clients come to a limit of 300 connections, and rest between their calls while uploads fill
// the memory: never more are open, those who rest lose theirs to others, nobody's call is cut, and
// the plugin does what the guard does.
func TestConnections(t *testing.T) {
	const limit, connections = 200 * mib, 300
	load := Load{Name: "connections", Duration: 10 * time.Second, Drain: 10 * time.Second, Clients: append(
		uploads(100, 4*mib), Repeat(1000, time.Millisecond, Client{
			Class: "visitor", Worker: -1, Retry: 100 * time.Millisecond, Every: 3 * time.Second,
			MakeCall: func(*rand.Rand) Call { return Get(1000, time.Millisecond) },
		})...)}
	for _, workers := range []int{1, 2, 8} {
		t.Run(fmt.Sprintf("workers=%d", workers), func(t *testing.T) {
			s := Example()
			s.Workers = workers
			c := config(s, limit)
			c.Budget.Connections = connections
			check := func(r *Report) {
				t.Helper()
				require.LessOrEqual(t, r.Connections, connections)
				require.GreaterOrEqual(t, r.Connections, connections-workers)
				visitors := r.Class("visitor")
				require.Positive(t, visitors.Refused)
				require.Zero(t, visitors.Closed+visitors.Reset+visitors.Rejected, "%v", r)
				require.Greater(t, visitors.Done, 1000, "%v", r)
				require.Zero(t, r.Uncovered)
				require.Empty(t, r.Left)
			}
			native, _ := runGuard(t, s, limit, c, 1, load)
			t.Log(native)
			check(native)

			m, err := hosttest.Plugin()
			require.NoError(t, err)
			text, err := json.Marshal(c)
			require.NoError(t, err)
			e := New(s, limit, 1)
			p, err := NewCompiled(e, m, string(text), workers)
			require.NoError(t, err)
			defer p.Close()
			e.Use(p)
			compiled := e.Run(load)
			require.NoError(t, p.Err())
			check(compiled)
			require.Equal(t, native.Trace, compiled.Trace)
			require.Equal(t, native.Classes, compiled.Classes)
			idle, _ := p.Process().Metric("highwater_closed_idle_total")
			require.Positive(t, idle.Value)
			faults, _ := p.Process().Metric("highwater_host_errors_total")
			require.Zero(t, faults.Value)
		})
	}
}
