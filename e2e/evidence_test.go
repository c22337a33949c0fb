package e2e

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/pprof/profile"
	"github.com/stretchr/testify/require"
)

// The companion beside a plugin has no requests of its own: those in a bundle are the plugin's.
func TestEvidenceHasTheFiltersRequests(t *testing.T) {
	s := start(t, setup{})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	address, dir := l.Addr().String(), filepath.Join(t.TempDir(), "evidence")
	require.NoError(t, l.Close())
	companion(t, address, fmt.Sprintf("budget: {limit: 90MiB}\nmemory: {url: %q}\nenvoy: {pid: %d}\nevidence: {directory: %q, requests: %q}\n",
		s.AdminURL(), s.PID(), dir, "http://"+s.Addr("debug")+"/highwater"))
	var found []string
	require.Eventually(t, func() bool {
		found, err = filepath.Glob(filepath.Join(dir, "*", "requests-current.pb.gz"))
		return err == nil && len(found) > 0
	}, 20*time.Second, 100*time.Millisecond)
	f, err := os.Open(found[0])
	require.NoError(t, err)
	defer f.Close()
	p, err := profile.Parse(f)
	require.NoError(t, err)
	require.Equal(t, "requests", p.SampleType[0].Type)
}
