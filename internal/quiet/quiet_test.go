package quiet

import (
	"bytes"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// at returns a log whose clock is *now and which writes to the buffer.
func at(now *time.Time) (*Log, *bytes.Buffer) {
	var out bytes.Buffer
	plain := slog.NewTextHandler(&out, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}})
	l := New(slog.New(plain), time.Second)
	l.now = func() time.Time { return *now }
	return l, &out
}

// A flood of lines is one a second, and the next one says how many there were.
func TestOneLineASecond(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	l, out := at(&now)
	for range 3 {
		for range 1000 {
			l.Warn("refused", "from", "10.0.0.1")
			now = now.Add(time.Millisecond)
		}
	}
	l.Warn("refused", "from", "10.0.0.2")
	require.Equal(t, strings.Join([]string{
		`level=WARN msg=refused from=10.0.0.1`,
		`level=WARN msg=refused from=10.0.0.1 suppressed=999`,
		`level=WARN msg=refused from=10.0.0.1 suppressed=999`,
		`level=WARN msg=refused from=10.0.0.2 suppressed=999`,
	}, "\n")+"\n", out.String())
	now = now.Add(time.Hour)
	out.Reset()
	l.Warn("refused", "from", "10.0.0.3")
	require.Equal(t, "level=WARN msg=refused from=10.0.0.3\n", out.String(), "nothing was left out")
}

// The caller's arguments stay as they are, even where their slice has room for more.
func TestArgumentsAreTheCallers(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	l, _ := at(&now)
	args := make([]any, 2, 8)
	args[0], args[1] = "from", "10.0.0.1"
	for range 2 {
		l.Warn("refused", args...)
	}
	now = now.Add(time.Second)
	l.Warn("refused", args...)
	require.Equal(t, []any{"from", "10.0.0.1", nil, nil}, args[:4])
}

// The standard library's lines end with a line feed, may quote what a peer sent, and are bounded.
func TestStandard(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	l, out := at(&now)
	l.Standard().Printf("http: invalid request: %s", strings.Repeat("\xff\n", 10_000))
	require.Equal(t, 1, strings.Count(out.String(), "\n"))
	require.Less(t, out.Len(), 4*longest)
	require.Contains(t, out.String(), "http: invalid request: ")
}

// Nobody who has no log needs to ask whether there is one.
func TestNone(t *testing.T) {
	var l *Log
	l.Warn("nothing")
}

// Each line is written or counted, whoever asks at once.
func TestHammer(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	l, out := at(&now)
	const many, each = 8, 1000
	var running sync.WaitGroup
	for range many {
		running.Go(func() {
			for range each {
				l.Warn("refused")
			}
		})
	}
	running.Wait()
	require.Equal(t, "level=WARN msg=refused\n", out.String())
	now = now.Add(time.Second)
	l.Warn("refused")
	require.Contains(t, out.String(), "suppressed=7999\n")
}
