package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"

	"sigs.k8s.io/yaml"

	envoyfile "github.com/highwater-envoy/highwater/internal/check"
	"github.com/highwater-envoy/highwater/internal/guard"
	"github.com/highwater-envoy/highwater/internal/input"
	"github.com/highwater-envoy/highwater/internal/unit"
)

// maxConfig is how much of a configuration is read, as much as guard.Parse takes.
const maxConfig = unit.MiB

const checkUsage = `highwater check [flags] FILE

Of Highwater's own configuration, of a plugin or of highwater serve (JSON or YAML; - reads standard input): validates it, and
prints it with all defaults.

Of Envoy's configuration: says whether its memory can be bounded and what keeps it from that, whether Highwater guards it and is
told right what it guards, and what to write. FILE is a bootstrap, YAML or JSON, or what /config_dump has answered.

  -envoy ENVOY.yaml     Envoy's configuration, where FILE is that of highwater serve, to hold one against the other
  -admin URL            ask a running Envoy, what came by xDS too; then FILE is that of highwater serve, or left out
  -container 300MiB     the limit of Envoy's container
  -envoy-version 1.38   whose defaults to judge by; else what the configuration says, else the latest that is known
  -write COPY           write a copy of the bootstrap with Highwater in observe mode; it must not be there yet
  -face wasm            what to add: the plugin (wasm), the dynamic module (module), or highwater serve beside Envoy (extproc)
  -file PATH            where the plugin or the module will be (/etc/envoy/highwater.wasm, /etc/envoy/libhighwater.so)
  -json                 print the report as JSON

Of Highwater's configuration 1MiB is read at most, of a bootstrap 8MiB, of /config_dump 64MiB. Each must be one document, in
which no key is set twice.

Exit status: of Highwater's configuration 0 fine, 1 it is wrong; of Envoy's 0 nothing to change, 1 warnings, 2 errors.
2 in any case where the call is wrong, or where something can't be read or is too large.
`

func check(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("highwater check", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Usage = func() { fmt.Fprint(stderr, checkUsage) }
	var e envoyCheck
	for name, to := range map[string]*string{
		"envoy": &e.envoy, "admin": &e.admin, "container": &e.container, "envoy-version": &e.version, "write": &e.write, "face": &e.face, "file": &e.file,
	} {
		flags.StringVar(to, name, "", "")
	}
	flags.BoolVar(&e.asJSON, "json", false, "")
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		return 2
	case flags.NArg() > 1, flags.NArg() == 0 && e.admin == "", e.envoy != "" && e.admin != "":
		flags.Usage()
		return 2
	}
	file := flags.Arg(0)
	if e.asked() {
		return e.beside(file, stdin, stdout, stderr)
	}
	text, err := readArg(&file, stdin)
	if err != nil {
		fmt.Fprintln(stderr, "highwater check:", err)
		return 2
	}
	if aboutEnvoy(text) {
		e.envoy = file
		return e.run(text, stdout, stderr)
	}
	return checkOwn(file, text, stdout, stderr)
}

// readArg reads a file that was named, or standard input, which it names so. What begins as JSON
// may be what /config_dump answers, which is larger than anything that people write.
func readArg(file *string, stdin io.Reader) ([]byte, error) {
	if *file == "-" {
		*file = "standard input"
		in := bufio.NewReader(stdin)
		begin, err := in.Peek(1)
		if err != nil && err != io.EOF {
			return nil, err
		}
		return input.ReadFrom(in, *file, mostOf(begin))
	}
	return input.Read(*file, mostOf(beginOf(*file)))
}

func mostOf(begin []byte) unit.Bytes {
	if bytes.HasPrefix(bytes.TrimSpace(begin), []byte("{")) {
		return envoyfile.MaxDump
	}
	return envoyfile.MaxBootstrap
}

// beginOf is how a regular file begins; of others nothing is taken away.
func beginOf(path string) []byte {
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil
	}
	begin := make([]byte, 64)
	n, _ := io.ReadFull(f, begin)
	return begin[:n]
}

// checkOwn is about Highwater's own configuration.
func checkOwn(file string, text []byte, stdout, stderr io.Writer) int {
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
