package coverage

import (
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestCoverageOfBodies(t *testing.T) {
	var c Coverage
	for range EnoughMissed - 1 {
		require.False(t, c.BodyMissed())
		require.True(t, c.SendsBodies(), "a message may have no body")
	}
	require.True(t, c.BodyMissed(), "it is told once")
	require.False(t, c.SendsBodies())
	require.False(t, c.BodyMissed())
	c.BodyCame()
	require.False(t, c.SendsBodies(), "one that was asked for before")

	var sends Coverage
	sends.BodyCame()
	for range 2 * EnoughMissed {
		require.False(t, sends.BodyMissed())
	}
	require.True(t, sends.SendsBodies(), "who has sent one sends them")
}

func TestCoverageOfResponses(t *testing.T) {
	var c Coverage
	now := time.Hour
	for range EnoughSilent - 1 {
		require.False(t, c.ResponseMissed(now))
		require.True(t, c.TellsResponses())
	}
	require.True(t, c.ResponseMissed(now))
	require.False(t, c.TellsResponses())
	require.False(t, c.ResponseMissed(now), "it is told once")
	c.ResponseCame(now)
	require.True(t, c.TellsResponses(), "a single response proves it")
	for range 2 * EnoughSilent {
		require.False(t, c.ResponseMissed(now+giveUpWithin-1))
	}
	require.True(t, c.TellsResponses(), "those are clients that gave up")
	for i := range EnoughSilent {
		require.Equal(t, i == EnoughSilent-1, c.ResponseMissed(now+giveUpWithin))
	}
	require.False(t, c.TellsResponses())
}

// Of those that miss at the same time one is the one that shows it.
func TestCoverageIsShared(t *testing.T) {
	var c Coverage
	var bodies, responses atomic.Int64
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for range EnoughMissed {
				if c.BodyMissed() {
					bodies.Add(1)
				}
				if c.ResponseMissed(time.Hour) {
					responses.Add(1)
				}
			}
		})
	}
	all.Wait()
	require.Equal(t, int64(1), bodies.Load())
	require.Equal(t, int64(1), responses.Load())
}
