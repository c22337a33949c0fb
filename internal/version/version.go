// Package version tells what was built.
package version

import "runtime/debug"

// String is the version of the module with the commit that it was built from, such as "v0.1.0
// (1a2b3c4)" or "(devel) (1a2b3c4, modified)". Where the build kept neither it is "(devel)".
func String() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return of(&debug.BuildInfo{})
	}
	return of(info)
}

func of(info *debug.BuildInfo) string {
	version, commit, modified := info.Main.Version, "", ""
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision":
			commit = s.Value[:min(len(s.Value), shortCommit)]
		case s.Key == "vcs.modified" && s.Value == "true":
			modified = ", modified"
		}
	}
	if version == "" {
		version = "(devel)"
	}
	if commit == "" {
		return version
	}
	return version + " (" + commit + modified + ")"
}

// shortCommit is how many digits of a commit are told, as git does.
const shortCommit = 7
