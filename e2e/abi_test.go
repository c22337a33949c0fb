package e2e

import (
	"debug/elf"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/envoybin"
	"github.com/highwater-envoy/highwater/internal/envoytest"
)

const callback = "envoy_dynamic_module_callback_"

// Each callback that the module calls is one that this Envoy exports, and that it asks for before
// it calls any: one that an Envoy lacks would end it at the first call. `make test` has it for the
// oldest Envoy and for the newest.
func TestTheModuleFindsWhatItCalls(t *testing.T) {
	root, err := envoybin.ModuleRoot()
	require.NoError(t, err)
	binary, err := envoybin.Find(t.Context())
	require.NoError(t, err)
	called := symbols(t, filepath.Join(root, "build", "libhighwater.so"), false)
	require.Greater(t, len(called), 30)
	exported := symbols(t, binary, true)
	for name := range called {
		require.Contains(t, exported, name, binary)
	}
	text, err := os.ReadFile(filepath.Join(root, "module", "hooks.c"))
	require.NoError(t, err)
	asked := map[string]bool{}
	for _, m := range regexp.MustCompile(`\{"(\w+)", \(void \*\)CB\((\w+)\)\}`).FindAllStringSubmatch(string(text), -1) {
		require.Equal(t, m[1], m[2])
		asked[callback+m[1]] = true
	}
	require.Equal(t, called, asked)
}

// symbols are the callbacks that a file defines, or that it wants.
func symbols(t *testing.T, file string, defined bool) map[string]bool {
	t.Helper()
	f, err := elf.Open(file)
	require.NoError(t, err)
	defer f.Close()
	all, err := f.DynamicSymbols()
	require.NoError(t, err)
	names := map[string]bool{}
	for _, s := range all {
		if strings.HasPrefix(s.Name, callback) && (s.Section != elf.SHN_UNDEF) == defined {
			names[s.Name] = true
		}
	}
	return names
}

// An Envoy whose ABI is another does not start with the module, and its log says why. This one
// knows modules by their name alone.
func TestAnEnvoyOfAnotherABI(t *testing.T) {
	t.Parallel()
	old, err := envoybin.PathOf(t.Context(), "1.38.2", os.Stderr)
	require.NoError(t, err)
	root, err := envoybin.ModuleRoot()
	require.NoError(t, err)
	e, err := envoytest.Start(t.Context(), envoytest.Options{
		Face: envoytest.Module, Binary: old, Env: []string{"ENVOY_DYNAMIC_MODULES_SEARCH_PATH=" + filepath.Join(root, "build")},
		Edit: func(c envoytest.Config) { c.SetModuleName("highwater") },
	})
	if err == nil {
		require.NoError(t, e.Stop())
	}
	require.Error(t, err, "it must not start")
	require.Regexp(t, `ABI version mismatch|this Envoy lacks \w+ of the ABI of dynamic modules: the module needs Envoy 1\.39 or newer`, err.Error())
}
