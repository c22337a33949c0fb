package guard

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/unit"
)

// The plugin that started last sets what all have in common, and it is said what that changes.
func TestThePolicyInForceIsTheLastOne(t *testing.T) {
	var p policy
	c := Default()
	c.Budget.Limit = unit.Limit{Bytes: 200 * unit.MiB}
	require.Empty(t, p.set(&c), "nothing was in force before")
	require.Empty(t, p.set(&c))
	c.Budget.Limit.Bytes = 150 * unit.MiB
	c.Evict = false
	c.Costs.Stream = 0 // is each plugin's own
	require.Equal(t, "budget.limit 200MiB → 150MiB, evict true → false", p.set(&c))
	require.False(t, p.evicts)
}
