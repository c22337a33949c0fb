package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"

	"sigs.k8s.io/yaml"

	"github.com/highwater-envoy/highwater/internal/guard"
)

const checkUsage = `highwater check FILE

Validates the configuration of a plugin or of highwater serve (JSON or YAML; - reads standard input), and prints it with
all defaults.

Exit status: 0 fine, 1 FILE is wrong, 2 the call is wrong.
`

func check(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("highwater check", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Usage = func() { fmt.Fprint(stderr, checkUsage) }
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
		text, err = io.ReadAll(stdin)
	} else {
		text, err = os.ReadFile(file)
	}
	if err != nil {
		fmt.Fprintln(stderr, "highwater check:", err)
		return 2
	}
	parts, err := parseAny(text)
	if err != nil {
		fmt.Fprintln(stderr, err)
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

// parseAny reads the configuration of a plugin, or that of the server, which has more keys, and returns what it consists of.
func parseAny(text []byte) (parts []any, err error) {
	asJSON, err := toJSON(text)
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

// toJSON is what a configuration is parsed from. JSON is YAML too, but is left as it is: its errors name the byte.
func toJSON(text []byte) ([]byte, error) {
	if len(text) == 0 || text[0] == '{' {
		return text, nil
	}
	return yaml.YAMLToJSONStrict(text)
}
