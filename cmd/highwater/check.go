package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"

	"sigs.k8s.io/yaml"

	"github.com/highwater-envoy/highwater/internal/envoyconfig"
	"github.com/highwater-envoy/highwater/internal/guard"
	"github.com/highwater-envoy/highwater/internal/input"
	"github.com/highwater-envoy/highwater/internal/unit"
)

// maxConfig is how much of a configuration is read, as much as guard.Parse takes.
const maxConfig = unit.MiB

const checkUsage = `highwater check [-envoy ENVOY.yaml] FILE

Validates the configuration of a plugin or of highwater serve (JSON or YAML; - reads standard input), and prints it with
all defaults. With -envoy it holds Envoy's own configuration against that of highwater serve, and prints what is to change:
errors, where requests fail or are not guarded, and warnings, where they are guarded less well than they could be.

Of FILE 1MiB is read at most, and of ENVOY.yaml 8MiB; either must be one document, in which no key is set twice.

Exit status: 0 fine, 1 FILE is wrong, 2 the call is wrong, or FILE can't be read or is too large.
With -envoy: 0 nothing to change, 1 warnings alone, 2 errors, in either file or in the call.
`

func check(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("highwater check", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Usage = func() { fmt.Fprint(stderr, checkUsage) }
	envoy := flags.String("envoy", "", "")
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		return 2
	case flags.NArg() != 1:
		flags.Usage()
		return 2
	}
	file := flags.Arg(0)
	var text []byte
	var err error
	if file == "-" {
		file = "standard input"
		text, err = input.ReadFrom(stdin, file, maxConfig)
	} else {
		text, err = input.Read(file, maxConfig)
	}
	if err != nil {
		fmt.Fprintln(stderr, "highwater check:", err)
		return 2
	}
	if *envoy != "" {
		return checkEnvoy(*envoy, file, text, stdout, stderr)
	}
	parts, err := parseAny(text)
	if err != nil {
		fmt.Fprintf(stderr, "%s is wrong:\n%v\n", file, err)
		return 1
	}
	for _, part := range parts {
		out, err := yaml.Marshal(part)
		if err != nil {
			fmt.Fprintln(stderr, "highwater check:", err)
			return 2
		}
		_, _ = stdout.Write(out)
	}
	return 0
}

// parseAny reads the configuration of a plugin, or that of the server, which has more keys, and
// returns what it consists of.
func parseAny(text []byte) (parts []any, err error) {
	asJSON, err := input.JSON(text, maxConfig)
	if err != nil {
		return nil, err
	}
	var its struct { // what no plugin has
		Release, Envoy any
		Memory         struct{ URL any }
	}
	_ = json.Unmarshal(asJSON, &its) // what is wrong with it is told below
	if its.Release == nil && its.Envoy == nil && its.Memory.URL == nil {
		config, err := guard.Parse(asJSON)
		return []any{config}, err
	}
	config, err := parseServed(text)
	return []any{config.guard, config.observer}, err
}

func checkEnvoy(envoy, file string, text []byte, stdout, stderr io.Writer) int {
	config, err := parseServed(text)
	if err != nil {
		fmt.Fprintf(stderr, "%s is wrong:\n%v\n", file, err)
		return 2
	}
	if text, err = input.Read(envoy, envoyconfig.MaxBootstrap); err != nil {
		fmt.Fprintln(stderr, "highwater check: -envoy:", err)
		return 2
	}
	report, err := envoyconfig.Check(text, config.guard)
	if err != nil {
		fmt.Fprintf(stderr, "highwater check: -envoy %s: %v\n", envoy, err)
		return 2
	}
	for _, at := range report.Checked {
		fmt.Fprintln(stdout, "checked:", at)
	}
	for _, at := range report.PassedOver {
		fmt.Fprintln(stdout, "passed over:", at+": neither it nor its cluster is called highwater")
	}
	errs := 0
	for _, f := range report.Findings {
		fmt.Fprintln(stdout, f)
		if f.Error {
			errs++
		}
	}
	fmt.Fprintf(stdout, "errors: %d, warnings: %d\n", errs, len(report.Findings)-errs)
	switch {
	case errs > 0:
		return 2
	case len(report.Findings) > 0:
		return 1
	}
	return 0
}
