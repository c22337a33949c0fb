//go:build !race

package guard

import (
	"flag"
	"fmt"
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/budget"
	"github.com/highwater-envoy/highwater/internal/decisions"
)

// The one promise: as long as buffers tell the truth, reading + fresh + coming is never less than
// the memory in use, and no admission exceeds what there is room for, whatever clients and
// upstreams do, and however readings come. One goroutine does it all: the race detector has nothing
// to find here, and takes sixteen times as long, so that `make test` runs this without it.
func TestEstimateIsNeverBelowTheTruth(t *testing.T) {
	seen, sums := map[string]int{}, map[string]string{}
	defer func() { t.Log(seen) }()
	for _, workers := range []int{1, 2, 8} {
		for i, s := range settings {
			t.Run(fmt.Sprintf("%d workers, %s", workers, s.name), func(t *testing.T) {
				name := fmt.Sprintf("%d workers, %s", workers, s.name)
				record, err := decisions.New(*texts, "sequences, "+name)
				require.NoError(t, err)
				for seed := range uint64(20) {
					p := newProcessOn(t, decisions.Store{Store: &budget.Memory{}, To: record}, workers, s.edit)
					e := newEnvoyOn(p, random(100*seed+uint64(10*i+workers), 6000))
					e.record = record
					e.run()
					for name, n := range e.seen {
						seen[name] += n
					}
				}
				sums[name], err = record.Sum()
				require.NoError(t, err)
			})
		}
	}
	kept, err := decisions.ReadSums("testdata/decisions.sum")
	require.NoError(t, err)
	switch {
	case *rewriteSums:
		require.NoError(t, kept.Write(sums))
	case runtime.GOARCH == "amd64": // others fuse multiplications and additions, and round otherwise
		for name, sum := range sums {
			require.Equal(t, kept.Of(name), sum, "%s: it decides otherwise than it did", name)
		}
	}
}

// What is decided in the random sequences is kept, as hashes, as that in the random loads of
// internal/sim is: a refactoring changes none.
var (
	rewriteSums = flag.Bool("rewrite-sums", false, "keep the hashes of what is decided now in the random sequences")
	texts       = flag.String("decisions", "", "folder for what is decided in the random sequences, as text")
)
