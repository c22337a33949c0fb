package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"text/tabwriter"
	"time"

	"github.com/highwater-envoy/highwater/internal/envoytest"
	"github.com/highwater-envoy/highwater/internal/process"
)

// starts prints what the start took, and what is resident after the loads.
func starts(all []*variant, stdout io.Writer) error {
	w := tabwriter.NewWriter(stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "memory\tCPU of the start\tresident, %d workers\n", workers)
	for _, v := range all {
		n, err := process.Resident(v.envoy.PID())
		if err != nil {
			return err
		}
		fmt.Fprintf(w, "%s\t%.2f s\t%.1f MiB\n", v.name, v.start.Seconds(), float64(n)/mib)
	}
	_ = w.Flush()
	fmt.Fprintln(stdout)
	return nil
}

// memory prints what a worker more costs, and what connections and streams hold in an Envoy without
// a filter: the defaults of `costs`.
func memory(ctx context.Context, all []*variant, upstream string, stdout, stderr io.Writer) error {
	w := tabwriter.NewWriter(stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "memory\ta worker more\n")
	for _, v := range all {
		fmt.Fprintf(stderr, "memory of %s\n", v.name)
		var of [2]int64
		var err error
		for i, workers := range []int{1, 5} {
			more := *v
			if err := more.run(ctx, upstream, workers); err != nil {
				return err
			}
			of[i], err = process.Resident(more.envoy.PID())
			if err := more.envoy.Stop(); err != nil {
				return err
			}
			if err != nil {
				return err
			}
		}
		fmt.Fprintf(w, "%s\t%.1f MiB\n", v.name, float64(of[1]-of[0])/4/mib)
	}
	_ = w.Flush()
	fmt.Fprintln(stdout)
	return costs(ctx, upstream, stdout, stderr)
}

// costs opens connections and requests that stay, and prints what one more holds.
func costs(ctx context.Context, upstream string, stdout, stderr io.Writer) error {
	certificate, key, err := selfSigned()
	if err != nil {
		return err
	}
	w := tabwriter.NewWriter(stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "what one more holds\tallocated\tin use\n")
	for _, c := range []struct {
		name string
		tls  bool
		text string // that is sent on each connection
	}{
		{"idle connection", false, ""},
		{"idle TLS connection", true, ""},
		{"connection with a request that waits for its upstream", false, "GET /bytes?n=1&delay=1m HTTP/1.1\r\nhost: test\r\n\r\n"},
		{"TLS connection with such a request", true, "GET /bytes?n=1&delay=1m HTTP/1.1\r\nhost: test\r\n\r\n"},
	} {
		fmt.Fprintf(stderr, "%s\n", c.name)
		allocated, inUse, err := slope(ctx, upstream, func(e *envoytest.Envoy, n int) (io.Closer, error) {
			var held closers
			for range n {
				conn, err := net.Dial("tcp", e.Addr("ingress"))
				if err != nil {
					return held, err
				}
				if c.tls {
					secure := tls.Client(conn, &tls.Config{InsecureSkipVerify: true}) //nolint:gosec // our own, self-signed
					if err := secure.HandshakeContext(ctx); err != nil {
						return held, err
					}
					conn = secure
				}
				held = append(held, conn)
				if _, err := io.WriteString(conn, c.text); err != nil {
					return held, err
				}
			}
			return held, nil
		}, func(config envoytest.Config) {
			config.RemoveGuard()
			if c.tls {
				config.SetTLS(certificate, key)
			}
		})
		if err != nil {
			return err
		}
		fmt.Fprintf(w, "%s\t%.1f KiB\t%.1f KiB\n", c.name, allocated/kib, inUse/kib)
	}
	fmt.Fprintf(stderr, "HTTP/2 stream\n")
	allocated, inUse, err := slope(ctx, upstream, func(e *envoytest.Envoy, n int) (io.Closer, error) {
		ctx, cancel := context.WithCancel(ctx)
		t := &http.Transport{Protocols: &http.Protocols{}}
		t.Protocols.SetUnencryptedHTTP2(true)
		for range n {
			go func() {
				req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+e.Addr("ingress")+"/bytes?n=1&delay=1m", nil)
				if err != nil {
					return
				}
				if res, err := t.RoundTrip(req); err == nil {
					res.Body.Close()
				}
			}()
		}
		return closer(func() { cancel(); t.CloseIdleConnections() }), nil
	}, func(config envoytest.Config) { config.RemoveGuard(); config.SetHTTP2(64*kib, 16*mib, 10000) })
	if err != nil {
		return err
	}
	fmt.Fprintf(w, "HTTP/2 stream that waits for its upstream, with its HTTP/1 connection there\t%.1f KiB\t%.1f KiB\n", allocated/kib, inUse/kib)
	return w.Flush()
}

type closer func()

func (c closer) Close() error { c(); return nil }

type closers []net.Conn

func (c closers) Close() error {
	for _, conn := range c {
		_ = conn.Close()
	}
	return nil
}

// slope is what one more of what open opens holds: of 2,000 more, after a first 500 have warmed
// Envoy up.
func slope(ctx context.Context, upstream string, open func(e *envoytest.Envoy, n int) (io.Closer, error), edit func(envoytest.Config)) (allocated, inUse float64, err error) {
	const few, many = 500, 2500
	e, err := envoytest.Start(ctx, envoytest.Options{Edit: edit, Upstream: upstream, Concurrency: 2})
	if err != nil {
		return 0, 0, err
	}
	defer e.Stop()
	var first envoytest.Memory
	for _, n := range []int{few, many - few} {
		held, err := open(e, n)
		if held != nil {
			defer held.Close()
		}
		if err != nil {
			return 0, 0, err
		}
		m, err := steady(ctx, e)
		if err != nil {
			return 0, 0, err
		}
		if n == few {
			first = m
			continue
		}
		allocated, inUse = float64(m.Allocated-first.Allocated)/(many-few), float64(m.InUse()-first.InUse())/(many-few)
	}
	return allocated, inUse, nil
}

// steady is the memory once it has stood still for half a second.
func steady(ctx context.Context, e *envoytest.Envoy) (envoytest.Memory, error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	var last envoytest.Memory
	for same := 0; same < 10; {
		m, err := e.Memory(ctx)
		if err != nil {
			return m, err
		}
		if d := m.Allocated - last.Allocated; d < 64*kib && d > -64*kib {
			same++
		} else {
			same = 0
		}
		last = m
		select {
		case <-ctx.Done():
			return m, ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
	return last, nil
}

// selfSigned is a certificate for a listener, and its key, in PEM.
func selfSigned() (certificate, key string, err error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return "", "", err
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"test"}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	if err != nil {
		return "", "", err
	}
	text, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return "", "", err
	}
	block := func(kind string, bytes []byte) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: bytes}))
	}
	return block("CERTIFICATE", der), block("PRIVATE KEY", text), nil
}
