package e2e

import (
	"context"
	"encoding/json"
	"flag"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/envoytest"
	"github.com/highwater-envoy/highwater/internal/load"
	"github.com/highwater-envoy/highwater/internal/process"
)

var soaked = flag.String("module", "", "the file of the module that TestSoakOfTheModule loads, in place of build/libhighwater.so")

// Mixed load over HTTP/1, HTTP/2 and TLS with clients that hang up at any moment, memory that is
// short every now and then, configurations that come and go by xDS, some of them refused, and Go's
// collector at work all the time: Envoy lives, in the end nothing is charged, and memory is what it
// was.
func TestSoakOfTheModule(t *testing.T) {
	t.Parallel()
	file := *soaked
	if file != "" {
		var err error
		file, err = filepath.Abs(file)
		require.NoError(t, err)
	}
	p := newControlPlane(t)
	certificate, key := selfSigned(t)
	s := start(t, setup{
		face: envoytest.Module, workers: 2, fake: 40 * mib, module: file, env: []string{"GOGC=10"}, args: []string{"--drain-time-s", "1"},
		plugin: func(cfg map[string]any) { section(cfg, "throttle")["timeout"] = "200ms" },
		edit: func(c envoytest.Config) {
			secure := secured(t, c.Listeners()[0], certificate, key)
			p.edit(c)
			c["static_resources"].(map[string]any)["listeners"] = []any{secure}
		},
	})
	run := func(d time.Duration) {
		ctx, cancel := context.WithTimeout(t.Context(), d)
		defer cancel()
		var running sync.WaitGroup
		inTurns(ctx, &running, abrupt(s.addr))
		var closing []func()
		for i := range 6 {
			c := secureClient(t, i%2 == 0, true)
			closing = append(closing, c.CloseIdleConnections)
			running.Go(func() { overTLS(ctx, c, s.Addr("secure")) })
		}
		for i := 0; ctx.Err() == nil; i++ {
			s.memory.inUse.Store([]int64{40 * mib, 172 * mib, 40 * mib, 230 * mib}[i%4])
			if i%4 == 3 {
				p.set(func(cfg map[string]any) {
					section(cfg, "budget")["limit"] = []string{"200MiB", "190MiB"}[i/4%2]
					section(cfg, "budget")["resume"] = []string{"70%", "70%", "99%"}[i/4%3] // the last is refused
				})
			}
			load.Sleep(ctx, 150*time.Millisecond)
		}
		running.Wait()
		p.set(func(cfg map[string]any) { section(cfg, "budget")["resume"] = "70%" })
		s.memory.inUse.Store(40 * mib)
		s.drained(closing...)
	}
	measure := func() (allocated, ours, resident int64) {
		m, err := s.Memory(t.Context())
		require.NoError(t, err)
		stats, err := s.Stats(t.Context(), "highwater_vm_bytes")
		require.NoError(t, err)
		resident, err = process.Resident(s.PID())
		require.NoError(t, err)
		return m.Allocated, int64(stats["wasmcustom.highwater_vm_bytes"]), resident
	}
	run(min(3*time.Second, *soak)) // everything has been there once
	allocated, ours, resident := measure()
	run(*soak)
	afterAllocated, afterOurs, afterResident := measure()
	stats, err := s.Stats(t.Context(), "highwater")
	require.NoError(t, err)
	t.Logf("Envoy's heap %.1f MiB before, %.1f after; Go's runtime %.1f, %.1f; resident %.1f, %.1f; %v requests admitted",
		float64(allocated)/mib, float64(afterAllocated)/mib, float64(ours)/mib, float64(afterOurs)/mib,
		float64(resident)/mib, float64(afterResident)/mib, stats["wasmcustom.highwater_admitted_total"])
	require.Less(t, afterAllocated, allocated+8*mib)
	require.Less(t, afterOurs, ours+8*mib)
	require.Positive(t, stats["wasmcustom.highwater_throttled_total"])
	s.turnedAway(1)
	require.NotEmpty(t, p.refused.Load(), "the wrong one is refused")
	require.Empty(t, envoytest.Faults(s.Logs()))
	require.NotContains(t, s.Logs(), "DATA RACE")
	require.NoError(t, s.Stop())
	require.NoError(t, s.ExitErr(), "it ends by itself when it is asked to")
}

// secured is a copy of a listener that speaks TLS.
func secured(t *testing.T, l map[string]any, certificate, key string) map[string]any {
	t.Helper()
	text, err := json.Marshal(l)
	require.NoError(t, err)
	other := map[string]any{}
	require.NoError(t, json.Unmarshal(text, &other))
	other["name"] = "secure"
	envoytest.Config{"static_resources": map[string]any{"listeners": []any{other}}}.SetTLS(certificate, key)
	return other
}

// overTLS uploads and downloads, and gives up at any moment half of the time.
func overTLS(ctx context.Context, c *http.Client, addr string) {
	for ctx.Err() == nil {
		patience := time.Minute
		if rand.IntN(2) == 0 {
			patience = time.Duration(rand.IntN(20)) * time.Millisecond
		}
		part, cancel := context.WithTimeout(ctx, patience)
		method, path, body := http.MethodPost, "/upload?delay=10ms", zeros(int64(rand.IntN(2*mib)))
		if rand.IntN(2) == 0 {
			method, path, body = http.MethodGet, "/bytes?n=500000", nil
		}
		req, err := http.NewRequestWithContext(part, method, "https://"+addr+path, body)
		if err == nil {
			var res *http.Response
			if res, err = c.Do(req); err == nil {
				_, _ = io.Copy(io.Discard, res.Body)
				res.Body.Close()
			}
		}
		cancel()
	}
}

// Envoy is told to end while requests wait, some of them paused, and others are under way: it ends
// by itself, and at once.
func TestTheModuleEndsWithEnvoy(t *testing.T) {
	t.Parallel()
	s := start(t, setup{face: envoytest.Module, workers: 2, fake: 40 * mib, plugin: patient})
	download := s.dial("GET /bytes?n=30000000 HTTP/1.1\r\nhost: test\r\n\r\n")
	require.Equal(t, 200, answer(t, download).StatusCode)
	s.reading(full)
	for _, http2 := range []bool{false, true} {
		c := client(t, http2)
		for range 5 {
			go func() {
				if res, err := c.Post(s.url("/upload?delay=0s"), "text/plain", known(zeros(large))); err == nil {
					res.Body.Close()
				}
			}()
		}
	}
	s.waiting(10)
	process, err := os.FindProcess(s.PID())
	require.NoError(t, err)
	require.NoError(t, process.Signal(os.Interrupt))
	select {
	case <-s.Done():
	case <-time.After(10 * time.Second):
		t.Fatal("it does not end")
	}
	require.NoError(t, s.ExitErr())
	require.NotContains(t, s.Logs(), "Caught")
	require.Empty(t, envoytest.Faults(s.Logs()))
}
