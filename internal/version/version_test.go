package version

import (
	"runtime/debug"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestVersion(t *testing.T) {
	const commit = "abc1234def5678900000000000000000000000"
	info := func(version string, settings ...string) *debug.BuildInfo {
		i := &debug.BuildInfo{Main: debug.Module{Version: version}}
		for n := 0; n < len(settings); n += 2 {
			i.Settings = append(i.Settings, debug.BuildSetting{Key: settings[n], Value: settings[n+1]})
		}
		return i
	}
	for want, i := range map[string]*debug.BuildInfo{
		"(devel)":                info(""),
		"v0.2.0":                 info("v0.2.0"),
		"(devel) abc1234":        info("(devel)", "vcs.revision", commit),
		"v0.2.0 (abc1234)":       info("v0.2.0", "vcs.revision", commit, "vcs.modified", "false"),
		"(devel) abc1234+dirty":  info("(devel)", "vcs.revision", commit, "vcs.modified", "true"),
		"v0.2.0 (abc1234+dirty)": info("v0.2.0", "vcs.revision", commit, "vcs.modified", "true"),
		"v0.2.0+dirty (abc1234)": info("v0.2.0+dirty", "vcs.revision", commit, "vcs.modified", "true"),
		"v0.0.0-20261129194600-abc1234def56+dirty": info("v0.0.0-20261129194600-abc1234def56+dirty", "vcs.revision", commit, "vcs.modified", "true"),
		"(devel) abc": info("", "vcs.revision", "abc"),
	} {
		require.Equal(t, want, of(i))
	}
	require.NotEmpty(t, String())
}
