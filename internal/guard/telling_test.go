package guard

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/budget"
	"github.com/highwater-envoy/highwater/internal/unit"
)

func TestEachChangeIsToldOnce(t *testing.T) {
	var l telling
	l.later("first")
	require.Equal(t, "first", l.next())
	require.Empty(t, l.next())

	p := policy{limits: &budget.Limits{Share: .8}}
	p.budget.Limit = unit.Limit{Share: .8}
	require.Contains(t, l.limit(&p), "does not tell")
	require.Empty(t, l.limit(&p))
	p.limits = &budget.Limits{Limit: 100 * mib}
	require.Contains(t, l.limit(&p), "100")
	require.Empty(t, l.limit(&p))
}

// A level that swings is told once a second, and then as it is.
func TestALevelThatSwings(t *testing.T) {
	var l telling
	limits, table := &budget.Limits{Limit: 100 * mib}, &budget.Table{}
	level := func(now Time, level budget.Level) string { return l.level(now, level, 90*mib, limits, table) }
	now := time.Hour
	require.Empty(t, level(now, budget.Normal))
	require.Contains(t, level(now, budget.Hard), "level hard, was normal: in use 90")
	require.Empty(t, level(now+500*ms, budget.Soft))
	require.Empty(t, level(now+toldEvery, budget.Hard), "it is back where it was")
	require.Contains(t, level(now+toldEvery, budget.Soft), "level soft, was hard")
}
