package version

import (
	"runtime/debug"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestOf(t *testing.T) {
	settings := func(pairs ...string) (all []debug.BuildSetting) {
		for i := 0; i < len(pairs); i += 2 {
			all = append(all, debug.BuildSetting{Key: pairs[i], Value: pairs[i+1]})
		}
		return all
	}
	for want, info := range map[string]debug.BuildInfo{
		"(devel)":          {},
		"v0.1.0":           {Main: debug.Module{Version: "v0.1.0"}},
		"v0.1.0 (1a2b3c4)": {Main: debug.Module{Version: "v0.1.0"}, Settings: settings("vcs.revision", "1a2b3c4d5e", "vcs.modified", "false")},
		"(devel) (1a2b3c4, modified)": {
			Main: debug.Module{Version: "(devel)"}, Settings: settings("vcs.modified", "true", "vcs.revision", "1a2b3c4d5e"),
		},
		"(devel) (1a2)": {Settings: settings("vcs.revision", "1a2")},
	} {
		require.Equal(t, want, of(&info))
	}
	require.NotEmpty(t, String())
}
