package heapdump

import (
	"slices"

	"github.com/google/pprof/profile"
)

// Size says how much memory the objects of one size take together.
type Size struct {
	Bytes int64 // of an object, as TCMalloc rounds it up; 0 = all that are larger than the largest
	Live  int64 // bytes of all of them that are in use
}

const labelBytes = "bytes" // of a sample: what Size.Bytes is

// held is what a stack holds.
type held struct {
	objects, bytes int64
}

// weighed are what the stacks of a dump hold.
type weighed struct {
	stacks    []held // as the samples
	sampled   []held // the same before they were corrected
	corrected bool
	unsampled []Size // sizes that no stack is of
}

// weigh returns what the stacks of a dump hold: what the samples say, times what makes their sum
// right for each size.
func weigh(p *profile.Profile, sizes []Size) weighed {
	objects, space := index(p, "objects"), index(p, "space")
	w := weighed{corrected: sizes != nil}
	largest := int64(0)
	exact := map[int64]int64{}
	for _, s := range sizes {
		largest = max(largest, s.Bytes)
		exact[s.Bytes] += max(0, s.Live)
	}
	sizeOf := func(s *profile.Sample) int64 {
		n := s.NumLabel[labelBytes]
		if len(n) != 1 || n[0] <= 0 || n[0] > largest {
			return 0
		}
		return n[0]
	}
	estimates := map[int64]int64{}
	for _, s := range p.Sample {
		h := held{s.Value[objects], s.Value[space]}
		w.sampled = append(w.sampled, h)
		estimates[sizeOf(s)] += h.bytes
	}
	w.stacks = slices.Clone(w.sampled)
	if !w.corrected {
		return w
	}
	for i, s := range p.Sample {
		size := sizeOf(s)
		if estimates[size] == 0 {
			continue
		}
		known := exact[size] // of a size that is not listed nothing is in use
		// Samples of one size only tell how it is shared out among stacks.
		h := &w.stacks[i]
		share := float64(h.bytes) / float64(estimates[size])
		h.bytes = int64(share*float64(known) + 0.5)
		if w.sampled[i].bytes > 0 {
			h.objects = int64(float64(h.objects)*float64(h.bytes)/float64(w.sampled[i].bytes) + 0.5)
		}
	}
	for size, live := range exact {
		if estimates[size] == 0 && live > 0 {
			w.unsampled = append(w.unsampled, Size{size, live})
		}
	}
	slices.SortFunc(w.unsampled, func(a, b Size) int {
		if a.Live != b.Live {
			return int(min(1, max(-1, b.Live-a.Live)))
		}
		return int(min(1, max(-1, a.Bytes-b.Bytes)))
	})
	return w
}
