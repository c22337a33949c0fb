// Highwater's command: what an operator needs beside Envoy.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/debug"

	"sigs.k8s.io/yaml"

	"github.com/highwater-envoy/highwater/internal/guard"
)

const usage = `highwater: the memory guard for Envoy

  highwater check FILE           validate a plugin configuration (JSON or YAML; - reads standard input)
                                 and print it with all defaults
  highwater serve -config FILE   the guard beside Envoy, for its ext_proc filter: see highwater serve -h
  highwater pprof SOURCE...      which requests hold the memory, now or at a peak: see highwater pprof -h
  highwater version              print what this is

Exit status: 0 fine, 1 the configuration is wrong or a source has no profile, 2 the call is wrong.
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
	case len(args) == 2 && args[0] == "check":
		return check(args[1], stdin, stdout, stderr)
	case len(args) == 1 && args[0] == "version":
		fmt.Fprintln(stdout, "highwater", version(), runtime.Version())
		return 0
	}
	fmt.Fprint(stderr, usage)
	return 2
}

func check(file string, stdin io.Reader, stdout, stderr io.Writer) int {
	var text []byte
	var err error
	if file == "-" {
		text, err = io.ReadAll(stdin)
	} else {
		text, err = os.ReadFile(file)
	}
	if err != nil {
		fmt.Fprintln(stderr, "highwater check:", err)
		return 2
	}
	// JSON is YAML too, but what Envoy hands to the plugin is JSON, whose errors name the byte.
	if len(text) > 0 && text[0] != '{' {
		if text, err = yaml.YAMLToJSONStrict(text); err != nil {
			fmt.Fprintln(stderr, "highwater check:", err)
			return 1
		}
	}
	config, err := guard.Parse(text)
	if err != nil {
		fmt.Fprintf(stderr, "%v\n", err)
		return 1
	}
	out, err := yaml.Marshal(config)
	if err != nil {
		fmt.Fprintln(stderr, "highwater check:", err)
		return 2
	}
	_, _ = stdout.Write(out)
	return 0
}

func version() string {
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(devel)"
}
