// Highwater's command: what an operator needs beside Envoy.
package main

import (
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"

	"github.com/highwater-envoy/highwater/internal/version"
)

const usage = `highwater: the memory guard for Envoy

  highwater check FILE           validate a configuration, of a plugin or of highwater serve, and print it with all
                                 defaults; of an Envoy: can its memory be bounded, is it guarded? See help check
  highwater serve -config FILE   the guard beside Envoy, for its ext_proc filter: see highwater help serve
  highwater pprof SOURCE...      which requests hold the memory, now or at a peak: see highwater help pprof
  highwater heap [DUMP]          which classes of Envoy hold its heap, now or at its peak: see highwater help heap
  highwater doctor               what an Envoy's memory is made of, and which setting to change: see highwater help doctor
  highwater replay LOAD [CONFIG] what the guard would have done with a recorded load: see highwater help replay
  highwater version              print its version, the commit it was built from, and Go's version
  highwater help [SUBCOMMAND]    print this, or how a subcommand is called

Exit status: 0 fine, 1 the configuration is wrong or a source has no profile, dump or memory, 2 the call is wrong;
of check of an Envoy: 0 nothing to change, 1 warnings alone, 2 errors.
`

func main() { os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) }

func run(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	if len(args) == 0 {
		fmt.Fprint(stderr, usage)
		return 2
	}
	name, args := args[0], args[1:]
	if name == "help" && len(args) > 0 {
		name, args = args[0], []string{"-h"}
	}
	if len(args) == 1 && isHelp(args[0]) {
		stderr = stdout // what was asked for is the answer, and no error
	}
	switch {
	case name == "help", isHelp(name):
		fmt.Fprint(stdout, usage)
		return 0
	case name == "check":
		return check(args, stdin, stdout, stderr)
	case name == "serve":
		return serve(args, stderr)
	case name == "pprof":
		return pprof(args, stdout, stderr)
	case name == "heap":
		return heap(args, stdout, stderr)
	case name == "doctor":
		return diagnose(args, stdout, stderr)
	case name == "replay":
		return replayLoad(args, stdin, stdout, stderr)
	case name == "version" && len(args) == 1 && isHelp(args[0]):
		fmt.Fprint(stdout, usage)
		return 0
	case name == "version" && len(args) > 0:
		fmt.Fprintf(stderr, "highwater version: takes no arguments, and got %q\n", args[0])
		return 2
	case name == "version":
		fmt.Fprintln(stdout, "highwater", version.String(), runtime.Version())
		return 0
	}
	fmt.Fprintf(stderr, "highwater: there is no subcommand %q%s; highwater help lists them\n", name, suggestion(name))
	return 2
}

func isHelp(arg string) bool { return slices.Contains([]string{"-h", "-help", "--help"}, arg) }

// suggestion names the subcommand that was most likely meant, if any.
func suggestion(name string) string {
	best, least := "", 3
	for _, s := range []string{"check", "serve", "pprof", "heap", "doctor", "replay", "version", "help"} {
		d := distance(name, s)
		if len(name) > 1 && strings.HasPrefix(s, name) {
			d = 0
		}
		if d < least {
			best, least = s, d
		}
	}
	if best == "" {
		return ""
	}
	return fmt.Sprintf("; did you mean %s?", best)
}

// distance is how many letters are to be added, dropped or replaced to make b of a (Levenshtein).
func distance(a, b string) int {
	if max(len(a), len(b)) > 16 {
		return 16 // no name is that long
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			replaced := diagonal
			if a[i] != b[j] {
				replaced++
			}
			diagonal = row[j+1]
			row[j+1] = min(replaced, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
