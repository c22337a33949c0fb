package budget

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// A burst that passes between an answer and the tick that judges it is in the totals of the reading
// before it and in the growth of the readings behind it: it would be taken for a surprise eight
// readings long.
func TestABurstBetweenAnAnswerAndItsJudgementIsNoSurprise(t *testing.T) {
	b := open(t, 1)
	a := b.accounts[0]
	s := b.stream(a)
	a.Cover(b.now)
	b.readings(12, 40*mib)
	a.Pass(b.now, s, Request, 12*mib)
	a.Cover(b.now) // published before the next tick
	b.readings(12, 52*mib)
	require.Zero(t, b.stored().Surprise)
}
