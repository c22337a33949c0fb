package leak

import (
	"fmt"
	"math"
)

// String says what grows, such as 2.1 MiB a minute: 896-byte objects, about one a request.
func (g Growth) String() string {
	switch {
	case g.Found():
		return aMinute(g.PerMinute) + ": " + g.objects()
	case g.Samples == 0:
		return "not known yet: samples are too few"
	}
	return "none that load does not explain"
}

// objects says which objects, and how many of them for what.
func (g Growth) objects() string {
	each := fmt.Sprintf("%d-byte objects, ", g.Size)
	ratio := g.Objects / max(g.Requests, 1)
	switch {
	case g.Requests < 1 || ratio > 50 || ratio < 0.02: // requests have little to do with it
		return each + fmt.Sprintf("%.0f a minute", g.Objects)
	case ratio >= 0.8 && ratio <= 1.25:
		return each + "about one a request"
	case ratio > 1:
		return each + fmt.Sprintf("about %.2g a request", ratio)
	}
	return each + fmt.Sprintf("about one in %.2g requests", 1/ratio)
}

// String says how much leaks, such as 0.98 MiB a minute over the last 1h.
func (l Leak) String() string {
	if !l.Found() {
		return "none"
	}
	return fmt.Sprintf("%s over the last %.0fh", aMinute(l.PerMinute), math.Round(l.Window.Hours()))
}

func aMinute(bytes float64) string {
	return fmt.Sprintf("%.2g MiB a minute", bytes/mib)
}
