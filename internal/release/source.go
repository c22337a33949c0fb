package release

import (
	"debug/buildinfo"
	"fmt"
	"maps"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"time"
)

// Source is what files were built from.
type Source struct {
	Version  string // of the module, such as v0.1.0
	Revision string // the commit
	Time     time.Time
	Modified bool // the checkout had changes, so that nobody else can build the same
}

// String is the version with the commit.
func (s Source) String() string {
	if s.Modified {
		return s.Version + " (" + s.Revision + ", modified)"
	}
	return s.Version + " (" + s.Revision + ")"
}

// Tag is the version as a tag of a registry, where a + cannot be.
func (s Source) Tag() string { return strings.ReplaceAll(s.Version, "+", "_") }

// Read reads files that go built for Linux, by architecture, and says what they were built from.
// Each has to be for the architecture that it is said to be for, and of the same commit as the
// others.
func Read(byArch map[string]string) (map[string][]byte, Source, error) {
	var source Source
	all := map[string][]byte{}
	for _, arch := range slices.Sorted(maps.Keys(byArch)) {
		file := byArch[arch]
		info, err := buildinfo.ReadFile(file)
		if err != nil {
			return nil, Source{}, fmt.Errorf("%s: how go built it: %w", file, err)
		}
		of, s, err := describe(info)
		switch {
		case err != nil:
			return nil, Source{}, fmt.Errorf("%s: %w", file, err)
		case of != "linux/"+arch:
			return nil, Source{}, fmt.Errorf("%s is for %s: build it with GOOS=linux GOARCH=%s", file, of, arch)
		case len(all) > 0 && s != source:
			return nil, Source{}, fmt.Errorf("%s is of %s, the others are of %s: build all of them again", file, s, source)
		}
		if all[arch], err = os.ReadFile(file); err != nil {
			return nil, Source{}, err
		}
		source = s
	}
	return all, source, nil
}

// describe says of a build for which platform it is, and of what source.
func describe(info *debug.BuildInfo) (platform string, s Source, err error) {
	settings := map[string]string{}
	for _, v := range info.Settings {
		settings[v.Key] = v.Value
	}
	s = Source{Version: info.Main.Version, Revision: settings["vcs.revision"], Modified: settings["vcs.modified"] == "true"}
	if s.Revision == "" {
		return "", Source{}, fmt.Errorf("it does not say of which commit it is: build it with -buildvcs=true in a checkout")
	}
	if s.Time, err = time.Parse(time.RFC3339, settings["vcs.time"]); err != nil {
		return "", Source{}, fmt.Errorf("the time of its commit: %w", err)
	}
	return settings["GOOS"] + "/" + settings["GOARCH"], s, nil
}
