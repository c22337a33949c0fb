package polling

import (
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

const (
	ms  = time.Millisecond
	mib = 1 << 20
)

func TestTheMoreIsUncertainTheMoreReadings(t *testing.T) {
	calm := Figures{Limit: 320 * mib, Free: 160 * mib, Short: 25 * ms, Long: 250 * ms}
	for name, c := range map[string]struct {
		edit  func(*Figures)
		every time.Duration
	}{
		"idle":                              {func(*Figures) {}, 250 * ms},
		"urgent":                            {func(f *Figures) { f.Urgent = true }, 25 * ms},
		"little":                            {func(f *Figures) { f.Fresh, f.Coming = 5*mib, 5*mib }, 250 * ms},
		"much is coming":                    {func(f *Figures) { f.Coming = 11 * mib }, 25 * ms},
		"fresh, with much that is free":     {func(f *Figures) { f.Fresh = 11 * mib }, 50 * ms},
		"fresh, with little that is free":   {func(f *Figures) { f.Fresh = 21 * mib }, 25 * ms},
		"fresh of presumed responses":       {func(f *Figures) { f.Fresh, f.Presumed = 21*mib, true }, 100 * ms},
		"the long interval is short itself": {func(f *Figures) { f.Fresh, f.Long = 11*mib, 30*ms }, 30 * ms},
	} {
		f := calm
		c.edit(&f)
		require.Equal(t, c.every, f.Every(), name)
	}
}

func TestOneReadingIsAskedForAtATime(t *testing.T) {
	var p Poll
	now := time.Hour
	require.False(t, p.Outstanding(now))
	require.True(t, p.Ask(now, 25*ms))
	require.True(t, p.Outstanding(now+Timeout))
	require.False(t, p.Unanswered(now+Timeout-ms))
	require.True(t, p.Unanswered(now+Timeout))
	require.False(t, p.Outstanding(now+Timeout+100*ms), "then it is given up")

	require.Equal(t, now, p.Answer())
	require.Zero(t, p.Answer(), "one answer is enough")
	require.False(t, p.Outstanding(now))
	require.False(t, p.Ask(now+20*ms, 25*ms), "it is not time to")
	require.True(t, p.Ask(now+22*ms, 25*ms), "a tick may come a little early")
	require.Equal(t, 25*ms, p.Every())

	p.Failed(errors.New("broken"))
	require.Error(t, p.Failure())
	p.Failed(nil)
	require.NoError(t, p.Failure())
}
