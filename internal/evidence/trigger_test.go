package evidence

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// What triggers a bundle does so once, as often as the interval lets it; what can't wait does not
// wait for what can.
func TestTriggers(t *testing.T) {
	c := Default()
	calm := State{InUse: 50 * mib, Limit: 200 * mib, Events: 5}
	with := func(change func(s *State)) State { s := calm; change(&s); return s }
	near := with(func(s *State) { s.Left = 20 * time.Second })
	high := with(func(s *State) { s.InUse = 120 * mib })
	higher := with(func(s *State) { s.InUse = 160 * mib })
	events := with(func(s *State) { s.Events = 6 })
	more := with(func(s *State) { s.Events = 7 })
	found := with(func(s *State) { s.Events = 7; s.Found = true })
	var w watch
	for _, step := range []struct {
		at   time.Duration
		s    State
		want Trigger
	}{
		{0, calm, ""}, // events that there were before are none
		{time.Second, high, HighWater},
		{2 * time.Second, high, ""},
		{3 * time.Second, near, ""}, // so soon after another one
		{12 * time.Second, near, NearLimit},
		{13 * time.Second, events, ""},
		{23 * time.Second, events, Events}, // of its kind it is the first one
		{40 * time.Second, more, ""},
		{60 * time.Second, found, ""},
		{5*time.Minute + 22*time.Second, found, ""},
		{5*time.Minute + 23*time.Second, found, Events}, // what can't wait goes first
		{12 * time.Minute, found, ""},
		{13 * time.Minute, with(func(s *State) { s.Events = 7 }), ""},
		{14 * time.Minute, found, Verdict},
		{20 * time.Minute, higher, HighWater},
		{30 * time.Minute, higher, ""},
	} {
		now := noon.Add(step.at)
		trigger, due := w.see(now, c, step.s)
		require.Equal(t, step.want, trigger, "at %v", step.at)
		require.Equal(t, step.want != "", due)
		if due {
			w.took(now)
		}
	}
}
