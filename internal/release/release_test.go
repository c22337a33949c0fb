package release

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"log"
	"maps"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/google/go-containerregistry/pkg/v1/validate"
	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/envoybin"
)

// checkout is a repository of a small program, and what is built of it.
type checkout struct {
	t   *testing.T
	dir string
}

func newCheckout(t *testing.T) checkout {
	t.Helper()
	c := checkout{t, t.TempDir()}
	c.write("go.mod", "module example.org/program\n\ngo 1.25\n")
	c.write("main.go", "package main\n\nfunc main() { print(\"it runs\") }\n")
	c.call("git", "init", "-q")
	c.commit()
	return c
}

func (c checkout) write(name, text string) {
	c.t.Helper()
	require.NoError(c.t, os.WriteFile(filepath.Join(c.dir, name), []byte(text), 0o600))
}

func (c checkout) commit() {
	c.t.Helper()
	c.call("git", "add", ".")
	c.call("git", "-c", "user.name=test", "-c", "user.email=test@example.org", "commit", "-q", "-m", "test")
}

func (c checkout) call(name string, args ...string) {
	c.t.Helper()
	cmd := exec.CommandContext(c.t.Context(), name, args...)
	cmd.Dir = c.dir
	cmd.Env = append(cmd.Environ(), "GIT_CONFIG_GLOBAL="+os.DevNull, "GIT_CONFIG_SYSTEM="+os.DevNull, "GOENV=off", "GOFLAGS=", "GOWORK=off", "CGO_ENABLED=0", "GOOS=linux")
	for len(args) > 0 && strings.HasPrefix(args[0], "GOARCH=") {
		cmd.Env = append(cmd.Env, args[0])
		cmd.Args = slices.Delete(cmd.Args, 1, 2)
		args = args[1:]
	}
	out, err := cmd.CombinedOutput()
	require.NoError(c.t, err, "%s", out)
}

// clone is the same in another directory.
func (c checkout) clone() checkout {
	c.t.Helper()
	to := checkout{c.t, c.t.TempDir()}
	to.call("git", "clone", "-q", c.dir, ".")
	return to
}

// build is the program for each architecture, outside of the checkout.
func (c checkout) build() map[string]string {
	c.t.Helper()
	all := map[string]string{}
	for _, arch := range []string{"amd64", "arm64"} {
		all[arch] = filepath.Join(c.t.TempDir(), "program")
		c.call("go", "GOARCH="+arch, "build", "-buildvcs=true", "-trimpath", "-ldflags", "-s -w", "-o", all[arch], ".")
	}
	return all
}

// plugin is the real one.
func plugin(t *testing.T) []byte {
	t.Helper()
	root, err := envoybin.ModuleRoot()
	require.NoError(t, err)
	out, err := exec.CommandContext(t.Context(), "make", "-C", root, "build/highwater.wasm").CombinedOutput()
	require.NoError(t, err, "%s", out)
	wasm, err := os.ReadFile(filepath.Join(root, "build", "highwater.wasm"))
	require.NoError(t, err)
	return wasm
}

func pack(t *testing.T, c checkout, wasm []byte) (dir string, of Images, s Source) {
	t.Helper()
	programs, s, err := Read(c.build())
	require.NoError(t, err)
	of.Plugin, err = Compat(wasm, s)
	require.NoError(t, err)
	of.Artifact, err = Artifact(wasm, s)
	require.NoError(t, err)
	of.Program, err = Program(programs, s)
	require.NoError(t, err)
	of.Module, err = Module(programs, s) // any file
	require.NoError(t, err)
	dir = t.TempDir()
	require.NoError(t, Store(filepath.Join(dir, "images"), of, s.Tag()))
	return dir, of, s
}

// unpack is the one file of a layer that is called so, and how many there are.
func unpack(t *testing.T, layer v1.Layer, name string) (data []byte, mode int64, n int) {
	t.Helper()
	mt, err := layer.MediaType()
	require.NoError(t, err)
	require.Equal(t, types.OCILayer, mt)
	r, err := layer.Compressed()
	require.NoError(t, err)
	defer r.Close()
	z, err := gzip.NewReader(r)
	require.NoError(t, err)
	for tr := tar.NewReader(z); ; n++ {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return data, mode, n
		}
		require.NoError(t, err)
		if h.Name == name {
			mode = h.Mode
			data, err = io.ReadAll(tr)
			require.NoError(t, err)
		}
	}
}

// All images go to a registry, and come back by digest as what Istio and Envoy Gateway look for.
func TestImagesComeBackByDigest(t *testing.T) {
	t.Parallel()
	wasm := plugin(t)
	dir, of, s := pack(t, newCheckout(t), wasm)
	served := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	defer served.Close()
	base := strings.TrimPrefix(served.URL, "http://") + "/team"
	var told bytes.Buffer
	require.NoError(t, Push(t.Context(), filepath.Join(dir, "images"), base, &told))
	require.Equal(t, 4, strings.Count(told.String(), "\n"), told.String())
	get := func(repository string, of interface{ Digest() (v1.Hash, error) }) *remote.Descriptor {
		t.Helper()
		digest, err := of.Digest()
		require.NoError(t, err)
		require.Contains(t, told.String(), base+"/"+repository+":"+s.Tag()+"@"+digest.String())
		ref, err := name.NewDigest(base + "/" + repository + "@" + digest.String())
		require.NoError(t, err)
		d, err := remote.Get(ref, remote.WithContext(t.Context()))
		require.NoError(t, err)
		return d
	}

	t.Run("compat", func(t *testing.T) {
		image, err := get("highwater-plugin", of.Plugin).Image()
		require.NoError(t, err)
		require.NoError(t, validate.Image(image))
		m, err := image.Manifest()
		require.NoError(t, err)
		require.Equal(t, types.OCIManifestSchema1, m.MediaType)
		require.Equal(t, types.OCIConfigJSON, m.Config.MediaType)
		require.Equal(t, "compat", m.Annotations["module.wasm.image/variant"])
		layers, err := image.Layers()
		require.NoError(t, err)
		require.Len(t, layers, 1)
		got, _, n := unpack(t, layers[0], "plugin.wasm")
		require.True(t, bytes.Equal(wasm, got))
		require.Equal(t, 2, n)
	})

	t.Run("artifact", func(t *testing.T) {
		image, err := get("highwater-plugin-artifact", of.Artifact).Image()
		require.NoError(t, err)
		layers, err := image.Layers()
		require.NoError(t, err)
		require.Len(t, layers, 2, "both fetchers want exactly two")
		byType := map[types.MediaType]v1.Layer{}
		for _, l := range layers {
			mt, err := l.MediaType()
			require.NoError(t, err)
			byType[mt] = l
		}
		r, err := byType["application/vnd.module.wasm.content.layer.v1+wasm"].Compressed()
		require.NoError(t, err)
		defer r.Close()
		got, err := io.ReadAll(r)
		require.NoError(t, err)
		require.True(t, bytes.Equal(wasm, got), "as it is, not compressed")
		require.Contains(t, byType, types.MediaType("application/vnd.module.wasm.config.v1+json"))
	})

	t.Run("program", func(t *testing.T) {
		index, err := get("highwater", of.Program).ImageIndex()
		require.NoError(t, err)
		require.NoError(t, validate.Index(index))
		m, err := index.IndexManifest()
		require.NoError(t, err)
		platforms := map[string]v1.Hash{}
		for _, d := range m.Manifests {
			platforms[d.Platform.String()] = d.Digest
		}
		require.ElementsMatch(t, []string{"linux/amd64", "linux/arm64"}, slices.Collect(maps.Keys(platforms)))
		image, err := index.Image(platforms["linux/amd64"])
		require.NoError(t, err)
		config, err := image.ConfigFile()
		require.NoError(t, err)
		require.Equal(t, []string{"/highwater"}, config.Config.Entrypoint)
		require.NotContains(t, []string{"", "0", "root"}, config.Config.User)
		layers, err := image.Layers()
		require.NoError(t, err)
		require.Len(t, layers, 1)
		got, mode, _ := unpack(t, layers[0], "highwater")
		file := filepath.Join(t.TempDir(), "highwater")
		require.NoError(t, os.WriteFile(file, got, os.FileMode(mode)))
		out, err := exec.CommandContext(t.Context(), file).CombinedOutput()
		require.NoError(t, err)
		require.Equal(t, "it runs", string(out))
	})
}

// Two checkouts of one commit in two directories give the same release, to the byte.
func TestTheSameTwice(t *testing.T) {
	t.Parallel()
	wasm := plugin(t)
	first := newCheckout(t)
	sums := func(c checkout) string {
		dir, _, _ := pack(t, c, wasm)
		require.NoError(t, Sum(dir))
		text, err := os.ReadFile(filepath.Join(dir, Sums))
		require.NoError(t, err)
		cmd := exec.CommandContext(t.Context(), "sha256sum", "--check", "--quiet", Sums)
		cmd.Dir = dir
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, "%s", out)
		return string(text)
	}
	once := sums(first)
	require.Equal(t, once, sums(first.clone()))
	first.write("main.go", "package main\n\nfunc main() { print(\"it runs too\") }\n")
	first.commit()
	require.NotEqual(t, once, sums(first))
}

// What is not what it is said to be is refused, with what to do.
func TestReadRefuses(t *testing.T) {
	t.Parallel()
	c := newCheckout(t)
	built := c.build()
	_, _, err := Read(map[string]string{"amd64": built["arm64"]})
	require.ErrorContains(t, err, "is for linux/arm64: build it with GOOS=linux GOARCH=amd64")
	_, _, err = Read(map[string]string{"amd64": filepath.Join(c.dir, "main.go")})
	require.ErrorContains(t, err, "how go built it")
	_, _, err = Read(map[string]string{"amd64": "/nowhere"})
	require.ErrorIs(t, err, os.ErrNotExist)

	c.write("main.go", "package main\n\nfunc main() {}\n")
	changed := c.build()
	_, s, err := Read(changed)
	require.NoError(t, err)
	require.True(t, s.Modified)
	require.NotContains(t, s.Tag(), "+", "a tag cannot have it: %s", s)
	_, _, err = Read(map[string]string{"amd64": built["amd64"], "arm64": changed["arm64"]})
	require.ErrorContains(t, err, "build all of them again")
}

func TestMissingFromSBOM(t *testing.T) {
	t.Parallel()
	document := []byte(`{"bomFormat": "CycloneDX", "components": [{"name": "example.org/a", "version": "v1.0.0"}]}`)
	missing, err := MissingFromSBOM(document, []string{"example.org/a@v1.0.0", "example.org/a@v1.0.1", "example.org/b@v1.0.0"})
	require.NoError(t, err)
	require.Equal(t, []string{"example.org/a@v1.0.1", "example.org/b@v1.0.0"}, missing)
	_, err = MissingFromSBOM([]byte(`{}`), nil)
	require.ErrorContains(t, err, "not CycloneDX")
	_, err = MissingFromSBOM([]byte(`{`), nil)
	require.Error(t, err)
}
