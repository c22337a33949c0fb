package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/pprof/profile"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
)

// asMain has this test's own program be highwater, for tests that need a process of its own.
const asMain = "HIGHWATER_TEST_AS_MAIN"

func TestMain(m *testing.M) {
	if os.Getenv(asMain) != "" {
		os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
	}
	goleak.VerifyTestMain(m)
}

func TestServeRefuses(t *testing.T) {
	dir := t.TempDir()
	n := 0
	file := func(text string) string {
		n++
		f := filepath.Join(dir, strconv.Itoa(n)+".yaml")
		require.NoError(t, os.WriteFile(f, []byte(text), 0o600))
		return f
	}
	const good = "budget: {limit: 200MiB}\n"
	pipe := filepath.Join(dir, "pipe")
	require.NoError(t, syscall.Mkfifo(pipe, 0o600))
	for _, c := range []struct {
		args []string
		code int
		want string
	}{
		{nil, 2, "-config"},
		{[]string{"-config", filepath.Join(dir, "none")}, 1, "no such file"},
		{[]string{"-config", dir}, 1, "-config: " + dir + " is a directory"},
		{[]string{"-config", "/dev/zero"}, 1, "-config: /dev/zero is a device, and must be a regular file"},
		{[]string{"-config", pipe}, 1, "-config: " + pipe + " is a pipe, and must be a regular file"},
		{[]string{"-config", file(good + strings.Repeat("# a comment\n", 100_000))}, 1, "is too large: no more than 1MiB is read"},
		{[]string{"-config", file(good + "---\n" + good)}, 1, "it has another document from line 2 on"},
		{[]string{"-config", file("budget: {limit: 200MiB}\nx: 1\n")}, 1, "x: unknown key; known here:"},
		{[]string{"-config", file("budget: {limit: 200MiB, limit: 5}\n")}, 1, "already set"},
		{[]string{"-config", file("budget: {limit: 200MiB, resume: 99%}\nrelease: {threshold: 200%, keep: 5}\n")}, 1, "release.threshold: 200% must be"},
		{[]string{"-config", file("budget: {limit: 200MiB, connections: 7}\n")}, 1, "budget.connections: 7 must be 0 here"},
		{[]string{"-config", file("budget: {limit: 200MiB}\nmemory: {url: ftp://x}\n")}, 1, "memory.url"},
		{[]string{"-config", file("budget: {limit: 200MiB}\ndebug: {path: /highwater}\n")}, 1, "debug.path: \"/highwater\" must be empty here"},
		{[]string{"-config", file(good), "-grpc", "nowhere:x"}, 1, "-grpc"},
		{[]string{"-config", file(good), "-grpc", "127.0.0.1:0", "-http", "nowhere:x"}, 1, "-http"},
		{[]string{"-config", file(good), "-http-hosts", "a:5"}, 2, "without ports"},
		{[]string{"-config", file(good), "-tls-cert", "x"}, 1, "-tls-cert and -tls-key"},
		{[]string{"-config", file(good), "-tls-client-ca", "x"}, 1, "-tls-client-ca"},
		{[]string{"-config", file(good), "-log-level", "loud"}, 2, "log-level"},
	} {
		var errs bytes.Buffer
		require.Equal(t, c.code, run(append([]string{"serve"}, c.args...), nil, io.Discard, &errs), "%v: %s", c.args, errs.String())
		require.Contains(t, errs.String(), c.want)
	}
}

// output is written to by the server while the test reads it.
type output struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

// serving runs the server until the end of the test, and returns its addresses.
func serving(t *testing.T, o settings) (grpc, http string) {
	t.Helper()
	grpc, http, _, _ = servingFile(t, o)
	return grpc, http
}

// servingFile is serving, with the file of its configuration and its log.
func servingFile(t *testing.T, o settings) (grpc, http, file string, log *output) {
	t.Helper()
	admin := httptest.NewServer(handler(`{"allocated":"5","heap_size":"40000000","pageheap_unmapped":"0","pageheap_free":"0"}`))
	t.Cleanup(admin.Close)
	o.config = filepath.Join(t.TempDir(), "config.yaml")
	require.NoError(t, os.WriteFile(o.config, []byte("budget: {limit: 200MiB}\nenvoy: {pid: 4194303}\nmemory: {url: \""+admin.URL+"\"}\n"), 0o600))
	log = &output{}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		// Its error is no other than that of the end that it is told.
		if err := serveUntil(ctx, o, nil, slog.New(slog.NewTextHandler(log, nil))); err != nil {
			_, _ = log.Write([]byte(err.Error()))
		}
	})
	t.Cleanup(func() { cancel(); running.Wait() })
	ready := regexp.MustCompile(`msg=ready grpc=(\S+) http=(\S+)`)
	var m []string
	require.Eventually(t, func() bool { m = ready.FindStringSubmatch(log.String()); return m != nil }, 10*time.Second, time.Millisecond, log.String())
	return m[1], m[2], o.config, log
}

// Whatever comes in place of the configuration, the old one stays, and that is said once; what
// comes after it is read.
func TestServeFollowsAFile(t *testing.T) {
	_, _, file, log := servingFile(t, settings{grpc: "127.0.0.1:0", http: "127.0.0.1:0"})
	good, err := os.ReadFile(file)
	require.NoError(t, err)
	said := func(what string) int { return strings.Count(log.String(), what) }
	const staying = "the old one stays"
	for i, c := range []struct {
		put  func() error
		want string
	}{
		{func() error { return os.WriteFile(file, bytes.Repeat([]byte("# a comment\n"), 1<<20), 0o600) }, "is too large: no more than 1MiB is read"},
		{func() error { return syscall.Mkfifo(file, 0o600) }, "is a pipe, and must be a regular file"},
		{func() error { return os.Symlink("/dev/zero", file) }, "is a device, and must be a regular file"},
		{func() error { return os.Mkdir(file, 0o700) }, "is a directory, and must be a regular file"},
		{func() error { return os.WriteFile(file, append(good, "---\n"...), 0o600) }, "it has another document"},
	} {
		require.NoError(t, os.Remove(file))
		require.NoError(t, c.put())
		require.Eventually(t, func() bool { return said(c.want) == 1 }, 10*time.Second, 10*time.Millisecond, "%s in\n%s", c.want, log)
		time.Sleep(700 * time.Millisecond) // another look at it
		require.Equal(t, 1, said(c.want), "it is said once")
		require.Equal(t, i+1, said(staying))
	}
	require.NoError(t, os.Remove(file))
	require.NoError(t, os.WriteFile(file, bytes.Replace(good, []byte("200MiB"), []byte("100MiB"), 1), 0o600))
	require.Eventually(t, func() bool { return said("msg=\"the configuration is in force\"") == 1 }, 10*time.Second, 10*time.Millisecond)
	require.Contains(t, log.String(), "limit 100MiB")
}

type handler string

func (h handler) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	_, _ = io.WriteString(w, string(h))
}

func healthy(t *testing.T, target string, c credentials.TransportCredentials) error {
	t.Helper()
	conn, err := grpc.NewClient(target, grpc.WithTransportCredentials(c))
	require.NoError(t, err)
	defer conn.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for {
		r, err := healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{Service: "envoy.service.ext_proc.v3.ExternalProcessor"})
		if err != nil || r.GetStatus() == healthpb.HealthCheckResponse_SERVING {
			return err
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func TestServeOnAUnixSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "hw.sock")
	left, err := net.Listen("unix", path)
	require.NoError(t, err)
	left.(*net.UnixListener).SetUnlinkOnClose(false)
	require.NoError(t, left.Close()) // a server that was killed leaves it
	target, web := serving(t, settings{grpc: "unix:" + path, http: "127.0.0.1:0"})
	require.NoError(t, healthy(t, target, insecure.NewCredentials()))
	_, err = listen(t.Context(), "unix:"+path)
	require.Error(t, err, "somebody listens there")
	defer http.DefaultClient.CloseIdleConnections()
	for path, want := range map[string]string{
		"/readyz": "ready", "/memory": `"heap_size":"40000000"`, "/metrics": `highwater_observer_failures_total{what="process"}`, "/status": `"observer": {`,
	} {
		res, err := http.Get("http://" + web + path)
		require.NoError(t, err)
		body, err := io.ReadAll(res.Body)
		require.NoError(t, err)
		require.NoError(t, res.Body.Close())
		require.Equal(t, 200, res.StatusCode, path)
		require.Contains(t, string(body), want)
		if path == "/metrics" {
			problems, err := promlint.New(bytes.NewReader(body)).Lint() // as promtool check metrics does
			require.NoError(t, err)
			require.Empty(t, problems)
		}
	}
}

func TestServeWithTLS(t *testing.T) {
	dir := t.TempDir()
	cert, key := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	require.NoError(t, err)
	secret, err := x509.MarshalECPrivateKey(private)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600))
	require.NoError(t, os.WriteFile(key, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: secret}), 0o600))
	pair, err := tls.LoadX509KeyPair(cert, key)
	require.NoError(t, err)
	roots := x509.NewCertPool()
	parsed, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	roots.AddCert(parsed)

	target, _ := serving(t, settings{grpc: "127.0.0.1:0", http: "127.0.0.1:0", cert: cert, key: key, clientCAs: cert})
	require.NoError(t, healthy(t, target, credentials.NewTLS(&tls.Config{RootCAs: roots, Certificates: []tls.Certificate{pair}})))
	require.Error(t, healthy(t, target, credentials.NewTLS(&tls.Config{RootCAs: roots})), "who has no certificate is not let in")
	require.Error(t, healthy(t, target, insecure.NewCredentials()))
}

// A filter beside the companion answers for its requests itself, and before its first peak it has
// no highest one.
func TestEvidenceOfAFiltersRequests(t *testing.T) {
	var packed bytes.Buffer
	p := &profile.Profile{SampleType: []*profile.ValueType{{Type: "requests", Unit: "count"}}}
	require.NoError(t, p.Write(&packed))
	filter := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/highwater/pprof" || r.URL.Query().Get("peak") != "current" {
			http.Error(w, "there was no peak yet", http.StatusNotFound)
			return
		}
		_, _ = w.Write(packed.Bytes())
	}))
	defer filter.Close()
	list, err := filtersRequests(t.Context(), filter.URL+"/highwater")
	require.NoError(t, err)
	require.Len(t, list, 1)
	require.Equal(t, "current", list[0].Name)
	_, err = profile.ParseUncompressed(list[0].Data)
	require.NoError(t, err)
	_, err = filtersRequests(t.Context(), filter.URL+"/elsewhere")
	require.ErrorContains(t, err, "there was no peak yet")
}
