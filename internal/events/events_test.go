package events

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/budget"
	"github.com/highwater-envoy/highwater/internal/unit"
)

const mib = 1 << 20

func TestEachChangeIsToldOnce(t *testing.T) {
	var l Log
	l.Later("first")
	require.Equal(t, "first", l.Next())
	require.Empty(t, l.Next())

	limits := &budget.Limits{Share: .8}
	limit := func() string { return l.Limit(unit.Limit{Share: .8}, limits, "/memory") }
	require.Contains(t, limit(), "does not tell")
	require.Empty(t, limit())
	limits = &budget.Limits{Limit: 100 * mib}
	require.Contains(t, limit(), "100")
	require.Empty(t, limit())
}

// A level that swings is told once a second, and then as it is.
func TestALevelThatSwings(t *testing.T) {
	var l Log
	limits, table := &budget.Limits{Limit: 100 * mib}, &budget.Table{}
	level := func(now time.Duration, level budget.Level) string { return l.Level(now, level, 90*mib, limits, table) }
	now := time.Hour
	require.Empty(t, level(now, budget.Normal))
	require.Contains(t, level(now, budget.Hard), "level hard, was normal: in use 90")
	require.Empty(t, level(now+500*time.Millisecond, budget.Soft))
	require.Empty(t, level(now+toldEvery, budget.Hard), "it is back where it was")
	require.Contains(t, level(now+toldEvery, budget.Soft), "level soft, was hard")
}
