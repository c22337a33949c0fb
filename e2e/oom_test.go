//go:build oom

package e2e

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/envoytest"
	"github.com/highwater-envoy/highwater/internal/load"
)

// In a container of 300 MiB the guard at 200 MiB survives what kills the same Envoy without it.
func TestOOM(t *testing.T) {
	const buffers = mib
	for name, f := range map[string]struct {
		edit func(c envoytest.Config)
		load func(addr string) load.Load
	}{
		"400 uploads of 4 MiB": {
			func(envoytest.Config) {},
			func(addr string) load.Load { return &load.Uploads{Addr: addr, Count: 400, Size: 4 * mib} },
		},
		"300 slow readers with 1 MiB buffers": {
			func(c envoytest.Config) {
				c.SetBuffers(buffers, buffers)
				c.SetPluginConfig(func(cfg map[string]any) {
					b := section(cfg, "buffers")
					b["downstream"], b["upstream"] = "1MiB", "1MiB"
				})
			},
			func(addr string) load.Load {
				return &load.SlowReaders{Addr: addr, Count: 300, Size: 16 * mib, Length: true}
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			run := func(t *testing.T, guarded bool, face envoytest.Face) (killed bool, peak int64, small load.Snapshot) {
				t.Helper()
				group, err := envoytest.NewCgroup(300 * mib)
				require.NoError(t, err)
				defer group.Remove()
				upstream, err := load.NewUpstream()
				require.NoError(t, err)
				defer upstream.Close()
				e, err := envoytest.Start(t.Context(), envoytest.Options{
					Face: face, Upstream: upstream.Addr(), CgroupDir: group.Dir(), Edit: func(c envoytest.Config) {
						f.edit(c)
						if !guarded {
							c.RemoveGuard()
						}
					},
				})
				require.NoError(t, err)
				defer func() { require.NoError(t, e.Stop()) }()
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
				defer cancel()
				bystanders := &load.Small{Addr: e.Addr("ingress"), Rate: 200}
				flood := f.load(e.Addr("ingress"))
				var loads sync.WaitGroup
				loads.Go(func() { bystanders.Run(ctx) })
				loads.Go(func() { flood.Run(ctx) })
				select {
				case <-e.Done():
					cancel()
				case <-ctx.Done():
				}
				loads.Wait()
				peak, killed, err = group.Peak()
				require.NoError(t, err)
				if guarded {
					select {
					case <-e.Done():
						t.Fatalf("Envoy died: %v\n%s", e.ExitErr(), e.Logs())
					default:
					}
				}
				t.Logf("%s guarded %v: killed %v, the cgroup's peak %d MiB, flood %+v, bystanders %+v", face, guarded, killed, peak/mib, flood.Snapshot(), bystanders.Snapshot())
				return killed, peak, bystanders.Snapshot()
			}
			killed, _, _ := run(t, false, envoytest.Filter)
			require.True(t, killed, "without the guard the kernel kills it, else this test shows nothing")
			for _, face := range []envoytest.Face{envoytest.Filter, envoytest.ExtProc} {
				killed, peak, small := run(t, true, face)
				require.False(t, killed, face)
				require.Less(t, peak, int64(300*mib), face)
				require.Zero(t, small.Rejected+small.Errors+small.Closed+small.Cut, "every bystander is served: %s", face)
				require.Positive(t, small.Served, face)
			}
		})
	}
}
