package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/highwater-envoy/highwater/extproc"
	"github.com/highwater-envoy/highwater/internal/adminhttp"
	"github.com/highwater-envoy/highwater/internal/evidence"
	"github.com/highwater-envoy/highwater/internal/guard"
	"github.com/highwater-envoy/highwater/internal/input"
	"github.com/highwater-envoy/highwater/internal/observer"
	"github.com/highwater-envoy/highwater/internal/profiles"
	"github.com/highwater-envoy/highwater/internal/version"
)

const serveUsage = `highwater serve: the guard beside Envoy, for its ext_proc filter

  highwater serve -config FILE [-grpc 127.0.0.1:9002 | unix:PATH] [-http 127.0.0.1:9003] [-http-hosts NAMES]

SIGTERM ends it: requests that wait go on, and Envoy goes on without it. SIGHUP, or a change of FILE, has the
configuration read again; one that is wrong is refused, and the old one stays.

`

// stopWithin is how long it takes to end at most.
const stopWithin = 7 * time.Second

// settings are the flags of serve.
type settings struct {
	config, grpc, http   string
	hosts                []string
	cert, key, clientCAs string
	level                slog.Level
}

func serve(args []string, stderr io.Writer) int {
	var o settings
	flags := flag.NewFlagSet("highwater serve", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Usage = func() {
		fmt.Fprint(stderr, serveUsage)
		flags.PrintDefaults()
	}
	flags.StringVar(&o.config, "config", "", "the configuration, YAML or JSON")
	flags.StringVar(&o.grpc, "grpc", "127.0.0.1:9002", "where Envoy's ext_proc filter finds it: host:port, or unix:PATH")
	flags.StringVar(&o.http, "http", "127.0.0.1:9003", "where /metrics, /status and the like are answered; empty: nowhere")
	flags.Func("http-hosts", "`names` with commas between them that HTTP requests may be for, beside localhost and the address of -http", func(list string) (err error) {
		o.hosts, err = adminhttp.Hosts(list)
		return err
	})
	flags.StringVar(&o.cert, "tls-cert", "", "certificate of the gRPC server, PEM")
	flags.StringVar(&o.key, "tls-key", "", "and its key")
	flags.StringVar(&o.clientCAs, "tls-client-ca", "", "only clients with a certificate of one of these authorities, PEM")
	flags.TextVar(&o.level, "log-level", slog.LevelInfo, "debug, info, warn or error")
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		return 2
	case flags.NArg() > 0 || o.config == "":
		flags.Usage()
		return 2
	}
	if os.Getenv("GOGC") == "" {
		// A quarter of Go's default: what peers may hold is bounded, and garbage beside it is too.
		// On a busy machine four connections that sent bombs took 120 MiB at 50, and 56 at 25.
		debug.SetGCPercent(25)
	}
	log := slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: o.level}))
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	defer signal.Stop(hangup)
	if err := serveUntil(ctx, o, hangup, log); err != nil {
		fmt.Fprintf(stderr, "highwater serve: %v\n", err)
		return 1
	}
	return 0
}

// served is a configuration in force, with what goes with it.
type served struct {
	text     []byte
	guard    guard.Config
	observer observer.Config
}

const defaultAdmin = "http://127.0.0.1:9901"

// parseServed reads what the server is to do.
func parseServed(text []byte) (served, error) {
	c := served{text: text, observer: observer.Default()}
	asJSON, err := input.JSON(text, maxConfig)
	if err != nil {
		return c, err
	}
	if c.guard, err = guard.ParseWith(asJSON, &c.observer); err != nil {
		return c, err
	}
	if n := c.guard.Budget.Connections; n != 0 {
		return c, fmt.Errorf("budget.connections: %d must be 0 here: an ext_proc filter tells of no connections. Envoy limits them itself: "+
			"overload_manager with envoy.resource_monitors.global_downstream_max_connections, or the network filter envoy.filters.network.connection_limit", n)
	}
	if path := c.guard.Debug.Path; path != "" {
		return c, fmt.Errorf("debug.path: %q must be empty here: that is where a filter answers, and this server does at /peaks, /current and /debug/pprof/highwater of -http", path)
	}
	if c.guard.Memory.URL == "" {
		c.guard.Memory.URL = defaultAdmin
	}
	return c, nil
}

// app is the running server.
type app struct {
	log    *slog.Logger
	server *extproc.Server
	report *reporter

	observed struct { // the observer, which a configuration may replace
		sync.Mutex
		*observer.Observer
		stop func()
	}
}

func serveUntil(ctx context.Context, o settings, hangup <-chan os.Signal, log *slog.Logger) error {
	text, err := input.ReadRegular(o.config, maxConfig)
	if err != nil {
		return fmt.Errorf("-config: %w", err)
	}
	config, err := parseServed(text)
	if err != nil {
		return fmt.Errorf("%s is refused:\n%w", o.config, err)
	}
	secured, err := o.tls()
	if err != nil {
		return err
	}
	a := &app{log: log}
	var limit atomic.Pointer[extproc.Server] // the observer is there before the server
	watch, err := a.newObserver(config, &limit)
	if err != nil {
		return fmt.Errorf("%s is refused:\n%w", o.config, err)
	}
	if a.server, err = extproc.New(config.guard, watch, log); err != nil {
		return err
	}
	limit.Store(a.server)
	extproc.LogGRPC(log)
	g := extproc.NewGRPC(a.server, secured)
	registry := a.server.Registry(g)
	registry.MustRegister(figures{a})
	mux := a.server.Admin(registry, func() any { return a.watching().Status() })
	mux.HandleFunc("GET /memory", func(w http.ResponseWriter, r *http.Request) { a.watching().Memory().ServeHTTP(w, r) })
	mux.Handle("GET /debug/heap", a.heapInTurn())

	grpcListener, err := listen(ctx, o.grpc)
	if err != nil {
		return fmt.Errorf("-grpc: %w", err)
	}
	defer grpcListener.Close()
	var httpListener net.Listener
	if o.http != "" {
		if httpListener, err = listen(ctx, o.http); err != nil {
			return fmt.Errorf("-http: %w", err)
		}
		defer httpListener.Close()
	}

	a.report = &reporter{server: a.server, observed: func() observer.Status { return a.watching().Status() }}
	a.report.follow(config)
	mux.Handle("GET /report", adminhttp.Share(a.report))

	// What is running ends in this order: streams, then what they need.
	policy, stopPolicy := context.WithCancel(context.WithoutCancel(ctx))
	defer stopPolicy()
	var running sync.WaitGroup
	failed := make(chan error, 2)
	a.start(watch)
	running.Go(func() { a.server.Run(policy) })
	running.Go(func() { a.report.run(policy) })
	running.Go(func() {
		if err := g.Serve(grpcListener); err != nil {
			failed <- fmt.Errorf("-grpc: %w", err)
		}
	})
	admin := adminhttp.New(mux, o.http, o.hosts, log)
	if httpListener != nil {
		running.Go(func() {
			if err := admin.Serve(adminhttp.Bounded(httpListener)); !errors.Is(err, http.ErrServerClosed) {
				failed <- fmt.Errorf("-http: %w", err)
			}
		})
		log.Info("ready", "grpc", address(grpcListener), "http", address(httpListener), "version", version.String(), "face", "ext_proc", "configuration", config.guard.Summary())
	} else {
		log.Info("ready", "grpc", address(grpcListener), "version", version.String(), "face", "ext_proc", "configuration", config.guard.Summary())
	}

	err = a.follow(ctx, o.config, config, hangup, failed, g)
	log.Info("stopping: requests that wait go on, and Envoy without us")
	within, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopWithin)
	defer cancel()
	g.Shutdown(within)
	stopPolicy()
	if admin.Shutdown(within) != nil {
		_ = admin.Close()
	}
	a.start(nil)
	running.Wait()
	return err
}

// follow reads the configuration again when it is told to, or when the file has changed, until ctx
// ends or something fails.
func (a *app) follow(ctx context.Context, file string, config served, hangup <-chan os.Signal, failed <-chan error, g *extproc.GRPC) error {
	look := time.NewTicker(500 * time.Millisecond)
	defer look.Stop()
	unread := "" // why the file can't be read, as it was told last
	for {
		told := false
		select {
		case <-ctx.Done():
			return nil
		case err := <-failed:
			return err
		case <-hangup:
			told = true
		case <-look.C:
			g.SetServing(a.server.Ready() == nil)
		}
		text, err := input.ReadRegular(file, maxConfig)
		switch {
		case err != nil && !told && (errors.Is(err, fs.ErrNotExist) || err.Error() == unread):
			// It is gone for a moment while it is replaced, or this has been said.
		case err != nil:
			unread = err.Error()
			a.log.Error("the configuration can't be read; the old one stays", "file", file, "error", err)
		case !told && bytes.Equal(text, config.text):
			unread = ""
		default:
			unread = ""
			config = a.reload(file, text, config)
		}
	}
}

// reload puts another configuration in force, or says why not. Either way it returns with the text
// that was looked at last.
func (a *app) reload(file string, text []byte, old served) served {
	config, err := parseServed(text)
	refused := func(err error) served {
		a.log.Error("the new configuration is refused, and the old one stays", "file", file, "error", err)
		old.text = text
		return old
	}
	if err != nil {
		return refused(err)
	}
	watch := a.watching()
	m, was := config.guard.Memory, old.guard.Memory
	if config.observer != old.observer || m.URL != was.URL || m.Path != was.Path || m.Interval != was.Interval {
		var p atomic.Pointer[extproc.Server]
		p.Store(a.server)
		if watch, err = a.newObserver(config, &p); err != nil {
			return refused(err)
		}
		a.start(watch)
		a.report.follow(config)
	}
	if changed := a.server.Reload(config.guard, watch); changed != "" {
		a.log.Warn("settings have changed: " + changed)
	}
	a.log.Info("the configuration is in force", "file", file, "version", version.String(), "configuration", config.guard.Summary())
	return config
}

func (a *app) newObserver(c served, server *atomic.Pointer[extproc.Server]) (*observer.Observer, error) {
	return observer.New(observer.Options{
		Config: c.observer, URL: c.guard.Memory.URL, Path: c.guard.Memory.Path, Interval: time.Duration(c.guard.Memory.Interval), Log: a.log, Told: true,
		Limit: func() int64 {
			if s := server.Load(); s != nil {
				return s.Limit()
			}
			return 0
		},
		Requests: func(ctx context.Context) ([]evidence.Profile, error) {
			if from := c.observer.Evidence.Requests; from != "" {
				return filtersRequests(ctx, from)
			}
			return requests(ctx, server.Load())
		},
	})
}

// requests are the profiles that go into evidence: of those in flight, and at the highest peak. A
// server that guards nothing has none to show, and says so.
func requests(ctx context.Context, s *extproc.Server) (list []evidence.Profile, err error) {
	if s == nil {
		return nil, errors.New("the server is starting")
	}
	for _, which := range []string{"current", "highest"} {
		if data, is := s.Profile(ctx, which); is {
			list = append(list, evidence.Profile{Name: which, Data: data})
		}
	}
	return list, nil
}

// filtersRequests are the same of a filter's, which answers for itself at its debug.path. It has no
// highest peak before the first. The error says why there is neither.
func filtersRequests(ctx context.Context, from string) (list []evidence.Profile, err error) {
	var errs []error
	for _, which := range []string{"current", "highest"} {
		data, err := read(ctx, from, which)
		if err == nil {
			data, err = profiles.Unpack(data) // a bundle packs it again
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s of %s: %w", which, from, err))
			continue
		}
		list = append(list, evidence.Profile{Name: which, Data: data})
	}
	if len(list) == 0 {
		err = errors.Join(errs...)
	}
	return list, err
}

// start lets an observer run in place of the one before; nil = none.
func (a *app) start(w *observer.Observer) {
	a.observed.Lock()
	defer a.observed.Unlock()
	if a.observed.stop != nil {
		a.observed.stop()
		a.observed.stop = nil
	}
	if w == nil {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		w.Run(ctx)
	}()
	a.observed.Observer, a.observed.stop = w, func() { cancel(); <-ended }
}

func (a *app) watching() *observer.Observer {
	a.observed.Lock()
	defer a.observed.Unlock()
	return a.observed.Observer
}

// figures are the observer's metrics.
type figures struct{ app *app }

// Describe implements prometheus.Collector. What is not known is left out, so that nothing can be
// said before.
func (figures) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (f figures) Collect(out chan<- prometheus.Metric) {
	for _, m := range f.app.watching().Status().Figures() {
		out <- extproc.Metric(m.Metric, m.Value)
	}
}

// listen listens on host:port or on a Unix socket, which takes the place of one that nobody listens
// on any more.
func listen(ctx context.Context, address string) (net.Listener, error) {
	path, unix := strings.CutPrefix(address, "unix:")
	if !unix {
		// A peer whose machine is gone says nothing: its requests must not be counted for ever.
		config := net.ListenConfig{KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 10 * time.Second, Interval: 5 * time.Second, Count: 3}}
		return config.Listen(ctx, "tcp", address)
	}
	var config net.ListenConfig
	l, err := config.Listen(ctx, "unix", path)
	if errors.Is(err, syscall.EADDRINUSE) {
		if c, dialled := (&net.Dialer{Timeout: time.Second}).DialContext(ctx, "unix", path); dialled == nil {
			c.Close()
			return nil, err
		}
		if info, statErr := os.Lstat(path); statErr == nil && info.Mode()&fs.ModeSocket != 0 && os.Remove(path) == nil {
			l, err = config.Listen(ctx, "unix", path)
		}
	}
	return l, err
}

func address(l net.Listener) string {
	if l.Addr().Network() == "unix" {
		return "unix:" + l.Addr().String()
	}
	return l.Addr().String()
}

// tls is what the flags say of it, nil = none.
func (o *settings) tls() (*tls.Config, error) {
	if o.cert == "" && o.key == "" {
		if o.clientCAs != "" {
			return nil, errors.New("-tls-client-ca: needs -tls-cert and -tls-key")
		}
		return nil, nil
	}
	if o.cert == "" || o.key == "" {
		return nil, errors.New("-tls-cert and -tls-key: one needs the other")
	}
	if _, err := tls.LoadX509KeyPair(o.cert, o.key); err != nil {
		return nil, fmt.Errorf("-tls-cert, -tls-key: %w", err)
	}
	c := &tls.Config{
		MinVersion: tls.VersionTLS12, NextProtos: []string{"h2"},
		// Read at each handshake: certificates are renewed in place. Connections are few and live
		// long.
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			pair, err := tls.LoadX509KeyPair(o.cert, o.key)
			return &pair, err
		},
	}
	if o.clientCAs != "" {
		text, err := os.ReadFile(o.clientCAs)
		if err != nil {
			return nil, fmt.Errorf("-tls-client-ca: %w", err)
		}
		c.ClientCAs = x509.NewCertPool()
		if !c.ClientCAs.AppendCertsFromPEM(text) {
			return nil, fmt.Errorf("-tls-client-ca: %s has no certificate", o.clientCAs)
		}
		c.ClientAuth = tls.RequireAndVerifyClientCert
	}
	return c, nil
}
