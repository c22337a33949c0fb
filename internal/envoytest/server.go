package envoytest

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"sync"
	"syscall"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/highwater-envoy/highwater/internal/envoybin"
)

// Server is `highwater serve`, a process of its own.
type Server struct {
	GRPC, HTTP string // host:port
	PID        int
	file       string // its configuration
	args       []string
	binary     string
	output     output
	mu         struct {
		sync.Mutex
		command *exec.Cmd
		exited  chan struct{} // closed when it has
		err     error         // valid then
	}
}

// nobody is a process that there is not: what is outside of Envoy's heap is not looked at, for the
// tests of a machine share it.
const nobody = 1<<22 - 1

// addServer puts the configuration of the server, which is that of the example, beside Envoy's.
func (e *Envoy) addServer(c Config, o Options) error {
	root, err := envoybin.ModuleRoot()
	if err != nil {
		return err
	}
	text, err := os.ReadFile(filepath.Join(root, "examples", "highwater.yaml"))
	if err != nil {
		return err
	}
	m := map[string]any{}
	if err := yaml.Unmarshal(text, &m); err != nil {
		return fmt.Errorf("the server's configuration: %w", err)
	}
	m["memory"] = map[string]any{"url": e.AdminURL()}
	m["envoy"] = map[string]any{"pid": nobody}
	m["release"] = map[string]any{"pressure_file": filepath.Join(e.dir, "pressure"), "pulse_file": filepath.Join(e.dir, "pulse")}
	c[serverKey] = m
	walk(c["overload_manager"], func(m map[string]any) {
		if file, ok := m["filename"].(string); ok {
			m["filename"] = filepath.Join(e.dir, filepath.Base(file))
		}
	})
	return nil
}

var ready = regexp.MustCompile(`msg=ready grpc=(\S+) http=(\S+)`)

// startServer returns when it listens, on free ports.
func startServer(ctx context.Context, dir string, config map[string]any, args []string) (*Server, error) {
	root, err := envoybin.ModuleRoot()
	if err != nil {
		return nil, err
	}
	s := &Server{binary: filepath.Join(root, "build", "highwater"), file: filepath.Join(dir, "highwater.yaml")}
	if err := s.Configure(config); err != nil {
		return nil, err
	}
	s.args = append([]string{"serve", "-config", s.file}, args...)
	return s, s.start(ctx, "127.0.0.1:0", "127.0.0.1:0")
}

// Configure writes another configuration, which a running server reads.
func (s *Server) Configure(config map[string]any) error {
	text, err := yaml.Marshal(config)
	if err != nil {
		return err
	}
	next := s.file + ".new"
	if err := os.WriteFile(next, text, 0o600); err != nil {
		return err
	}
	return os.Rename(next, s.file)
}

func (s *Server) start(ctx context.Context, grpc, http string) error {
	command := exec.Command(s.binary, append(slices.Clone(s.args), "-grpc", grpc, "-http", http)...) //nolint:noctx // it outlives the caller's
	pipe, err := command.StderrPipe()
	if err != nil {
		return err
	}
	if err := command.Start(); err != nil {
		return err
	}
	exited, listens := make(chan struct{}), make(chan []string, 1)
	s.mu.Lock()
	s.mu.command, s.mu.exited = command, exited
	s.mu.Unlock()
	go func() {
		lines := bufio.NewReader(pipe)
		for {
			line, err := lines.ReadString('\n')
			_, _ = io.WriteString(&s.output, line)
			if m := ready.FindStringSubmatch(line); m != nil {
				listens <- m
			}
			if err != nil {
				break
			}
		}
		err := command.Wait()
		s.mu.Lock()
		s.mu.err = err
		s.mu.Unlock()
		close(exited)
	}()
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	select {
	case m := <-listens:
		s.GRPC, s.HTTP, s.PID = m[1], m[2], command.Process.Pid
		return nil
	case <-exited:
		return fmt.Errorf("the ext_proc server ended before it was ready:\n%s", s.Logs())
	case <-ctx.Done():
		s.Stop()
		return fmt.Errorf("the ext_proc server is not ready: %w\n%s", ctx.Err(), s.Logs())
	}
}

// Restart starts it again, on the ports that it had, after Kill or Stop.
func (s *Server) Restart(ctx context.Context) error { return s.start(ctx, s.GRPC, s.HTTP) }

// Logs is what it has printed so far.
func (s *Server) Logs() string { return s.output.String() }

// Signal sends it a signal.
func (s *Server) Signal(signal os.Signal) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mu.command.Process.Signal(signal)
}

// Kill ends it without a word, and waits for that.
func (s *Server) Kill() {
	_ = s.Signal(os.Kill)
	<-s.exit()
}

func (s *Server) exit() chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mu.exited
}

// ErrKilled is what Stop returns where it had to.
var ErrKilled = errors.New("the ext_proc server did not end when asked to, and was killed")

// Stop asks it to end, kills it if it does not within 12 s, and waits for it. The error says how it
// ended, nil = with 0.
func (s *Server) Stop() error {
	_ = s.Signal(syscall.SIGCONT)
	_ = s.Signal(syscall.SIGTERM)
	select {
	case <-s.exit():
	case <-time.After(12 * time.Second):
		s.Kill()
		return ErrKilled
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mu.err
}

// addStats adds the guard's metrics, under the names that the plugin's have in Envoy.
func (s *Server) addStats(ctx context.Context, client *http.Client, filter string, m map[string]float64) error {
	matches, err := regexp.Compile(filter)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.HTTP+"/status", nil)
	if err != nil {
		return err
	}
	res, err := client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	var status struct {
		Gauges   map[string]float64 `json:"gauges"`
		Counters map[string]float64 `json:"counters"`
	}
	if err := json.NewDecoder(res.Body).Decode(&status); err != nil {
		return fmt.Errorf("the server's status: %w", err)
	}
	for _, all := range []map[string]float64{status.Gauges, status.Counters} {
		for name, v := range all {
			if name = "wasmcustom." + name; matches.MatchString(name) {
				m[name] = v
			}
		}
	}
	return nil
}

// has says whether there is a cluster of that name.
func (c Config) has(cluster string) bool {
	return slices.ContainsFunc(c.Clusters(), func(m map[string]any) bool { return m["name"] == cluster })
}
