package price

import (
	"bufio"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

const (
	kib = int64(1 << 10)
	mib = 1 << 10 * kib
)

// recorded is one reading of a real Envoy with what it had then.
type recorded struct {
	at                                    time.Duration
	reading, bounds, streams, connections int64
}

func series(t *testing.T, name string) (all []recorded) {
	t.Helper()
	file, err := os.Open(filepath.Join("testdata", name+".txt"))
	require.NoError(t, err)
	defer file.Close()
	for lines := bufio.NewScanner(file); lines.Scan(); {
		if strings.HasPrefix(lines.Text(), "#") {
			continue
		}
		var r recorded
		var ms int64
		_, err := fmt.Sscan(lines.Text(), &ms, &r.reading, &r.bounds, &r.streams, &r.connections)
		require.NoError(t, err)
		r.at = time.Duration(ms) * time.Millisecond
		all = append(all, r)
	}
	require.NotEmpty(t, all)
	return all
}

// mean is what the model holds a price to be, known or not.
func (m *Model) mean(i int) float64 { return m.x[first+i] }

func (m *Model) sd(i int) float64 { return math.Sqrt(m.p[first+i][first+i]) }

func percentile(values []float64, p float64) float64 {
	sorted := append([]float64(nil), values...)
	slices.Sort(sorted)
	return sorted[int(p*float64(len(sorted)-1))]
}

// The readings of a real Envoy give prices that agree with what its memory grew by.
func TestRecordedSeries(t *testing.T) {
	for _, test := range []struct {
		name        string
		stock       int // 0 = connections, 1 = the one key
		least, most int64
		innovation  int64 // p99
	}{
		{"tcp-push", 0, mib * 12 / 10, mib * 16 / 10, 5 * mib},
		{"grpc-bidi-2000", 1, 18 * kib, 30 * kib, 5 * mib},
		{"headers-60k", 1, 110 * kib, 200 * kib, 32 * mib}, // rejected requests hold their connections, and 700 of them let go at once
	} {
		t.Run(test.name, func(t *testing.T) {
			m := Model{Matters: 8 * mib}
			var innovations, means []float64
			enough, knownAt := -1, int64(-1)
			all := series(t, test.name)
			for i, r := range all {
				if r.streams == 0 && r.connections <= 3 && i > 2 {
					break // it is over
				}
				without := max(r.connections-r.streams, 0)
				m.Observe(r.at, r.reading, without, 13*kib, r.bounds, []Count{{1, r.streams, 30 * kib}})
				innovations = append(innovations, math.Abs(float64(m.Innovation())))
				means = append(means, m.mean(test.stock))
				n := []int64{without, r.streams}[test.stock]
				if enough < 0 && n >= 100 {
					enough = i
				}
				if _, known := m.inForce(test.stock); known && knownAt < 0 {
					knownAt = n
				}
			}
			last := means[len(means)-1]
			p99 := percentile(innovations, .99)
			t.Logf("after 100: %.0f KiB, at the end %.0f ± %.0f KiB, known at %d; innovation p50 %.1f, p99 %.1f MiB; base %d MiB, noise %.1f, wander %.1f",
				means[enough]/float64(kib), last/float64(kib), m.sd(test.stock)/float64(kib), knownAt, percentile(innovations, .5)/float64(mib), p99/float64(mib), m.Base()/mib, m.noise, m.wander)
			require.InDelta(t, float64(test.least+test.most)/2, last, float64(test.most-test.least)/2)
			require.Less(t, p99, float64(test.innovation))
			if test.name == "tcp-push" {
				require.InEpsilon(t, last, means[enough], .1, "after 100 connections")
				_, known := m.Connection()
				require.True(t, known)
			}
		})
	}
}
