// Package release packs what make has built into container images: the plugin in the two forms that
// Istio and Envoy Gateway fetch, the program, and the dynamic module.
//
// An image is a function of the files and of the commit they were built from. So whoever builds the
// same commit with the same Go gets the same digests, and needs no trust in who built it first.
package release

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"io"
	"maps"
	"slices"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// What Istio and Envoy Gateway look for in an image of a plugin: the Wasm Image Specification
// (github.com/solo-io/wasm, spec), as their fetchers read it.
const (
	WasmFile       = "plugin.wasm"                                                        // in the layer of the compat form
	RuntimeFile    = "runtime-config.json"                                                // beside it; nobody needs it
	WasmLayer      = types.MediaType("application/vnd.module.wasm.content.layer.v1+wasm") // of the artifact
	RuntimeLayer   = types.MediaType("application/vnd.module.wasm.config.v1+json")        // of the artifact, beside it
	VariantKey     = "module.wasm.image/variant"
	VariantCompat  = "compat"
	abiVersion     = "0.2.0" // the plugin exports proxy_abi_version_0_2_0
	programUser    = "65532:65532"
	annotationBase = "org.opencontainers.image."
)

// annotations are those that every image has.
func (s Source) annotations(title, description string) map[string]string {
	return map[string]string{
		annotationBase + "title":       title,
		annotationBase + "description": description,
		annotationBase + "version":     s.Version,
		annotationBase + "revision":    s.Revision,
		annotationBase + "created":     s.Time.UTC().Format(time.RFC3339),
		annotationBase + "source":      "https://github.com/highwater-envoy/highwater",
		annotationBase + "licenses":    "Apache-2.0",
	}
}

// runtimeConfig is the metadata that the specification asks for.
func runtimeConfig() ([]byte, error) {
	return json.Marshal(map[string]any{
		"type":        "envoy_proxy",
		"abiVersions": []string{abiVersion},
		"config":      map[string]any{"root_ids": []string{"connections", "requests"}},
	})
}

// Compat is the plugin as an image that every container tool reads: one layer with plugin.wasm.
func Compat(wasm []byte, s Source) (v1.Image, error) {
	runtime, err := runtimeConfig()
	if err != nil {
		return nil, err
	}
	layer, err := files(s, entry{WasmFile, 0o644, wasm}, entry{RuntimeFile, 0o644, runtime})
	if err != nil {
		return nil, err
	}
	image, err := build(v1.Platform{}, v1.Config{}, s, mutate.Addendum{Layer: layer})
	if err != nil {
		return nil, err
	}
	a := s.annotations("highwater plugin", "A memory guard for Envoy, as a Proxy-Wasm plugin")
	a[VariantKey] = VariantCompat
	return mutate.Annotations(image, a).(v1.Image), nil
}

// Artifact is the plugin as an OCI artifact: two layers with media types of their own.
func Artifact(wasm []byte, s Source) (v1.Image, error) {
	runtime, err := runtimeConfig()
	if err != nil {
		return nil, err
	}
	title := func(name string) map[string]string { return map[string]string{annotationBase + "title": name} }
	image, err := build(v1.Platform{}, v1.Config{}, s,
		mutate.Addendum{Layer: static.NewLayer(runtime, RuntimeLayer), MediaType: RuntimeLayer, Annotations: title(RuntimeFile)},
		mutate.Addendum{Layer: static.NewLayer(wasm, WasmLayer), MediaType: WasmLayer, Annotations: title(WasmFile)})
	if err != nil {
		return nil, err
	}
	return mutate.Annotations(image, s.annotations("highwater plugin", "A memory guard for Envoy, as a Proxy-Wasm plugin")).(v1.Image), nil
}

// Program is the program `highwater` for each architecture, and nothing else: it is static.
func Program(byArch map[string][]byte, s Source) (v1.ImageIndex, error) {
	config := v1.Config{Entrypoint: []string{"/highwater"}, User: programUser, WorkingDir: "/"}
	return multi(byArch, "highwater", 0o755, config, s, s.annotations("highwater", "The ext_proc server, the companion and the tools of Highwater"))
}

// Module is the dynamic module for each architecture. There is nothing in it to be run: it is to be
// mounted, or copied from.
func Module(byArch map[string][]byte, s Source) (v1.ImageIndex, error) {
	return multi(byArch, "libhighwater.so", 0o644, v1.Config{}, s, s.annotations("highwater module", "A memory guard for Envoy, as a dynamic module"))
}

// multi is an index with an image of the one file for each architecture.
func multi(byArch map[string][]byte, name string, mode int64, config v1.Config, s Source, annotations map[string]string) (v1.ImageIndex, error) {
	index := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	for _, arch := range slices.Sorted(maps.Keys(byArch)) {
		layer, err := files(s, entry{name, mode, byArch[arch]})
		if err != nil {
			return nil, err
		}
		platform := v1.Platform{OS: "linux", Architecture: arch}
		image, err := build(platform, config, s, mutate.Addendum{Layer: layer})
		if err != nil {
			return nil, err
		}
		image = mutate.Annotations(image, annotations).(v1.Image)
		index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: image, Descriptor: v1.Descriptor{Platform: &platform}})
	}
	return mutate.Annotations(index, annotations).(v1.ImageIndex), nil
}

// build is an OCI image of the layers, as of the commit.
func build(platform v1.Platform, config v1.Config, s Source, layers ...mutate.Addendum) (v1.Image, error) {
	image := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	image, err := mutate.Append(image, layers...)
	if err != nil {
		return nil, err
	}
	file, err := image.ConfigFile()
	if err != nil {
		return nil, err
	}
	file = file.DeepCopy()
	file.OS, file.Architecture, file.Config, file.Created = platform.OS, platform.Architecture, config, v1.Time{Time: s.Time.UTC()}
	file.History = nil
	return mutate.ConfigFile(image, file)
}

// entry is a file of a layer.
type entry struct {
	name string
	mode int64
	data []byte
}

// files is a layer of the files in the root. It has the time of the commit, and no owner but root.
func files(s Source, entries ...entry) (v1.Layer, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		h := &tar.Header{Name: e.name, Mode: e.mode, Size: int64(len(e.data)), ModTime: s.Time.UTC(), Typeflag: tar.TypeReg, Format: tar.FormatUSTAR}
		if err := w.WriteHeader(h); err != nil {
			return nil, err
		}
		if _, err := w.Write(e.data); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	open := func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.Bytes())), nil }
	return tarball.LayerFromOpener(open, tarball.WithMediaType(types.OCILayer))
}
