package version

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strings"
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

// A program that is built of a checkout tells its commit, and whether the checkout had changes.
func TestOfACheckout(t *testing.T) {
	source, err := os.ReadFile("version.go")
	require.NoError(t, err)
	dir := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		file := filepath.Join(dir, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(file), 0o700))
		require.NoError(t, os.WriteFile(file, []byte(text), 0o600))
	}
	call := func(name string, args ...string) string {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), name, args...)
		cmd.Dir = dir
		cmd.Env = append(cmd.Environ(), "GIT_CONFIG_GLOBAL="+os.DevNull, "GIT_CONFIG_SYSTEM="+os.DevNull, "GOENV=off", "GOFLAGS=-buildvcs=true", "GOWORK=off")
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, "%s", out)
		return strings.TrimSpace(string(out))
	}
	write("go.mod", "module example.org/program\n\ngo 1.25\n")
	write("version/version.go", string(source))
	write("main.go", "package main\n\nimport \"example.org/program/version\"\n\nfunc main() { print(version.String()) }\n")
	write(".gitignore", "program\n")
	call("git", "init", "-q")
	call("git", "add", ".")
	call("git", "-c", "user.name=test", "-c", "user.email=test@example.org", "commit", "-q", "-m", "test")
	commit := call("git", "rev-parse", "HEAD")[:7]
	built := func() string {
		call("go", "build", "-o", "program", ".")
		return call("./program")
	}
	require.True(t, strings.HasSuffix(built(), " ("+commit+")"), built())
	write("another.go", "package main\n")
	require.True(t, strings.HasSuffix(built(), " ("+commit+", modified)"), built())
}
