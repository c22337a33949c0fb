// Package hosttest brings the compiled plugin into tests.
package hosttest

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"

	"github.com/highwater-envoy/highwater/internal/envoybin"
	"github.com/highwater-envoy/highwater/internal/wasmhost"
)

// The plugin, and the one that a test can make trap; compiled once for all tests of a package.
var (
	Plugin = sync.OnceValues(func() (*wasmhost.Module, error) { return compile("highwater.wasm") })
	Trap   = sync.OnceValues(func() (*wasmhost.Module, error) { return compile("highwater-trap.wasm") })
)

// compile builds the file first if a source is newer: a stale plugin would be tested without
// anyone's notice.
func compile(name string) (*wasmhost.Module, error) {
	root, err := envoybin.ModuleRoot()
	if err != nil {
		return nil, err
	}
	file := filepath.Join("build", name)
	//nolint:gosec // both arguments are ours
	if out, err := exec.Command("make", "-C", root, file).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("make %s: %w\n%s", file, err, out)
	}
	wasm, err := os.ReadFile(filepath.Join(root, file))
	if err != nil {
		return nil, err
	}
	return wasmhost.Compile(context.Background(), wasm) // not a test's context: the module outlives the first test that needs it
}
