package observer

import (
	"bytes"
	"context"
	"errors"
	"iter"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// Buffered is what Envoy's own gauges say of its buffers, bytes: rx is read and not yet passed on,
// tx not yet written.
type Buffered struct {
	DownstreamRx int64 `json:"downstream_rx"`
	DownstreamTx int64 `json:"downstream_tx"`
	UpstreamRx   int64 `json:"upstream_rx"`
	UpstreamTx   int64 `json:"upstream_tx"`
	PendingSend  int64 `json:"pending_send"` // HTTP/2 data that waits for a window, in either direction
}

func (b Buffered) byName() iter.Seq2[string, int64] {
	return func(yield func(string, int64) bool) {
		_ = yield("downstream_rx", b.DownstreamRx) && yield("downstream_tx", b.DownstreamTx) &&
			yield("upstream_rx", b.UpstreamRx) && yield("upstream_tx", b.UpstreamTx) && yield("pending_send", b.PendingSend)
	}
}

const (
	buffersEvery = time.Second
	buffersShare = 20 // Envoy's main thread, which has to look at each of its gauges, is to spend 1/20 of its time on this at most
	buffersMost  = 30 * time.Second
	maxStats     = 4 << 20
	statsTimeout = 5 * time.Second
)

var statsPath = "/stats?type=Gauges&usedonly&filter=" + url.QueryEscape(`(_cx_[rt]x_bytes_buffered|http2\.pending_send_bytes)$`)

func (o *Observer) pollBuffers(ctx context.Context) {
	for {
		now := time.Now()
		b, err := o.askBuffers(ctx)
		if ctx.Err() != nil {
			return
		}
		took := time.Since(now)
		o.stats.asked(now, took, err)
		o.mu.Lock()
		o.mu.buffered = b // without an answer nothing is known
		o.note(FaultBuffers, err)
		o.mu.Unlock()
		select {
		case <-ctx.Done():
			return
		case <-time.After(max(buffersEvery, min(buffersShare*took, buffersMost), o.stats.rests(time.Now()))):
		}
	}
}

func (o *Observer) askBuffers(ctx context.Context) (Buffered, error) {
	ctx, cancel := context.WithTimeout(ctx, statsTimeout)
	defer cancel()
	text, err := o.stats.get(ctx, statsPath, maxStats)
	if err != nil {
		return Buffered{}, brief(err)
	}
	return parseBuffers(text)
}

// parseBuffers sums the lines of /stats in its plain form, name: value.
func parseBuffers(text []byte) (b Buffered, err error) {
	for line := range bytes.Lines(text) {
		line = bytes.TrimSpace(line)
		if len(line) == 0 {
			continue
		}
		at := bytes.LastIndex(line, []byte(": ")) // a cluster's name may have anything in it
		if at < 0 {
			return Buffered{}, errNotStats
		}
		n, err := strconv.ParseInt(string(line[at+2:]), 10, 64)
		if err != nil || n < 0 || n > 1<<50 {
			return Buffered{}, errNotStats
		}
		switch name := string(line[:at]); {
		case strings.HasSuffix(name, ".downstream_cx_rx_bytes_buffered"):
			b.DownstreamRx += n
		case strings.HasSuffix(name, ".downstream_cx_tx_bytes_buffered"):
			b.DownstreamTx += n
		case strings.HasSuffix(name, ".upstream_cx_rx_bytes_buffered"):
			b.UpstreamRx += n
		case strings.HasSuffix(name, ".upstream_cx_tx_bytes_buffered"):
			b.UpstreamTx += n
		case strings.HasSuffix(name, "http2.pending_send_bytes"):
			b.PendingSend += n
		}
	}
	return b, nil
}

var errNotStats = errors.New("not the answer of /stats: a line is not name: value")
