// Package apart runs an upstream and the loads in front of it in a process of their own.
//
// A generator that pushes hundreds of MiB a second keeps its own scheduler busy: in one process
// with it small requests that did not even pass Envoy had a p99 of 140 to 450 ms beside 100
// uploads, and Envoy's memory went unsampled for up to a second. In a process of their own the
// bystanders wait for what they are to measure, Envoy and the machine. So who measures (small
// requests, what answers those, the sampler) stays in the parent, and who floods goes here.
//
// The parent writes "run <address>", then "stop"; the child writes the address of its upstream,
// then reports, the last of them when all loads have ended. Its upstream stays until the parent
// closes the pipe, which ends the child.
package apart

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/highwater-envoy/highwater/internal/envoytest"
	"github.com/highwater-envoy/highwater/internal/load"
)

const reportEvery = 100 * time.Millisecond

// report is what a child says, one a line.
type report struct {
	Loads    []load.Snapshot
	Requests int64 // that reached the upstream
	Ended    bool
}

// Child is the process of the loads, seen from its parent.
type Child struct {
	upstream string
	cmd      *exec.Cmd
	in       io.WriteCloser
	ended    chan struct{} // closed when the loads have ended, or the child has
	gone     chan struct{} // closed when the child has
	closed   sync.Once

	mu struct {
		sync.Mutex
		last report
		err  error
	}
}

// Start runs this program again with args, which must lead it to Serve, and waits until its
// upstream listens.
func Start(args ...string) (*Child, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	c := &Child{cmd: exec.Command(self, args...), ended: make(chan struct{}), gone: make(chan struct{})}
	c.cmd.Stderr = os.Stderr
	if c.in, err = c.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := c.cmd.Start(); err != nil {
		return nil, fmt.Errorf("the load's process: %w", err)
	}
	lines := bufio.NewReader(out)
	if c.upstream, err = lines.ReadString('\n'); err != nil {
		_ = c.in.Close()
		return nil, fmt.Errorf("the load's process does not start: %w", errors.Join(err, c.cmd.Wait()))
	}
	c.upstream = strings.TrimSpace(c.upstream)
	go c.listen(lines)
	return c, nil
}

func (c *Child) listen(lines *bufio.Reader) {
	defer close(c.gone)
	ended := sync.OnceFunc(func() { close(c.ended) })
	defer ended()
	decoder := json.NewDecoder(lines)
	for {
		var r report
		err := decoder.Decode(&r)
		c.mu.Lock()
		if err == nil {
			c.mu.last = r
		} else if !errors.Is(err, io.EOF) {
			c.mu.err = err
		}
		c.mu.Unlock()
		if err != nil {
			return
		}
		if r.Ended {
			ended()
		}
	}
}

// Upstream is the address of the child's upstream.
func (c *Child) Upstream() string { return c.upstream }

// Run lets the child run its loads against addr until ctx is done and they have ended. The error
// says why it can't be known what came of them.
func (c *Child) Run(ctx context.Context, addr string) error {
	if _, err := fmt.Fprintln(c.in, "run", addr); err != nil {
		return fmt.Errorf("the load's process: %w", err)
	}
	select {
	case <-c.ended:
	case <-ctx.Done():
		_, _ = fmt.Fprintln(c.in, "stop") // fails if the child is gone, and then ended is closed
		<-c.ended
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.mu.err != nil:
		return fmt.Errorf("the load's process: %w", c.mu.err)
	case !c.mu.last.Ended:
		return errors.New("the load's process ended before its loads did")
	}
	return nil
}

// Snapshot is the latest of the i-th load.
func (c *Child) Snapshot(i int) load.Snapshot {
	c.mu.Lock()
	defer c.mu.Unlock()
	if i >= len(c.mu.last.Loads) {
		return load.Snapshot{}
	}
	return c.mu.last.Loads[i]
}

// Loads are the latest snapshots of all loads.
func (c *Child) Loads() []load.Snapshot {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.mu.last.Loads
}

// Requests is how many requests had reached the child's upstream at its latest report.
func (c *Child) Requests() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.mu.last.Requests
}

// Close ends the child, its upstream and whatever it still does.
func (c *Child) Close() {
	c.closed.Do(func() {
		_ = c.in.Close()
		<-c.gone
		_ = c.cmd.Wait()
	})
}

// Serve is the child: its loads are those that make returns for the address of Envoy's listener.
func Serve(in io.Reader, out io.Writer, loads func(addr string) []load.Load) error {
	// Ctrl-C reaches the whole process group; the parent says when it is time.
	signal.Ignore(os.Interrupt)
	upstream, err := load.NewUpstream()
	if err != nil {
		return err
	}
	defer upstream.Close()
	if _, err := fmt.Fprintln(out, upstream.Addr()); err != nil {
		return err
	}

	commands := make(chan string)
	go func() {
		defer close(commands)
		for s := bufio.NewScanner(in); s.Scan(); {
			commands <- s.Text()
		}
	}()
	command, ok := <-commands
	if !ok {
		return nil // not wanted after all
	}
	addr, ok := strings.CutPrefix(command, "run ")
	if !ok {
		return fmt.Errorf("unknown command %q", command)
	}
	all := loads(addr)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var running sync.WaitGroup
	for _, l := range all {
		running.Go(func() { l.Run(ctx) })
	}
	ended := make(chan struct{})
	go func() { running.Wait(); close(ended) }()

	say := func(last bool) error {
		r := report{Requests: upstream.Total(), Ended: last}
		for _, l := range all {
			r.Loads = append(r.Loads, l.Snapshot())
		}
		return json.NewEncoder(out).Encode(r)
	}
	tick := time.NewTicker(reportEvery)
	defer tick.Stop()
	for {
		select {
		case _, ok := <-commands:
			if cancel(); !ok {
				return nil
			}
		case <-tick.C:
			if err := say(false); err != nil {
				return err
			}
		case <-ended:
			if err := say(true); err != nil {
				return err
			}
			for range commands { // until the parent has done with the upstream
			}
			return nil
		}
	}
}

// Route gives the requests under prefix a route and an upstream of their own, both of that name,
// with the settings of the example's route like and of its upstream.
func Route(c envoytest.Config, like, name, prefix, addr string) error {
	host, text, err := net.SplitHostPort(addr)
	if err != nil {
		return err
	}
	port, err := strconv.Atoi(text)
	if err != nil {
		return err
	}
	copied, err := clone(c.Cluster("upstream"))
	if err != nil {
		return err
	}
	copied["name"] = name
	copied["load_assignment"] = map[string]any{
		"cluster_name": name,
		"endpoints": []any{map[string]any{"lb_endpoints": []any{map[string]any{"endpoint": map[string]any{
			"address": map[string]any{"socket_address": map[string]any{"address": host, "port_value": port}},
		}}}}},
	}
	resources := c["static_resources"].(map[string]any)
	resources["clusters"] = append(resources["clusters"].([]any), copied)

	found := false
	c.SetConnectionManager(func(hcm map[string]any) {
		routes, _ := hcm["route_config"].(map[string]any)
		hosts, _ := routes["virtual_hosts"].([]any)
		for _, h := range hosts {
			if host, ok := h.(map[string]any); ok {
				list, _ := host["routes"].([]any)
				for _, route := range list {
					if route, ok := route.(map[string]any); ok && route["name"] == like {
						own := maps.Clone(route)
						own["name"], own["match"] = name, map[string]any{"prefix": prefix}
						own["route"] = map[string]any{"cluster": name, "timeout": "0s"}
						host["routes"] = append([]any{own}, list...)
						found = true
					}
				}
			}
		}
	})
	if !found {
		return fmt.Errorf("no route %q to copy", like)
	}
	return nil
}

func clone(m map[string]any) (map[string]any, error) {
	text, err := json.Marshal(m)
	if err != nil {
		return nil, err
	}
	out := map[string]any{}
	return out, json.Unmarshal(text, &out)
}
