// Command release packs what make has built into images, and sums it all up. `make release` runs
// it.
package main

import (
	"context"
	"debug/buildinfo"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"

	"github.com/highwater-envoy/highwater/internal/release"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "release:", err)
		stop()
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, out io.Writer) error {
	flags := flag.NewFlagSet("release", flag.ContinueOnError)
	dir := flags.String("dir", "build/release", "where the files of the release are, and its images are to be")
	push := flags.String("push", "", "push the images that are there to REGISTRY/PATH, and do nothing else")
	if err := flags.Parse(args); err != nil {
		return err
	}
	images := filepath.Join(*dir, "images")
	if *push != "" {
		return release.Push(ctx, images, *push, out)
	}
	program := map[string]string{}
	module := map[string]string{}
	for _, arch := range []string{"amd64", "arm64"} {
		program[arch] = filepath.Join(*dir, "highwater-linux-"+arch)
		module[arch] = filepath.Join(*dir, "libhighwater-linux-"+arch+".so")
	}
	if _, err := os.Stat(module["amd64"]); errors.Is(err, os.ErrNotExist) {
		module = nil
	}
	source, err := pack(images, filepath.Join(*dir, "highwater.wasm"), program, module)
	if err != nil {
		return err
	}
	for _, file := range program { // one document for all: they have the same modules
		if err := complete(filepath.Join(*dir, "highwater.cdx.json"), file); err != nil {
			return err
		}
	}
	if err := release.Sum(*dir); err != nil {
		return err
	}
	fmt.Fprintf(out, "%s: %s, and images to push with -push REGISTRY/PATH\n", source, filepath.Join(*dir, release.Sums))
	return nil
}

// pack writes the images.
func pack(images, plugin string, program, module map[string]string) (release.Source, error) {
	wasm, err := os.ReadFile(plugin)
	if err != nil {
		return release.Source{}, err
	}
	programs, source, err := release.Read(program)
	if err != nil {
		return source, err
	}
	if source.Modified {
		return source, errors.New("they were built from a checkout with changes, so that nobody else could build the same: commit the changes, and build again")
	}
	var of release.Images
	if of.Plugin, err = release.Compat(wasm, source); err != nil {
		return source, err
	}
	if of.Artifact, err = release.Artifact(wasm, source); err != nil {
		return source, err
	}
	if of.Program, err = release.Program(programs, source); err != nil {
		return source, err
	}
	if module != nil {
		modules, moduleSource, err := release.Read(module)
		if err != nil {
			return source, err
		}
		if moduleSource != source {
			return source, fmt.Errorf("the module is of %s, the program of %s: build both again", moduleSource, source)
		}
		if of.Module, err = release.Module(modules, source); err != nil {
			return source, err
		}
	}
	if err := os.RemoveAll(images); err != nil {
		return source, err
	}
	return source, release.Store(images, of, source.Tag())
}

// complete says whether the SBOM names every module that go put into the program.
func complete(sbom, program string) error {
	document, err := os.ReadFile(sbom)
	if err != nil {
		return err
	}
	info, err := buildinfo.ReadFile(program)
	if err != nil {
		return err
	}
	var modules []string
	for _, m := range info.Deps {
		modules = append(modules, m.Path+"@"+m.Version)
	}
	missing, err := release.MissingFromSBOM(document, modules)
	if err == nil && len(missing) > 0 {
		err = fmt.Errorf("it does not name what is in %s: %s", program, strings.Join(missing, ", "))
	}
	if err != nil {
		return fmt.Errorf("%s: %w", sbom, err)
	}
	return nil
}
