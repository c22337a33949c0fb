package release

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// Images are what is published, under these names. A nil one is left out.
type Images struct {
	Plugin   v1.Image      // highwater-plugin
	Artifact v1.Image      // highwater-plugin-artifact
	Program  v1.ImageIndex // highwater
	Module   v1.ImageIndex // highwater-module
}

// refName is where an OCI layout keeps what one of its images is called.
const refName = "org.opencontainers.image.ref.name"

// Store writes the images as one OCI layout into an empty or new directory.
func Store(dir string, images Images, tag string) error {
	to, err := layout.Write(dir, empty.Index)
	if err != nil {
		return err
	}
	named := func(image string) layout.Option {
		return layout.WithAnnotations(map[string]string{refName: image + ":" + tag})
	}
	errs := []error{
		to.AppendImage(images.Plugin, named("highwater-plugin")),
		to.AppendImage(images.Artifact, named("highwater-plugin-artifact")),
		to.AppendIndex(images.Program, named("highwater")),
	}
	if images.Module != nil {
		errs = append(errs, to.AppendIndex(images.Module, named("highwater-module")))
	}
	return errors.Join(errs...)
}

// Push copies what Store wrote to a registry, each image to base/NAME:TAG, and tells the digest of
// each. The credentials are those of docker login.
func Push(ctx context.Context, dir, base string, tell io.Writer, options ...name.Option) error {
	from, err := layout.FromPath(dir)
	if err != nil {
		return err
	}
	index, err := from.ImageIndex()
	if err != nil {
		return err
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		return err
	}
	for _, m := range manifest.Manifests {
		ref, err := name.ParseReference(strings.TrimSuffix(base, "/")+"/"+m.Annotations[refName], options...)
		if err != nil {
			return err
		}
		if err := pushOne(ctx, index, m, ref); err != nil {
			return fmt.Errorf("%s: %w", ref, err)
		}
		fmt.Fprintf(tell, "%s@%s\n", ref, m.Digest)
	}
	return nil
}

func pushOne(ctx context.Context, index v1.ImageIndex, m v1.Descriptor, ref name.Reference) error {
	options := []remote.Option{remote.WithContext(ctx), remote.WithAuthFromKeychain(authn.DefaultKeychain)}
	if m.MediaType.IsIndex() {
		nested, err := index.ImageIndex(m.Digest)
		if err != nil {
			return err
		}
		return remote.WriteIndex(ref, nested, options...)
	}
	image, err := index.Image(m.Digest)
	if err != nil {
		return err
	}
	return remote.Write(ref, image, options...)
}

// Sums is the name of the file that Sum writes.
const Sums = "SHA256SUMS"

// Sum writes the SHA-256 of every file below the directory into SHA256SUMS there, by name, as
// sha256sum -c reads it.
func Sum(dir string) error {
	var lines []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		relative, err := filepath.Rel(dir, path)
		if err != nil || relative == Sums {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		h := sha256.New()
		if _, err := io.Copy(h, f); err != nil {
			return err
		}
		lines = append(lines, hex.EncodeToString(h.Sum(nil))+"  "+filepath.ToSlash(relative)+"\n")
		return nil
	})
	if err != nil {
		return err
	}
	slices.SortFunc(lines, func(a, b string) int { return strings.Compare(a[2*sha256.Size:], b[2*sha256.Size:]) })
	f, err := os.Create(filepath.Join(dir, Sums))
	if err != nil {
		return err
	}
	defer f.Close()
	w := bufio.NewWriter(f)
	for _, line := range lines {
		w.WriteString(line) //nolint:errcheck // Flush tells
	}
	return w.Flush()
}

// MissingFromSBOM are the modules of modules, as PATH@VERSION, that a CycloneDX document does not
// name.
func MissingFromSBOM(document []byte, modules []string) ([]string, error) {
	var bom struct {
		Format     string `json:"bomFormat"`
		Components []struct {
			Name    string `json:"name"`
			Version string `json:"version"`
		} `json:"components"`
	}
	if err := json.Unmarshal(document, &bom); err != nil {
		return nil, err
	}
	if bom.Format != "CycloneDX" {
		return nil, fmt.Errorf("it is of the format %q, not CycloneDX", bom.Format)
	}
	known := map[string]bool{}
	for _, c := range bom.Components {
		known[c.Name+"@"+c.Version] = true
	}
	return slices.DeleteFunc(slices.Clone(modules), func(m string) bool { return known[m] }), nil
}
