// Package envoytest starts the real Envoy with the shipped example, through func-e, for the
// end-to-end tests and the benches. Envoy listens on free ports of the loopback interface only.
package envoytest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	func_e "github.com/tetratelabs/func-e"
	"github.com/tetratelabs/func-e/api"
	"sigs.k8s.io/yaml"

	"github.com/highwater-envoy/highwater/internal/envoybin"
)

// Face is how the guard meets Envoy.
type Face string

// The faces.
const (
	Filter  Face = ""        // as a plugin
	ExtProc Face = "extproc" // as an ext_proc server beside it
	Module  Face = "module"  // as a dynamic module
)

// Options say which Envoy to start. The zero value starts the shipped example.
type Options struct {
	Face        Face
	Config      []byte         // YAML; default: the face's in examples
	Edit        func(c Config) // edits it before the start
	Wasm        string         // the plugin; default: build/highwater.wasm of this module
	Module      string         // the dynamic module; default: build/libhighwater.so
	Concurrency int            // workers; default 2
	Upstream    string         // host:port in place of the example's upstream
	CgroupDir   string         // if set, Envoy runs in this memory cgroup
	Args        []string       // more arguments
	Env         []string       // more of the environment, as NAME=value
	Binary      string         // another Envoy than envoybin's
	After       *Envoy         // a hot restart: it takes over the listeners and the admin port of this one, which then ends
	LogLevel    string         // default warning
	ServerArgs  []string       // more arguments of the ext_proc server
}

// Envoy is a running one.
type Envoy struct {
	admin   string
	pid     int
	baseID  int
	epoch   int // how many there were before it
	dir     string
	output  output
	server  *Server // of the ext_proc face; nil = there is none
	client  *http.Client
	cancel  context.CancelFunc
	done    chan struct{}
	exitErr error
	stop    sync.Once
	ports   struct {
		sync.Mutex
		m map[string]string
	}
}

const (
	// startWithin: V8 compiles the plugin on the main thread, and the machine may be busy.
	startWithin = 90 * time.Second
	stopWithin  = 5 * time.Second
	tries       = 5 // a port that was free a moment ago may be taken
)

// baseID keeps several Envoys of one machine apart; func-e has Envoy's --base-id too.
var baseID atomic.Uint32

// Start returns when Envoy is live, or an error with the end of its log.
func Start(ctx context.Context, o Options) (*Envoy, error) {
	binary, err := o.Binary, error(nil)
	if binary == "" {
		binary, err = envoybin.Path(ctx, os.Stderr)
	}
	if err != nil {
		return nil, err
	}
	root, err := envoybin.ModuleRoot()
	if err != nil {
		return nil, err
	}
	if o.Wasm == "" {
		o.Wasm = filepath.Join(root, "build", "highwater.wasm")
	}
	if o.Module == "" {
		o.Module = filepath.Join(root, "build", "libhighwater.so")
	}
	if o.Config == nil {
		file := map[Face]string{Filter: "envoy.yaml", ExtProc: "envoy-extproc.yaml", Module: "envoy-module.yaml"}[o.Face]
		if o.Config, err = os.ReadFile(filepath.Join(root, "examples", file)); err != nil {
			return nil, err
		}
	}
	if o.Concurrency == 0 {
		o.Concurrency = 2
	}
	if o.LogLevel == "" {
		o.LogLevel = "warning"
	}
	for try := 1; ; try++ {
		e, err := start(ctx, o, binary)
		if err == nil || try == tries || !passes(err) {
			return e, err
		}
	}
}

// passes says whether the next try may well start. Another test's child that is between fork and
// exec holds the wrapper open for writing, and nobody can run it meanwhile (go.dev/issue/22315).
func passes(err error) bool {
	return strings.Contains(err.Error(), "Address already in use") || strings.Contains(err.Error(), "text file busy")
}

func start(ctx context.Context, o Options, binary string) (_ *Envoy, err error) {
	dir, err := os.MkdirTemp("", "highwater-envoy-")
	if err != nil {
		return nil, err
	}
	e := &Envoy{dir: dir, done: make(chan struct{}), client: &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{}}}
	defer func() {
		if err != nil {
			e.remove()
		}
	}()
	if o.After != nil {
		e.admin, e.baseID, e.epoch = o.After.admin, o.After.baseID, o.After.epoch+1
	} else {
		port, err := freePort()
		if err != nil {
			return nil, err
		}
		e.admin = "127.0.0.1:" + strconv.Itoa(port)
		e.baseID = os.Getpid()%50000*100 + int(baseID.Add(1))
	}
	file, err := e.configure(ctx, o)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil && e.server != nil {
			e.server.Stop()
		}
	}()
	// The wrapper tells the pid, which exec keeps, and joins the cgroup before there is anything to
	// count.
	pidFile := filepath.Join(dir, "pid")
	script := "#!/bin/sh\necho $$ > '" + pidFile + "'\n"
	if o.CgroupDir != "" {
		script += "echo $$ > '" + filepath.Join(o.CgroupDir, "cgroup.procs") + "' || exit 1\n"
	}
	for _, e := range o.Env {
		script += "export '" + e + "'\n"
	}
	wrapper := filepath.Join(dir, "envoy")
	if err := os.WriteFile(wrapper, []byte(script+"exec '"+binary+"' \"$@\"\n"), 0o700); err != nil {
		return nil, err
	}
	args := append([]string{
		"-c", file, "--concurrency", strconv.Itoa(o.Concurrency), "-l", o.LogLevel,
		"--base-id", strconv.Itoa(e.baseID), "--restart-epoch", strconv.Itoa(e.epoch),
	}, o.Args...)
	run, cancel := context.WithCancel(context.WithoutCancel(ctx))
	e.cancel = cancel
	go func() {
		// Envoy asks to be ended with the thread that started it, so this one must not end before.
		runtime.LockOSThread()
		defer close(e.done)
		e.exitErr = func_e.Run(run, args, api.EnvoyPath(wrapper), api.HomeDir(dir), api.Out(io.Discard),
			api.EnvoyOut(&e.output), api.EnvoyErr(&e.output))
	}()
	if err := e.live(ctx); err != nil {
		e.cancel()
		<-e.done
		return nil, err
	}
	text, err := os.ReadFile(pidFile)
	if err == nil {
		e.pid, err = strconv.Atoi(strings.TrimSpace(string(text)))
	}
	if err != nil {
		e.cancel()
		<-e.done
		return nil, fmt.Errorf("the pid of Envoy: %w", err)
	}
	return e, nil
}

func (e *Envoy) configure(ctx context.Context, o Options) (file string, err error) {
	c, err := parse(o.Config)
	if err != nil {
		return "", err
	}
	_, text, err := net.SplitHostPort(e.admin)
	if err != nil {
		return "", err
	}
	adminPort, err := strconv.Atoi(text)
	if err != nil {
		return "", err
	}
	c.setWasm(o.Wasm)
	c.setModule(o.Module)
	c["admin"] = map[string]any{"address": map[string]any{"socket_address": map[string]any{"address": "127.0.0.1", "port_value": adminPort}}}
	for _, l := range c.Listeners() {
		walk(l["address"], func(m map[string]any) {
			if _, ok := m["port_value"]; ok {
				m["port_value"] = 0
				if o.After != nil {
					_, port, _ := net.SplitHostPort(o.After.Addr(l["name"].(string)))
					m["port_value"] = json.Number(port)
				}
			}
		})
	}
	for _, cluster := range c.Clusters() {
		switch {
		case cluster["name"] == "envoy_admin":
			setEndpoint(cluster, "127.0.0.1", adminPort)
		case cluster["name"] == "highwater": // the ext_proc server
		case o.Upstream != "":
			c.SetEndpoint(cluster["name"].(string), o.Upstream)
		}
	}
	if o.Face == ExtProc {
		if err := e.addServer(c, o); err != nil {
			return "", err
		}
	}
	if o.Edit != nil {
		o.Edit(c)
	}
	if m := c.server(); m != nil {
		if e.server, err = startServer(ctx, e.dir, m, o.ServerArgs); err != nil {
			return "", err
		}
		if c.has("highwater") {
			c.SetEndpoint("highwater", e.server.GRPC)
		}
		delete(c, serverKey)
	}
	config, err := yaml.Marshal(c)
	if err != nil {
		return "", err
	}
	file = filepath.Join(e.dir, "envoy.yaml")
	return file, os.WriteFile(file, config, 0o600)
}

// live waits until Envoy says so, or has ended.
func (e *Envoy) live(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startWithin)
	defer cancel()
	for {
		if body, err := e.get(ctx, "/ready"); err == nil && strings.TrimSpace(string(body)) == "LIVE" && e.mine(ctx) {
			return nil
		}
		e.client.CloseIdleConnections() // of a hot restart's old one, which goes on answering there
		select {
		case <-e.done:
			return fmt.Errorf("envoy ended before it was ready (%w); the end of its log:\n%s", e.exitErr, e.tail())
		case <-ctx.Done():
			return fmt.Errorf("envoy is not ready: %w; the end of its log:\n%s", ctx.Err(), e.tail())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// mine says whether it is this Envoy that answers: the port may have been lost to another one.
func (e *Envoy) mine(ctx context.Context) bool {
	var info struct {
		Options struct {
			BaseID json.Number `json:"base_id"`
			Epoch  json.Number `json:"restart_epoch"`
		} `json:"command_line_options"`
	}
	body, err := e.get(ctx, "/server_info")
	return err == nil && json.Unmarshal(body, &info) == nil && info.Options.BaseID.String() == strconv.Itoa(e.baseID) && info.Options.Epoch.String() == strconv.Itoa(e.epoch)
}

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

// output keeps what Envoy prints.
type output struct {
	mu struct {
		sync.Mutex
		buf bytes.Buffer
	}
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.mu.buf.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.mu.buf.String()
}

// Logs is all that Envoy has printed so far, and the ext_proc server.
func (e *Envoy) Logs() string {
	if e.server != nil {
		return e.output.String() + e.server.Logs()
	}
	return e.output.String()
}

func (e *Envoy) tail() string {
	lines := strings.Split(strings.TrimSpace(e.Logs()), "\n")
	return strings.Join(lines[max(0, len(lines)-25):], "\n")
}

// PID is Envoy's process.
func (e *Envoy) PID() int { return e.pid }

// AdminURL is where its admin interface listens.
func (e *Envoy) AdminURL() string { return "http://" + e.admin }

// Done is closed when Envoy has ended.
func (e *Envoy) Done() <-chan struct{} { return e.done }

// ExitErr is how it ended; valid once Done is closed.
func (e *Envoy) ExitErr() error { return e.exitErr }

// Stop asks Envoy to end, kills it if it does not, waits for it and removes its files. More than
// once is fine. The end of the context that Start was given does not stop it.
func (e *Envoy) Stop() error {
	e.stop.Do(func() {
		if syscall.Kill(e.pid, syscall.SIGTERM) == nil {
			select {
			case <-e.done:
			case <-time.After(stopWithin):
			}
		}
		e.cancel()
		<-e.done
		if e.server != nil {
			e.server.Stop()
		}
		e.remove()
	})
	return nil
}

// Server is the ext_proc server; nil where the face is another.
func (e *Envoy) Server() *Server { return e.server }

func (e *Envoy) remove() {
	e.client.CloseIdleConnections()
	_ = os.RemoveAll(e.dir)
}

// ConfigDump is what Envoy says of its configuration, what came by xDS and the endpoints too.
func (e *Envoy) ConfigDump(ctx context.Context) ([]byte, error) {
	return e.get(ctx, "/config_dump?include_eds")
}

func (e *Envoy) get(ctx context.Context, path string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, e.AdminURL()+path, nil)
	if err != nil {
		return nil, err
	}
	res, err := e.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", path, res.Status)
	}
	return body, err
}

// Addr is host:port of a listener. It panics where there is none of that name: a test is wrong
// then.
func (e *Envoy) Addr(listener string) string {
	e.ports.Lock()
	defer e.ports.Unlock()
	if e.ports.m == nil {
		m, err := e.listeners()
		if err != nil {
			panic(err)
		}
		e.ports.m = m
	}
	addr, ok := e.ports.m[listener]
	if !ok {
		panic(fmt.Sprintf("no listener %s among %v", listener, e.ports.m))
	}
	return addr
}

func (e *Envoy) listeners() (map[string]string, error) {
	body, err := e.get(context.Background(), "/listeners?format=json")
	if err != nil {
		return nil, err
	}
	var answer struct {
		Statuses []struct {
			Name  string `json:"name"`
			Local struct {
				Socket struct {
					Address string `json:"address"`
					Port    int    `json:"port_value"`
				} `json:"socket_address"`
			} `json:"local_address"`
		} `json:"listener_statuses"`
	}
	if err := json.Unmarshal(body, &answer); err != nil {
		return nil, err
	}
	m := map[string]string{}
	for _, s := range answer.Statuses {
		m[s.Name] = net.JoinHostPort(s.Local.Socket.Address, strconv.Itoa(s.Local.Socket.Port))
	}
	return m, nil
}

// Memory is what /memory says, bytes.
type Memory struct {
	Allocated        int64 `json:"allocated,string"`
	HeapSize         int64 `json:"heap_size,string"`
	PageheapUnmapped int64 `json:"pageheap_unmapped,string"`
	PageheapFree     int64 `json:"pageheap_free,string"`
}

// InUse is what the process needs of its container.
func (m Memory) InUse() int64 { return m.HeapSize - m.PageheapUnmapped - m.PageheapFree }

// Memory asks for it.
func (e *Envoy) Memory(ctx context.Context) (m Memory, err error) {
	body, err := e.get(ctx, "/memory")
	if err != nil {
		return m, err
	}
	return m, json.Unmarshal(body, &m)
}

// Stats are counters and gauges whose name matches the expression.
func (e *Envoy) Stats(ctx context.Context, filter string) (map[string]float64, error) {
	body, err := e.get(ctx, "/stats?format=json&filter="+url.QueryEscape(filter))
	if err != nil {
		return nil, err
	}
	var answer struct {
		Stats []struct {
			Name  string   `json:"name"`
			Value *float64 `json:"value"`
		} `json:"stats"`
	}
	if err := json.Unmarshal(body, &answer); err != nil {
		return nil, err
	}
	m := map[string]float64{}
	for _, s := range answer.Stats {
		if s.Value != nil { // histograms have none
			m[s.Name] = *s.Value
		}
	}
	if e.server != nil {
		return m, e.server.addStats(ctx, e.client, filter, m)
	}
	return m, nil
}

// ErrTimeout is returned by Until.
var ErrTimeout = errors.New("it did not come to that in time")

// Until waits until the stats that match the expression satisfy the condition, and returns the last
// ones.
func (e *Envoy) Until(ctx context.Context, filter string, ok func(map[string]float64) bool) (map[string]float64, error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	var last map[string]float64
	for {
		stats, err := e.Stats(ctx, filter)
		if err == nil {
			if last = stats; ok(stats) {
				return stats, nil
			}
		}
		select {
		case <-e.done:
			return last, fmt.Errorf("envoy ended: %w\n%s", e.exitErr, e.tail())
		case <-ctx.Done():
			return last, fmt.Errorf("%w; last: %v", ErrTimeout, last)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// LogMatches says whether Envoy has printed a line that matches.
func (e *Envoy) LogMatches(expression string) bool {
	return regexp.MustCompile(expression).MatchString(e.Logs())
}

// fault is what Envoy logs of a plugin that trapped, or that survived a fault of its own.
var fault = regexp.MustCompile(`(?m)^.*(highwater: a fault|Uncaught|in-VM backtrace|Plugin configured to fail).*$`)

// Faults are the first lines of Envoy's log that tell of a fault of a plugin.
func Faults(log string) []string { return fault.FindAllString(log, 3) }
