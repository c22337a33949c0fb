// Package version says what was built, as far as Go noted it in the binary.
package version

import (
	"runtime/debug"
	"strings"
)

const devel = "(devel)"

// String is the version and the commit that it was built of: "v0.2.0 (abc1234)", or "(devel) abc1234" where no version was built. A
// commit is known only of what was built in a clone of the repository; "+dirty" says that something in it had been changed.
func String() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return devel
	}
	return of(info)
}

func of(info *debug.BuildInfo) string {
	version, commit, dirty := info.Main.Version, "", false
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			commit = s.Value[:min(len(s.Value), 7)]
		case "vcs.modified":
			dirty = s.Value == "true"
		}
	}
	if dirty && commit != "" && !strings.HasSuffix(version, "+dirty") {
		commit += "+dirty"
	}
	switch {
	case version == "":
		version = devel
		fallthrough
	case version == devel:
		return strings.TrimSpace(version + " " + commit)
	case commit == "" || strings.Contains(version, strings.TrimSuffix(commit, "+dirty")):
		return version // of a commit without a tag it says which
	}
	return version + " (" + commit + ")"
}
