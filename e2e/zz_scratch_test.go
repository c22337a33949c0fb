package e2e

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/envoybin"
	"github.com/highwater-envoy/highwater/internal/envoytest"
)

func TestZZRemoteAsItIs(t *testing.T) {
	t.Parallel()
	root, err := envoybin.ModuleRoot()
	require.NoError(t, err)
	addr, sums := codeServer(t, filepath.Join(root, "build", "highwater.wasm"), another(t))
	path := func(sum string) string { return "/" + sum + ".wasm" }
	p := newControlPlane(t)
	s := start(t, setup{args: quickDrain(), edit: func(c envoytest.Config) {
		c.AddCluster("code", addr)
		c.SetCode(remote(path(sums[0]), sums[0]))
		p.edit(c)
	}})
	small := s.steady()
	p.change(func(c envoytest.Config) { c.SetCode(remote(path(sums[1]), sums[1])) })
	time.Sleep(8 * time.Second)
	t.Logf("plain remote, same vm_id: traps %v; %+v", s.traps(), small.load.Snapshot())
	p.change(func(c envoytest.Config) {
		c.SetCode(remote(path(sums[0]), strings.Repeat("0", 64)))
	})
	time.Sleep(8 * time.Second)
	m, _ := s.Stats(t.Context(), "listener_manager.lds|wasm.remote")
	t.Logf("wrong sum: refused %q, %+v, %v", p.refused.Load(), small.load.Snapshot(), m)
}
