package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"sigs.k8s.io/yaml"

	envoyfile "github.com/highwater-envoy/highwater/internal/check"
	"github.com/highwater-envoy/highwater/internal/input"
	"github.com/highwater-envoy/highwater/internal/unit"
)

// envoyCheck is what `highwater check` was asked about Envoy's configuration.
type envoyCheck struct {
	envoy     string // a file; - is standard input
	admin     string // the URL of a running Envoy's admin interface
	server    string // the file of highwater serve's configuration; empty = none
	container string
	version   string
	face      string // of what is to be added
	file      string // of that
	write     string
	asJSON    bool
}

// asked says whether it is about Envoy by what was given beside the file.
func (e *envoyCheck) asked() bool { return e.envoy != "" || e.admin != "" }

// beside is where Envoy's configuration is named by a flag, and the file is the server's.
func (e *envoyCheck) beside(file string, stdin io.Reader, stdout, stderr io.Writer) int {
	e.server = file
	var text []byte
	if e.envoy != "" {
		var err error
		if text, err = readArg(&e.envoy, stdin); err != nil {
			fmt.Fprintln(stderr, "highwater check: -envoy:", err)
			return 2
		}
	}
	e.envoy = "-envoy " + e.envoy
	return e.run(text, stdout, stderr)
}

// run reads, checks and prints. Its result is the exit status.
func (e *envoyCheck) run(text []byte, stdout, stderr io.Writer) int {
	fail := func(err error) int {
		fmt.Fprintln(stderr, "highwater check:", err)
		return 2
	}
	o, err := e.options()
	if err != nil {
		return fail(err)
	}
	from := e.envoy
	if e.admin != "" {
		from = e.admin
		if text, err = configDump(e.admin); err != nil {
			return fail(err)
		}
	}
	read, err := envoyfile.Read(text)
	if err != nil {
		return fail(fmt.Errorf("%s: %w", from, err))
	}
	report := envoyfile.Check(read, o)
	if e.admin == "" {
		report.File = strings.TrimPrefix(e.envoy, "-envoy ")
		report.Locate(text)
	}
	if e.asJSON {
		enc := json.NewEncoder(stdout)
		enc.SetEscapeHTML(false)
		enc.SetIndent("", "  ")
		if err := enc.Encode(report); err != nil {
			return fail(err)
		}
	} else {
		report.Print(stdout)
	}
	if e.write != "" {
		if err := e.copyTo(text, o, stderr); err != nil {
			return fail(err)
		}
	}
	switch report.Worst() {
	case envoyfile.Error:
		return 2
	case envoyfile.Warning:
		return 1
	}
	return 0
}

// options reads what the flags say.
func (e *envoyCheck) options() (o envoyfile.Options, err error) {
	faces := map[string]envoyfile.Face{"": envoyfile.Wasm, "wasm": envoyfile.Wasm, "module": envoyfile.Module, "extproc": envoyfile.ExtProc}
	var known bool
	if o.Face, known = faces[e.face]; !known {
		return o, fmt.Errorf("-face: %q: must be wasm, module or extproc", e.face)
	}
	if o.File = e.file; o.File != "" && o.Face == envoyfile.ExtProc {
		return o, errors.New("-file: highwater serve is a program beside Envoy, and Envoy loads no file: leave it out")
	}
	if e.container != "" {
		if o.Container, err = unit.ParseBytes(e.container); err != nil {
			return o, fmt.Errorf("-container: %w", err)
		}
	}
	if e.version != "" {
		v, err := envoyfile.ParseVersion(e.version)
		if err != nil {
			return o, fmt.Errorf("-envoy-version: %w", err)
		}
		o.Version = &v
	}
	if e.server != "" {
		text, err := input.Read(e.server, maxConfig)
		if err != nil {
			return o, err
		}
		config, err := parseServed(text)
		if err != nil {
			return o, fmt.Errorf("%s is wrong:\n%w", e.server, err)
		}
		o.Server = &config.guard
	}
	return o, nil
}

// copyTo writes a copy of the bootstrap with the filters. It does not write over anything.
func (e *envoyCheck) copyTo(text []byte, o envoyfile.Options, stderr io.Writer) error {
	out, did, err := envoyfile.Write(text, o)
	if err != nil {
		return fmt.Errorf("-write: %w", err)
	}
	if strings.HasSuffix(e.write, ".json") {
		if out, err = yaml.YAMLToJSON(out); err != nil {
			return fmt.Errorf("-write: %w", err)
		}
	}
	f, err := os.OpenFile(e.write, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if errors.Is(err, os.ErrExist) {
		return fmt.Errorf("-write: %s is there already: name a file that is not", e.write)
	}
	if err != nil {
		return fmt.Errorf("-write: %w", err)
	}
	_, err = f.Write(out)
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("-write: %w", err)
	}
	fmt.Fprintf(stderr, "wrote %s, with Highwater in observe mode (comments may be lost or stand elsewhere):\n", e.write)
	for _, d := range did {
		fmt.Fprintln(stderr, "  +", oneLine(d))
	}
	return nil
}

// adminTimeout is how long Envoy may take to answer: of 8,000 clusters it takes some seconds.
const adminTimeout = 30 * time.Second

// configDump asks a running Envoy for all of its configuration, what came by xDS and the endpoints
// too.
func configDump(admin string) ([]byte, error) {
	u, err := url.Parse(admin)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return nil, fmt.Errorf("-admin: %q must be the URL of Envoy's admin interface, such as http://127.0.0.1:9901", admin)
	}
	u.Path, u.RawQuery = strings.TrimSuffix(u.Path, "/")+"/config_dump", "include_eds"
	client := http.Client{Timeout: adminTimeout, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	res, err := client.Get(u.String())
	if err != nil {
		return nil, fmt.Errorf("-admin: %w", err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("-admin: %s answers %s; where admin.allow_paths is set it has to let /config_dump through", u.Redacted(), res.Status)
	}
	return input.ReadFrom(res.Body, u.Redacted(), envoyfile.MaxDump)
}

// aboutEnvoy says whether a text is Envoy's configuration and not Highwater's.
func aboutEnvoy(text []byte) bool {
	if len(text) > int(maxConfig) {
		return true // none of Highwater's is so large
	}
	tree, err := input.Tree(text, envoyfile.MaxBootstrap)
	return err == nil && envoyfile.IsEnvoys(tree)
}

func oneLine(text string) string { return strings.Join(strings.Fields(text), " ") }
