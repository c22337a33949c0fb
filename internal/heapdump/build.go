package heapdump

import (
	"fmt"
	"slices"
	"time"

	"github.com/google/pprof/profile"
)

// Names of frames that are no functions.
const (
	noClass   = "(no class)"
	unsampled = "(no sample)"
)

// builder makes the profile that people see.
type builder struct {
	p         *profile.Profile
	locations map[string]*profile.Location
}

// build makes the profile of a dump, and its summary.
func build(raw *profile.Profile, w weighed, n names, summary *Summary) *profile.Profile {
	b := &builder{
		p: &profile.Profile{
			SampleType:        []*profile.ValueType{{Type: "objects", Unit: "count"}, {Type: "space", Unit: "bytes"}},
			DefaultSampleType: "space",
			PeriodType:        &profile.ValueType{Type: "space", Unit: "bytes"},
			Period:            SampleEvery,
			TimeNanos:         raw.TimeNanos,
		},
		locations: map[string]*profile.Location{},
	}
	if len(raw.Mapping) > 0 {
		m := raw.Mapping[0]
		b.p.Mapping = []*profile.Mapping{{ID: 1, Start: m.Start, Limit: m.Limit, File: clean(m.File), BuildID: clean(m.BuildID), HasFunctions: true}}
	}
	if raw.TimeNanos > 0 {
		summary.At = time.Unix(0, raw.TimeNanos).UTC()
	}
	summary.Exact = w.corrected
	t := tally{}
	for i, s := range raw.Sample {
		stack := b.stack(s, raw, n)
		h := w.stacks[i]
		summary.Bytes += h.bytes
		t.add(stack, h, w.sampled[i].bytes)
		sample := &profile.Sample{Location: stack.locations, Value: []int64{h.objects, h.bytes}}
		if size := s.NumLabel[labelBytes]; len(size) == 1 {
			sample.NumLabel, sample.NumUnit = map[string][]int64{labelBytes: size}, map[string][]string{labelBytes: {"bytes"}}
		}
		if stack.owner != "" {
			sample.Label = map[string][]string{"class": {stack.owner}}
			summary.Named += h.bytes
		}
		b.p.Sample = append(b.p.Sample, sample)
	}
	for _, s := range w.unsampled {
		name := fmt.Sprintf("objects of %d bytes", s.Bytes)
		if s.Bytes == 0 {
			name = "objects larger than any size class"
		}
		summary.Bytes += s.Live
		summary.Unsampled += s.Live
		objects := int64(1)
		if s.Bytes > 0 {
			objects = s.Live / s.Bytes
		}
		b.p.Sample = append(b.p.Sample, &profile.Sample{
			Location: []*profile.Location{b.location(frame{function: name}), b.location(frame{function: unsampled})},
			Value:    []int64{objects, s.Live},
		})
	}
	summary.Classes = t.largest()
	b.p.Comments = summary.comments()
	return b.p
}

// stack is what is known of a sample's.
type stack struct {
	locations []*profile.Location // the innermost first
	owner     string              // empty = none
	via       []string            // the next classes that called it
}

// maxVia is how many callers of a class are named beside it.
const maxVia = 3

func (b *builder) stack(s *profile.Sample, raw *profile.Profile, n names) stack {
	var st stack
	for _, l := range s.Location {
		f := n[l.ID]
		if f.function == "" {
			continue
		}
		st.locations = append(st.locations, b.location(f))
		switch {
		case f.owner == "" || f.owner == st.owner || slices.Contains(st.via, f.owner):
		case st.owner == "":
			st.owner = f.owner
		case len(st.via) < maxVia:
			st.via = append(st.via, f.owner)
		}
	}
	if len(st.locations) == 0 {
		if name := library(s, raw.Mapping[0]); name != "" {
			st.locations = append(st.locations, b.location(frame{function: clean(name)}))
		}
		st.locations = append(st.locations, b.location(frame{function: noClass}))
	}
	return st
}

// location is that of a function, made at its first use.
func (b *builder) location(f frame) *profile.Location {
	if l, ok := b.locations[f.function]; ok {
		return l
	}
	function := &profile.Function{ID: uint64(len(b.p.Function) + 1), Name: f.function, SystemName: f.function}
	l := &profile.Location{ID: uint64(len(b.p.Location) + 1), Line: []profile.Line{{Function: function}}}
	if len(b.p.Mapping) > 0 && f.start != 0 {
		l.Mapping = b.p.Mapping[0]
	}
	b.p.Function = append(b.p.Function, function)
	b.p.Location = append(b.p.Location, l)
	b.locations[f.function] = l
	return l
}
