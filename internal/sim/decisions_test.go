package sim

import (
	"flag"
	"fmt"
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/budget"
	"github.com/highwater-envoy/highwater/internal/decisions"
	"github.com/highwater-envoy/highwater/internal/guard"
)

// What the policy decides in the random loads is kept, as hashes. A refactoring changes none of
// them. After a change that is meant to change them:
//
//	go test ./internal/sim -run RandomLoads -rewrite
//
// and to see what it changes, run with -decisions DIR before and after it, and compare the two.
var (
	rewrite = flag.Bool("rewrite", false, "keep the hashes of what is decided now")
	texts   = flag.String("decisions", "", "folder for what is decided, as text: megabytes for each load")
)

// sumsOf is how many loads share a hash.
const sumsOf = 10

// recorded runs a load of TestRandomLoads and records what the guard decides.
func recorded(t *testing.T, workers int, s Settings, limit int64, seed uint64, l Load) (r *Report, sum string) {
	t.Helper()
	d, err := decisions.New(*texts, fmt.Sprintf("%d workers, load %d", workers, seed))
	require.NoError(t, err)
	e := New(s, limit, seed)
	n, err := NewNativeOn(decisions.Store{Store: &budget.Memory{}, To: d}, e, valid(t, config(s, limit)), s.Workers)
	require.NoError(t, err)
	n.Decided = d.Add
	e.Use(n)
	r = e.Run(l)
	sum, err = d.Sum()
	require.NoError(t, err)
	return r, sum
}

func valid(t *testing.T, c guard.Config) guard.Config {
	t.Helper()
	require.NoError(t, c.Validate())
	return c
}

// hashed are the hashes of a test's loads, one for each sumsOf of them.
type hashed struct {
	names []string
	sums  map[string]string
	of    *decisions.Record
	n     int
}

func (h *hashed) add(t *testing.T, name, sum string) {
	t.Helper()
	if h.of == nil {
		d, err := decisions.New("", "")
		require.NoError(t, err)
		h.of = d
		h.names = append(h.names, name)
	}
	h.of.Add("%s", sum)
	if h.n++; h.n%sumsOf != 0 {
		return
	}
	all, err := h.of.Sum()
	require.NoError(t, err)
	if h.sums == nil {
		h.sums = map[string]string{}
	}
	h.sums[h.names[len(h.names)-1]] = all
	h.of = nil
}

// check holds them against those that are kept. Where multiplications and additions are fused, sums
// round otherwise: the hashes are those of amd64.
func (h *hashed) check(t *testing.T, workers int) {
	t.Helper()
	kept, err := decisions.ReadSums(fmt.Sprintf("testdata/decisions-%d.sum", workers))
	require.NoError(t, err)
	if *rewrite {
		require.NoError(t, kept.Write(h.sums))
		return
	}
	if runtime.GOARCH != "amd64" {
		return
	}
	compared := 0
	for _, name := range h.names {
		if sum, whole := h.sums[name]; whole && kept.Of(name) != "" {
			compared++
			require.Equal(t, kept.Of(name), sum, "from %s on it decides otherwise than it did: see internal/sim/decisions_test.go", name)
		}
	}
	if *first == 0 { // of a longer run only the first have hashes
		require.NotZero(t, kept.Len(), "no hashes are kept")
		require.GreaterOrEqual(t, compared, min(len(h.sums), kept.Len()), "hashes are missing")
	}
}
