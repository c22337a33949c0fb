package idle

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

const ms = time.Millisecond

type connection struct {
	Use[connection]
	name string
}

func list(names ...string) (l *List[connection], all []*connection) {
	l = &List[connection]{}
	l.Init()
	for i, name := range names {
		c := &connection{name: name}
		c.Begin(0, c)
		l.End(time.Duration(i)*ms, &c.Use, true)
		all = append(all, c)
	}
	return l, all
}

func (l *List[T]) all() (n int) {
	for u := l.ring.behind; u != &l.ring; u = u.behind {
		n++
	}
	return n
}

func TestTheLongestIdleIsFirst(t *testing.T) {
	l, all := list("a", "b", "c")
	require.Nil(t, l.First(99*ms, 100*ms), "nobody for so long")
	require.Equal(t, "a", l.First(100*ms, 100*ms).name)
	l.Touch(100*ms, &all[0].Use)
	require.Equal(t, "b", l.First(200*ms, 100*ms).name)
	all[1].Begin(200*ms, all[1])
	require.Equal(t, 1, all[1].Requests())
	require.Equal(t, "c", l.First(200*ms, 100*ms).name)
	l.Postpone(&all[2].Use)
	require.Equal(t, "a", l.First(200*ms, 100*ms).name)
	all[0].Leave()
	all[0].Leave()
	l.Touch(300*ms, &all[0].Use)
	require.Equal(t, 1, l.all(), "who has left stays away")
}

func TestOnlyWithoutRequests(t *testing.T) {
	l, _ := list()
	c := &connection{}
	c.Begin(0, c)
	c.Begin(0, c)
	l.End(0, &c.Use, true)
	require.Zero(t, l.all())
	l.End(0, &c.Use, false)
	require.Zero(t, l.all(), "nor one that is to be closed anyway")
}

// Who has paused before is not closed in a pause of the same length, but no pause is longer than 10
// s.
func TestPauses(t *testing.T) {
	l, all := list("a")
	c := all[0]
	require.False(t, c.Pauses(0))
	c.Begin(500*ms, c)
	l.End(500*ms, &c.Use, true)
	require.True(t, c.Pauses(2499*ms))
	require.False(t, c.Pauses(2500*ms))
	c.Begin(time.Hour, c)
	l.End(time.Hour, &c.Use, true)
	require.True(t, c.Pauses(time.Hour+9999*ms))
	require.False(t, c.Pauses(time.Hour+10*time.Second))
}

func TestAWorkerThatIsBehindTakesNobodyForIdle(t *testing.T) {
	l, _ := list()
	l.Tick(time.Hour, time.Second)
	require.Equal(t, time.Second, l.Tick(time.Hour+25*ms, time.Second))
	require.Equal(t, 5*time.Second, l.Tick(time.Hour+525*ms, time.Second))
}

func TestSomeAreVerified(t *testing.T) {
	l, all := list("a")
	raw := &connection{}
	require.True(t, l.Verifies(&raw.Use), "each before its first request counts")
	n := 0
	for range 4 * VerifyEvery {
		if l.Verifies(&all[0].Use) {
			n++
		}
	}
	require.Equal(t, 4, n)
	require.False(t, l.Mistaken())
	l.Mistake()
	require.True(t, l.Mistaken())
}
