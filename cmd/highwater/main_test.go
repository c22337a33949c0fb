package main

import (
	"bytes"
	"debug/buildinfo"
	"debug/elf"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestRun(t *testing.T) {
	called := func(args ...string) (code int, out, errs string) {
		var o, e bytes.Buffer
		code = run(args, strings.NewReader(""), &o, &e)
		return code, o.String(), e.String()
	}
	code, out, errs := called()
	require.Equal(t, 2, code)
	require.Empty(t, out)
	require.Equal(t, usage, errs)

	// What is asked for is on standard output, as an answer.
	for want, all := range map[string][][]string{
		usage:                             {{"help"}, {"-h"}, {"-help"}, {"--help"}, {"help", "help"}, {"help", "-h"}, {"help", "version"}, {"version", "-h"}},
		checkUsage:                        {{"help", "check"}, {"check", "-h"}, {"check", "--help"}},
		pprofUsage:                        {{"help", "pprof"}, {"pprof", "-h"}},
		heapUsage:                         {{"help", "heap"}, {"heap", "-h"}},
		serveUsage:                        {{"help", "serve"}, {"serve", "-h"}, {"serve", "-help"}},
		"the configuration, YAML or JSON": {{"help", "serve"}},
		"highwater serve -config FILE [-grpc 127.0.": {{"serve", "--help"}},
	} {
		for _, args := range all {
			code, out, errs := called(args...)
			require.Equal(t, 0, code, args)
			require.Empty(t, errs, args)
			require.Contains(t, out, want, args)
		}
	}

	for said, want := range map[string]string{
		"chekc":                        `highwater: there is no subcommand "chekc"; did you mean check?; highwater help lists them`,
		"prof":                         "did you mean pprof?",
		"ver":                          "did you mean version?",
		"server":                       "did you mean serve?",
		"--hepl":                       `there is no subcommand "--hepl"; highwater help lists them`,
		"-x":                           `there is no subcommand "-x"; highwater help lists them`,
		"":                             `there is no subcommand ""; highwater help lists them`,
		"\x1b[2J":                      `there is no subcommand "\x1b[2J"; highwater help lists them`,
		strings.Repeat("check", 10000): "; highwater help lists them",
	} {
		for _, args := range [][]string{{said}, {said, "-h"}, {"help", said}} {
			code, out, errs := called(args...)
			if args[0] == "help" || len(args) == 2 { // what it says is an answer to help too, and still there is none
				errs = out + errs
			} else {
				require.Empty(t, out, args)
			}
			require.Equal(t, 2, code, args)
			require.Contains(t, errs, want)
			require.Equal(t, 1, strings.Count(errs, "\n"))
		}
	}
	code, out, errs = called("version", "x")
	require.Equal(t, 2, code)
	require.Empty(t, out)
	require.Contains(t, errs, `takes no arguments, and got "x"`)
}

// binary is the one that is shipped, built as the Makefile builds it.
func binary(t *testing.T) string {
	t.Helper()
	const root = "../.."
	cmd := exec.CommandContext(t.Context(), "make", "-C", root, "build/highwater")
	cmd.Env = append(cmd.Environ(), "MAKEFLAGS=")
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	return filepath.Join(root, "build/highwater")
}

func TestBinary(t *testing.T) {
	file := binary(t)
	f, err := elf.Open(file)
	require.NoError(t, err)
	defer f.Close()
	for _, p := range f.Progs {
		require.NotContains(t, []elf.ProgType{elf.PT_DYNAMIC, elf.PT_INTERP}, p.Type, "it needs a C library, or a loader")
	}
	require.Nil(t, f.Section(".dynamic"))

	info, err := buildinfo.ReadFile(file)
	require.NoError(t, err)
	settings := map[string]string{}
	for _, s := range info.Settings {
		settings[s.Key] = s.Value
	}
	require.Equal(t, "0", settings["CGO_ENABLED"])
	out, err := exec.CommandContext(t.Context(), file, "version").CombinedOutput()
	require.NoError(t, err)
	said := string(out)
	require.True(t, strings.HasPrefix(said, "highwater "+info.Main.Version), said)
	require.True(t, strings.HasSuffix(said, " "+runtime.Version()+"\n"), said)
	if commit := settings["vcs.revision"]; commit != "" { // there is none where the sources are no checkout
		require.Contains(t, said, "("+commit[:7])
		require.Equal(t, settings["vcs.modified"] == "true", strings.Contains(said, ", modified)"), said)
	}

	// What it exits with is what run returns.
	out, err = exec.CommandContext(t.Context(), file, "chekc").CombinedOutput()
	var exit *exec.ExitError
	require.ErrorAs(t, err, &exit)
	require.Equal(t, 2, exit.ExitCode())
	require.Contains(t, string(out), "did you mean check?")
}
