package observer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strings"
	"time"

	"github.com/highwater-envoy/highwater/internal/memory"
)

// admin asks Envoy's admin interface: GET alone, one answer at a time, and not more often than it
// can bear.
type admin struct {
	client  *http.Client
	base    string
	least   time.Duration // between two questions
	longest time.Duration // between two tries, however often it failed

	// Of the one goroutine that asks.
	at      net.Addr  // who was connected to last; nil = nobody yet
	next    time.Time // not before
	failed  int       // times in a row
	failure error     // the last of them; nil = the last one was answered
}

// newClient returns a client for the address, and what paths are put behind.
func newClient(address string) (*http.Client, string, error) {
	transport := &http.Transport{
		Proxy: nil, // whatever the environment says: it is on this machine
		// Few, for admin is one thread's work. They time out, so that nothing is left behind that
		// was asked after the end of Run.
		MaxConnsPerHost: 2, IdleConnTimeout: 5 * time.Second, DisableCompression: true, MaxResponseHeaderBytes: 16 << 10,
	}
	client := &http.Client{
		Transport:     transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	if socket, ok := strings.CutPrefix(address, "unix:"); ok {
		if !strings.HasPrefix(socket, "/") {
			return nil, "", fmt.Errorf("%q must have an absolute path behind unix, such as unix:/run/envoy/admin.sock", address)
		}
		transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		}
		return client, "http://admin", nil
	}
	u, err := url.Parse(address)
	if err != nil || u.Scheme != "http" || u.Host == "" || u.User != nil || u.Path != "" && u.Path != "/" || u.RawQuery != "" || u.Fragment != "" {
		return nil, "", fmt.Errorf("%q must be the address of Envoy's admin interface, such as http://127.0.0.1:9901 or unix:/run/envoy/admin.sock", address)
	}
	return client, "http://" + u.Host, nil
}

const (
	firstRetry  = 100 * time.Millisecond // after a failure; the next one after twice that, and so on
	longestRest = 250 * time.Millisecond
)

// rests says how long the admin is to be left alone.
func (a *admin) rests(now time.Time) time.Duration { return a.next.Sub(now) }

// asked notes when a question was asked and how long its answer took, and sets the pace: one that
// is slow is given as long again to do something else, one that fails is tried less and less often.
func (a *admin) asked(at time.Time, took time.Duration, err error) {
	a.failure = err
	if err == nil {
		a.failed = 0
		a.next = at.Add(max(a.least, took+min(took, longestRest)))
		return
	}
	a.next = at.Add(took + min(firstRetry<<min(a.failed, 20), a.longest))
	a.failed++
}

// get returns the body of the answer, at most so many bytes. The error says what Envoy did, and
// what may help.
func (a *admin) get(ctx context.Context, path string, most int64) ([]byte, error) {
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(c httptrace.GotConnInfo) { a.at = c.Conn.RemoteAddr() }})
	from, err := a.open(ctx, path)
	if err != nil {
		return nil, err
	}
	defer from.Close()
	body, err := io.ReadAll(io.LimitReader(from, most+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("the answer of %s%s broke off: %w", a.base, path, explain(err))
	case int64(len(body)) > most:
		return nil, fmt.Errorf("the answer of %s%s has more than %d bytes", a.base, path, most)
	}
	return body, nil
}

// open asks, and returns the body of an answer that is 200.
func (a *admin) open(ctx context.Context, path string) (io.ReadCloser, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, a.base+path, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("User-Agent", "highwater")
	res, err := a.client.Do(req)
	if err != nil {
		return nil, explain(err)
	}
	if res.StatusCode != http.StatusOK {
		res.Body.Close()
		hint := ""
		if res.StatusCode == http.StatusForbidden {
			hint = " (with admin.allow_paths, the path must be among them)"
		}
		f := memory.StatusFailure(res.StatusCode, "")
		f.Err = fmt.Errorf("%s%s answers %s, not 200%s", a.base, path, res.Status, hint)
		return nil, f
	}
	return res.Body, nil
}

// maxError is how much of an error is kept: who answers in Envoy's place can have much of what it
// says quoted in one.
const maxError = 400

// brief is the error with a text that is not too long, in UTF-8.
func brief(err error) error {
	if err == nil || len(err.Error()) <= maxError {
		return err
	}
	return briefError{err}
}

type briefError struct{ error }

func (e briefError) Error() string {
	return strings.ToValidUTF8(e.error.Error()[:maxError], "\uFFFD") + "..."
}

func (e briefError) Unwrap() error { return e.error }

// explain says what a deadline is.
func explain(err error) error {
	if errors.Is(err, context.DeadlineExceeded) {
		return &memory.Failure{Cause: memory.CauseSlow, Err: fmt.Errorf("no answer in time: %w", err)}
	}
	return &memory.Failure{Cause: memory.CauseUnreachable, Err: err}
}
