package replay

import (
	"context"
	"fmt"

	"github.com/highwater-envoy/highwater/internal/recording"
	"github.com/highwater-envoy/highwater/internal/unit"
)

// Tried is a limit that was tried.
type Tried struct {
	Limit unit.Bytes `json:"limit"`
	Lost  bool       `json:"lost"` // somebody was rejected, evicted or had a connection closed
}

// Found is the smallest limit that rejects nobody.
type Found struct {
	Limit  unit.Bytes `json:"limit"`
	Tried  []Tried    `json:"tried"`
	Result *Result    `json:"-"` // under it
}

// exact is how far the limit that is found may be above the smallest: a hundredth, and a MiB at
// least.
func exact(limit unit.Bytes) unit.Bytes { return max(limit/100, unit.MiB) }

// wholeMiB rounds up.
func wholeMiB(b unit.Bytes) unit.Bytes { return max(b+unit.MiB-1, unit.MiB) / unit.MiB * unit.MiB }

// mostDoubled is how often the first limit is doubled until nobody is rejected.
const mostDoubled = 6

// FindLimit tries limits for a variant, by halves. Its answer is a limit that was tried, and
// rejected nobody. unguarded is the peak without a guard. tell is told of each try, before and
// after.
func FindLimit(ctx context.Context, r *recording.Recording, v Variant, o Options, unguarded unit.Bytes, progress func(limit unit.Bytes, share float64), tell func(Tried)) (*Found, error) {
	f := &Found{}
	try := func(limit unit.Bytes) (lost bool, err error) {
		c := *v.Config
		c.Budget.Limit = unit.Limit{Bytes: limit}
		w := v
		w.Config = &c
		if c.Validate() != nil {
			return true, nil // it may not be set so low
		}
		res, lost, err := run(ctx, r, w, o, func(share float64) { progress(limit, share) }, true)
		if err != nil {
			return false, err
		}
		f.Tried = append(f.Tried, Tried{limit, lost})
		tell(f.Tried[len(f.Tried)-1])
		if !lost {
			f.Limit, f.Result = limit, res
		}
		return lost, nil
	}
	c := *v.Config
	c.Budget.Limit = unit.Limit{Bytes: unit.TiB}
	if err := c.Validate(); err != nil {
		return nil, err
	}
	low, high := unit.Bytes(v.Envoy.settings(o.Machine).Base), wholeMiB(unguarded)
	for n := 0; ; n++ {
		lost, err := try(high)
		if err != nil {
			return nil, err
		}
		if !lost {
			break
		}
		if n == mostDoubled {
			return nil, fmt.Errorf("even a limit of %s rejects somebody: highwater replay without -find-limit says whom and why", high)
		}
		low, high = high, 2*high
	}
	for high-low > exact(high) {
		middle := wholeMiB(low + (high-low)/2)
		if middle >= high {
			break
		}
		lost, err := try(middle)
		if err != nil {
			return nil, err
		}
		if lost {
			low = middle
		} else {
			high = middle
		}
	}
	return f, nil
}
