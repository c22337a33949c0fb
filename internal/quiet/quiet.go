// Package quiet logs what a peer can cause. Whoever can reach a port can cause a line for each
// connection; a log that takes them all fills the disk and hides the rest. So a Log writes one line
// in a while, and says with it how many it left out.
package quiet

import (
	"io"
	"log"
	"log/slog"
	"strings"
	"sync"
	"time"
)

// Log writes at most one line in each interval. Make it with New. It is safe for concurrent use,
// and so is nil: it writes nothing.
type Log struct {
	log   *slog.Logger
	every time.Duration
	now   func() time.Time

	mu struct {
		sync.Mutex
		next    time.Time // when a line may be written again
		skipped uint64    // since the last line
	}
}

// New returns a Log that writes to log, at most one line in every.
func New(log *slog.Logger, every time.Duration) *Log {
	return &Log{log: log, every: every, now: time.Now}
}

// Warn writes a line, or counts it. The line after those that were left out has their number as the
// attribute "suppressed".
func (l *Log) Warn(msg string, args ...any) {
	if l == nil {
		return
	}
	skipped, ok := l.turn()
	if !ok {
		return
	}
	if skipped > 0 {
		args = append(args[:len(args):len(args)], "suppressed", skipped)
	}
	l.log.Warn(msg, args...)
}

// turn says whether a line may be written now, and how many were left out before it.
func (l *Log) turn() (skipped uint64, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	if now.Before(l.mu.next) {
		l.mu.skipped++
		return 0, false
	}
	skipped, l.mu.skipped = l.mu.skipped, 0
	l.mu.next = now.Add(l.every)
	return skipped, true
}

// longest is how much of a line is written: what a peer sent may be quoted in it.
const longest = 512

// Standard returns a logger of the standard library whose lines are warnings of l, for servers that
// take no other: http.Server.ErrorLog.
func (l *Log) Standard() *log.Logger { return log.New(writer{l}, "", 0) }

type writer struct{ log *Log }

var _ io.Writer = writer{}

// Write implements io.Writer. It is called once for each line.
func (w writer) Write(line []byte) (int, error) {
	text := line[:min(len(line), longest)]
	w.log.Warn(strings.ToValidUTF8(strings.TrimSpace(string(text)), "\uFFFD"))
	return len(line), nil
}
