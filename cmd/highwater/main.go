// Highwater's command: what an operator needs beside Envoy.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"runtime"

	"github.com/highwater-envoy/highwater/internal/version"
)

const usage = `highwater: the memory guard for Envoy

  highwater check FILE           validate a configuration, of a plugin or of highwater serve, and print it with all
                                 defaults; with -envoy ENVOY.yaml: do Envoy and the server go together? See check -h
  highwater serve -config FILE   the guard beside Envoy, for its ext_proc filter: see highwater serve -h
  highwater pprof SOURCE...      which requests hold the memory, now or at a peak: see highwater pprof -h
  highwater version              print what this is

Exit status: 0 fine, 1 the configuration is wrong or a source has no profile, 2 the call is wrong;
of check -envoy: 0 nothing to change, 1 warnings alone, 2 errors.
`

func main() { os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) }

func run(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("highwater", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Usage = func() { fmt.Fprint(stderr, usage) }
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return 0
		}
		return 2
	}
	switch args = flags.Args(); {
	case len(args) > 0 && args[0] == "pprof":
		return pprof(args[1:], stdout, stderr)
	case len(args) > 0 && args[0] == "serve":
		return serve(args[1:], stderr)
	case len(args) > 0 && args[0] == "check":
		return check(args[1:], stdin, stdout, stderr)
	case len(args) == 1 && args[0] == "version":
		fmt.Fprintln(stdout, "highwater", version.String(), runtime.Version())
		return 0
	}
	fmt.Fprint(stderr, usage)
	return 2
}
