package extproc

import (
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/guard"
	"github.com/highwater-envoy/highwater/internal/unit"
)

// Whoever switches to mode observe has nothing done to the requests that are there already: those
// that wait go on, and the others are neither evicted nor rejected for what they bring.
func TestReloadToObserve(t *testing.T) {
	edit := func(c *guard.Config) {
		c.Buffers.Downstream, c.Buffers.Upstream = 8*unit.MiB, 8*unit.MiB
		c.Throttle.Timeout = unit.Duration(time.Second)
	}
	s, readings := serve(t, 40*mib, edit)
	uploads, reads, waits := s.dial(t), s.dial(t), s.dial(t)
	uploads.say(request(false))
	uploads.heard()
	reads.say(request(true))
	reads.heard()
	reads.say(response(false, "content-length", "16000000"))
	reads.heard()
	readings.set(172 * mib)
	until(t, func() bool { return s.gauge("in_use_bytes") == 172*mib })
	waits.say(request(false, "content-length", "4000000"))
	until(t, func() bool { return s.gauge("waiting") == 1 })
	s.Reload(config(func(c *guard.Config) { edit(c); c.Mode = guard.Observe }), readings)
	require.NotNil(t, waits.heard().GetRequestHeaders())
	require.Zero(t, s.gauge("waiting"))
	readings.set(230 * mib)
	until(t, func() bool { return s.counter("rejected_total.reason.evicted") > 0 })
	for range 8 {
		uploads.say(requestBody(2*mib, false))
		require.NotNil(t, uploads.heard().GetRequestBody())
	}
	time.Sleep(1200 * time.Millisecond) // beyond throttle.timeout
	for _, c := range []*client{uploads, reads, waits} {
		c.silent()
		c.close()
	}
	readings.set(40 * mib)
	s.drained(t)
}

func TestReloadAndReady(t *testing.T) {
	s, readings := serve(t, 0, nil)
	require.ErrorContains(t, s.Ready(), "no reading")
	readings.set(40 * mib)
	until(t, func() bool { return s.Ready() == nil })
	require.Equal(t, int64(200*mib), s.Limit())
	changed := s.Reload(config(func(c *guard.Config) { c.Budget.Limit = unit.Limit{Bytes: 300 * unit.MiB} }), readings)
	require.NotEmpty(t, changed)
	until(t, func() bool { return s.Limit() == 300*mib })
	readings.set(0)
	until(t, func() bool { return s.Ready() != nil })
}

func TestDrainLetsThoseInWhoWait(t *testing.T) {
	s, readings := serve(t, 40*mib, nil)
	readings.set(178 * mib)
	until(t, func() bool { return s.gauge("in_use_bytes") == 178*mib })
	c := s.dial(t)
	c.say(request(false, "content-length", "16000000"))
	until(t, func() bool { return s.gauge("waiting") == 1 })
	s.Drain()
	require.NotNil(t, c.heard().GetRequestHeaders())
	require.Zero(t, s.gauge("waiting"), "else it is rejected as soon as it would have waited too long")
	require.Error(t, s.Ready())
	late := s.dial(t)
	late.say(request(false, "content-length", "16000000"))
	require.NotNil(t, late.heard().GetRequestHeaders())
	late.close()
	c.close()
	require.Zero(t, s.gauge("streams"))
}

// Streams that come, wait, are answered and go, all at once and at any moment.
func TestHammer(t *testing.T) {
	s, readings := serve(t, 40*mib, func(c *guard.Config) { c.Throttle.Timeout = unit.Duration(20 * time.Millisecond) })
	stop := make(chan struct{})
	var level sync.WaitGroup
	level.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			case <-time.After(5 * time.Millisecond):
				readings.set([]int64{40 * mib, 172 * mib, 230 * mib}[i%3])
			}
		}
	})
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			for j := range 300 {
				c := s.dial(t)
				c.say(request(false, "content-length", []string{"5", "16000000"}[(i+j)%2]))
				if j%3 > 0 {
					select {
					case <-c.answers:
						c.say(response(false, "content-length", "4000000"))
					case <-time.After(time.Duration(j%30) * time.Millisecond):
					}
				}
				c.close()
			}
		})
	}
	all.Wait()
	close(stop)
	level.Wait()
	readings.set(40 * mib)
	s.drained(t)
	require.Zero(t, s.counts.faults.Load())
}
