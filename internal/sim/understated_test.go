package sim

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// When buffers understate what Envoy may hold by four, what is let in between two readings is all
// that is not known of: readings and the surprise keep the rest out. What comes all at once is let
// in at a quarter of what it brings: that first burst is shown.
func TestUnderstatedBuffers(t *testing.T) {
	bounded := Defaults()
	bounded.KernelDown = Example().KernelDown
	whole := Example()
	whole.WholeRequest, whole.KernelUp = 4*mib, 64*kib
	// It has a body, and is judged: for one without, all that its response is said to hold would be
	// reserved while memory is calm, and the estimate would not be passed.
	judged := Call{Body: 1, Announce: 1, Response: mib, ReadRate: kib}
	for _, c := range []struct {
		name     string
		settings Settings
		clients  int
		apart    time.Duration
		http2    bool
		call     Call
	}{
		{"uploads", whole, 200, 30 * time.Millisecond, false, Upload(4*mib, 2*time.Second)},
		{"64 KiB buffers", Example(), 1500, 2 * time.Millisecond, false, judged},
		{"1 MiB buffers", bounded, 300, 10 * time.Millisecond, false, Call{Response: 16 * mib, ReadRate: kib}},
		{"16 MiB windows", bounded, 100, 100 * time.Millisecond, true, Call{Response: 32 * mib, ReadRate: kib}},
	} {
		for _, workers := range []int{1, 2, 8} {
			for _, burst := range []bool{false, true} {
				s := c.settings
				s.Workers = workers
				told := s
				told.Downstream, told.Upstream, told.StreamWindow = s.Downstream/4, s.Upstream/4, s.StreamWindow/4
				told.WholeRequest = s.WholeRequest / 4
				apart := c.apart
				if burst {
					apart = 100 * time.Microsecond
				}
				clients := Repeat(c.clients, apart, Client{Class: "hog", Worker: -1, Retry: 20 * time.Millisecond, MakeCall: fixed(c.call)})
				for i := range clients {
					if c.http2 {
						clients[i].HTTP2 = 1 + i
					}
				}
				r, n := runGuard(t, s, 200*mib, config(told, 200*mib), 1, Load{Name: c.name, Clients: append(clients, Small(200)...), Duration: 10 * time.Second})
				t.Logf("%s, %d workers, burst %v: %.2f x; excess %d MiB, from the tenth reading on %d MiB; uncovered %d KiB, surprise %d MiB", c.name, workers, burst,
					float64(r.Peak)/(200*mib), r.Excess/mib, r.LateExcess/mib, r.Uncovered/kib, n.Workers()[0].Account().Table().Surprise/mib)
				require.Empty(t, r.Left)
				if !burst { // one upload each 20 ms on one worker makes 15 %
					require.LessOrEqual(t, r.LateExcess, int64(20*mib))
					require.Positive(t, r.Uncovered, "it understates")
					require.Positive(t, n.Workers()[0].Account().Table().Surprise)
				}
			}
		}
	}
}
