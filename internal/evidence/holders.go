package evidence

import (
	"cmp"
	"compress/gzip"
	"errors"
	"io"
	"slices"
	"strings"

	"github.com/google/pprof/profile"
)

// Holder is who holds memory: a kind of requests, by their route or what else tells them apart.
type Holder struct {
	Name     string
	Held     int64 // bytes, likely
	Requests int64
}

// maxHolders are named.
const maxHolders = 20

// holders sums a profile of requests up by what tells them apart.
func holders(data []byte) ([]Holder, error) {
	p, err := profile.ParseUncompressed(data)
	if err != nil {
		return nil, err
	}
	requests, held := -1, -1
	for i, t := range p.SampleType {
		switch t.Type {
		case "requests":
			requests = i
		case "held":
			held = i
		}
	}
	if requests < 0 || held < 0 {
		return nil, errors.New("not a profile of requests")
	}
	sums := map[string]*Holder{}
	for _, s := range p.Sample {
		name := nameOf(s)
		if sums[name] == nil {
			sums[name] = &Holder{Name: name}
		}
		sums[name].Held += s.Value[held]
		sums[name].Requests += s.Value[requests]
	}
	list := []Holder{}
	for _, h := range sums {
		list = append(list, *h)
	}
	slices.SortFunc(list, func(a, b Holder) int { return cmp.Or(cmp.Compare(b.Held, a.Held), strings.Compare(a.Name, b.Name)) })
	return list[:min(len(list), maxHolders)], nil
}

// nameOf is a sample's stack, from its root.
func nameOf(s *profile.Sample) string {
	var names []string
	for _, l := range slices.Backward(s.Location) {
		for _, line := range slices.Backward(l.Line) {
			if line.Function != nil {
				names = append(names, line.Function.Name)
			}
		}
	}
	return strings.Join(names, " › ")
}

// zipped writes a profile as pprof's tools expect it in a file.
func zipped(w io.Writer, data []byte) error {
	z := gzip.NewWriter(w)
	if _, err := z.Write(data); err != nil {
		return err
	}
	return z.Close()
}
