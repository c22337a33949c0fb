// Command extproc measures what the ext_proc server costs, beside one that does nothing (grpc-go,
// the server that most people would write), in the same mode of the same Envoy configuration: CPU
// of a request, in Envoy and in the server, and the server's memory with many streams open.
//
//	go run ./bench/extproc -rounds 20 -turn 500ms -streams 10000
//
// Both pairs of Envoy and server run at once and are loaded in short turns, one after the other, so
// that what else the machine does meets both alike. CPU is the processes' own clock.
package main

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"text/tabwriter"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/highwater-envoy/highwater/bench/internal/figures"
	"github.com/highwater-envoy/highwater/internal/envoytest"
	"github.com/highwater-envoy/highwater/internal/load"
	"github.com/highwater-envoy/highwater/internal/process"
)

const noopCommand = "noop"

func main() {
	if len(os.Args) == 2 && os.Args[1] == noopCommand {
		if err := serveNoop(); err != nil {
			fmt.Fprintln(os.Stderr, "extproc:", err)
			os.Exit(1)
		}
		return
	}
	os.Exit(command(os.Args[1:], os.Stdout, os.Stderr))
}

func command(args []string, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("extproc", flag.ContinueOnError)
	flags.SetOutput(stderr)
	rounds := flags.Int("rounds", 20, "turns of each; 0: no CPU")
	turn := flags.Duration("turn", 500*time.Millisecond, "how long a turn lasts")
	streams := flags.Int("streams", 10_000, "streams open at once; 0: no memory")
	if err := flags.Parse(args); err != nil {
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := measure(ctx, *rounds, *turn, *streams, stdout, stderr); err != nil {
		fmt.Fprintln(stderr, "extproc:", err)
		return 1
	}
	return 0
}

// pair is an Envoy and its server.
type pair struct {
	name           string
	envoy          *envoytest.Envoy
	server         int    // pid
	address        string // of the server
	forEnvoy, mine figures.Spread
}

func measure(ctx context.Context, rounds int, turn time.Duration, streams int, stdout, stderr io.Writer) error {
	upstream, err := load.NewUpstream()
	if err != nil {
		return err
	}
	defer upstream.Close()
	pid, address, stop, err := startNoop(ctx)
	if err != nil {
		return err
	}
	defer stop()
	bare := &pair{name: "no-op, grpc-go", server: pid, address: address}
	ours := &pair{name: "highwater serve"}
	for _, p := range []*pair{bare, ours} {
		p.envoy, err = envoytest.Start(ctx, envoytest.Options{
			Face: envoytest.ExtProc, Upstream: upstream.Addr(), Edit: func(c envoytest.Config) {
				if p == bare {
					c.RemoveServer(p.address)
				}
			},
		})
		if err != nil {
			return err
		}
		defer p.envoy.Stop()
	}
	ours.server, ours.address = ours.envoy.Server().PID, ours.envoy.Server().GRPC
	both := []*pair{bare, ours}
	for round := range rounds {
		fmt.Fprintf(stderr, "\rGET of 1 kB: round %d of %d ", round+1, rounds)
		for i := range both {
			if err := both[(i+round)%len(both)].turn(ctx, turn); err != nil {
				return err
			}
		}
	}
	if rounds > 0 {
		fmt.Fprintln(stderr)
		table(stdout, bare, ours)
	}
	if streams > 0 {
		return memory(ctx, streams, both, stdout)
	}
	return nil
}

func (p *pair) turn(ctx context.Context, d time.Duration) error {
	cpus := func() (envoy, server time.Duration, err error) {
		if envoy, err = process.CPU(p.envoy.PID()); err == nil {
			server, err = process.CPU(p.server)
		}
		return envoy, server, err
	}
	envoy, server, err := cpus()
	if err != nil {
		return err
	}
	within, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	l := &load.Downloads{Addr: p.envoy.Addr("ingress"), Clients: 8, Size: 1000}
	l.Run(within)
	envoyAfter, serverAfter, err := cpus()
	if err != nil {
		return err
	}
	s := l.Snapshot()
	if s.Served == 0 || s.Errors+s.Rejected+s.Cut > 0 {
		return fmt.Errorf("%s: a turn that says nothing: %+v", p.name, s)
	}
	p.forEnvoy = append(p.forEnvoy, float64((envoyAfter-envoy).Nanoseconds())/1000/float64(s.Served))
	p.mine = append(p.mine, float64((serverAfter-server).Nanoseconds())/1000/float64(s.Served))
	return ctx.Err()
}

func table(out io.Writer, bare, ours *pair) {
	ratio := func(a, b figures.Spread) (s figures.Spread) {
		for i := range a {
			s = append(s, a[i]/b[i])
		}
		return s
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "GET of 1 kB, µs of CPU a request\tEnvoy: least\tmedian\t÷ no-op (median of pairs)\tserver: least\tmedian\t÷ no-op (median of pairs)")
	for _, p := range []*pair{bare, ours} {
		fmt.Fprintf(w, "%s\t%.0f\t%.0f\t%.3f\t%.1f\t%.1f\t%.2f\n", p.name, p.forEnvoy.Min(), p.forEnvoy.Median(), ratio(p.forEnvoy, bare.forEnvoy).Median(),
			p.mine.Min(), p.mine.Median(), ratio(p.mine, bare.mine).Median())
	}
	_ = w.Flush()
	fmt.Fprintln(out)
}

// startNoop runs the other server in a process of its own.
func startNoop(ctx context.Context) (pid int, address string, stop func(), err error) {
	self, err := os.Executable()
	if err != nil {
		return 0, "", nil, err
	}
	c := exec.CommandContext(ctx, self, noopCommand)
	c.Stderr = os.Stderr
	in, err := c.StdinPipe()
	if err != nil {
		return 0, "", nil, err
	}
	out, err := c.StdoutPipe()
	if err != nil {
		return 0, "", nil, err
	}
	if err := c.Start(); err != nil {
		return 0, "", nil, err
	}
	stop = func() { in.Close(); _ = c.Wait() }
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		stop()
		return 0, "", nil, err
	}
	return c.Process.Pid, strings.TrimSpace(line), stop, nil
}

// memory prints what each server holds with so many streams open, each in the middle of its
// response, on two connections as of two workers.
func memory(ctx context.Context, n int, both []*pair, out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "%d streams open\tRSS before\twith them\tafter\tbytes a stream\n", n)
	for _, p := range both {
		before, err := process.Resident(p.server)
		if err != nil {
			return err
		}
		stop, err := open(ctx, p.address, n)
		if err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		with, most := int64(0), int64(0)
		for range 30 { // the largest of three seconds
			if !load.Sleep(ctx, 100*time.Millisecond) {
				return ctx.Err()
			}
			if with, err = process.Resident(p.server); err != nil {
				return err
			}
			most = max(most, with)
		}
		stop()
		load.Sleep(ctx, 3*time.Second)
		after, err := process.Resident(p.server)
		if err != nil {
			return err
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\n", p.name, figures.Size(float64(before)), figures.Size(float64(most)), figures.Size(float64(after)), (most-before)/int64(n))
	}
	return w.Flush()
}

// open opens streams as Envoy would.
func open(ctx context.Context, address string, n int) (stop func(), err error) {
	const connections = 2
	ctx, cancel := context.WithCancel(ctx)
	var conns []*grpc.ClientConn
	stop = func() {
		cancel()
		for _, c := range conns {
			c.Close()
		}
	}
	headers := func(pairs ...string) *extprocv3.HttpHeaders {
		h := &extprocv3.HttpHeaders{Headers: &corev3.HeaderMap{}, EndOfStream: pairs[0] == ":method"}
		for i := 0; i < len(pairs); i += 2 {
			h.Headers.Headers = append(h.Headers.Headers, &corev3.HeaderValue{Key: pairs[i], RawValue: []byte(pairs[i+1])})
		}
		return h
	}
	attributes, err := structpb.NewStruct(map[string]any{"xds.route_name": "all", "request.protocol": "HTTP/1.1", "connection.id": 7})
	if err != nil {
		return stop, err
	}
	request := &extprocv3.ProcessingRequest{
		Request:        &extprocv3.ProcessingRequest_RequestHeaders{RequestHeaders: headers(":method", "GET", ":path", "/bytes?n=1000000", "content-type", "text/plain")},
		Attributes:     map[string]*structpb.Struct{"envoy.filters.http.ext_proc": attributes},
		ProtocolConfig: &extprocv3.ProtocolConfiguration{},
	}
	response := &extprocv3.ProcessingRequest{Request: &extprocv3.ProcessingRequest_ResponseHeaders{ResponseHeaders: headers(":status", "200", "content-length", "1000")}}
	var all sync.WaitGroup
	failed := make(chan error, connections)
	for range connections {
		c, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			return stop, err
		}
		conns = append(conns, c)
		all.Go(func() {
			for range n / connections {
				s, err := extprocv3.NewExternalProcessorClient(c).Process(ctx)
				for _, m := range []*extprocv3.ProcessingRequest{request, response} {
					if err == nil {
						err = s.Send(m)
					}
					if err == nil {
						_, err = s.Recv()
					}
				}
				if err != nil {
					failed <- err
					return
				}
			}
		})
	}
	all.Wait()
	select {
	case err := <-failed:
		stop()
		return nil, err
	default:
		return stop, nil
	}
}
