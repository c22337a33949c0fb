package peak

import (
	"math"
	"strconv"

	"github.com/highwater-envoy/highwater/internal/reservoir"
	"github.com/highwater-envoy/highwater/internal/unit"
	"github.com/highwater-envoy/highwater/internal/wire"
)

// The fields of pprof's profile.proto (github.com/google/pprof/proto) that are written here.
const (
	profileSampleType        field = 1
	profileSample            field = 2
	profileMapping           field = 3
	profileLocation          field = 4
	profileFunction          field = 5
	profileString            field = 6
	profileTime              field = 9
	profilePeriodType        field = 11
	profilePeriod            field = 12
	profileComment           field = 13
	profileDefaultSampleType field = 14

	valueTypeType field = 1
	valueTypeUnit field = 2

	sampleLocation field = 1
	sampleValue    field = 2
	sampleLabel    field = 3

	labelKey     field = 1
	labelText    field = 2
	labelNumber  field = 3
	labelNumUnit field = 4

	mappingID           field = 1
	mappingFile         field = 5
	mappingHasFunctions field = 7

	locationID      field = 1
	locationMapping field = 2
	locationLine    field = 4
	lineFunction    field = 1

	functionID   field = 1
	functionName field = 2
)

// The labels of a sample. There are no others.
const (
	LabelKey      = "key"
	LabelMethod   = "method"
	LabelSource   = "source"
	LabelProtocol = "protocol"
	LabelAge      = "age"    // milliseconds
	LabelWeight   = "weight" // how many requests it stands for, in thousandths: by it `highwater pprof` tells the error
)

// Units of the labels that are numbers.
const (
	UnitAge    = "milliseconds"
	UnitWeight = "thousandths"
)

// field is the number of one. It is written with its kind: a number is 0.
type field uint64

// lengthDelimited is the kind of a text and of a message: they stand behind their length.
const lengthDelimited = 2

// encoder writes a profile.
type encoder struct {
	buf, sub, sub2 []byte
	strings        map[string]int64
	list           []string
	frames         map[string]uint64 // a location and a function for each name, with the same id
	names          []string
}

func (e *encoder) text(s string) int64 {
	n, ok := e.strings[s]
	if !ok {
		n = int64(len(e.list))
		e.strings[s] = n
		e.list = append(e.list, s)
	}
	return n
}

func (e *encoder) frame(name string) uint64 {
	id, ok := e.frames[name]
	if !ok {
		e.names = append(e.names, name)
		id = uint64(len(e.names))
		e.frames[name] = id
	}
	return id
}

func number(b []byte, f field, v uint64) []byte {
	if v == 0 {
		return b
	}
	return wire.AppendShort(wire.AppendShort(b, uint64(f)<<3), v)
}

func message(b []byte, f field, m []byte) []byte {
	return append(wire.AppendShort(wire.AppendShort(b, uint64(f)<<3|lengthDelimited), uint64(len(m))), m...)
}

func (e *encoder) valueType(f field, kind, unitName string) {
	e.sub = number(e.sub[:0], valueTypeType, uint64(e.text(kind)))
	e.sub = number(e.sub, valueTypeUnit, uint64(e.text(unitName)))
	e.buf = message(e.buf, f, e.sub)
}

func (e *encoder) label(key string, text string) {
	if text == "" {
		return
	}
	e.sub2 = number(e.sub2[:0], labelKey, uint64(e.text(key)))
	e.sub2 = number(e.sub2, labelText, uint64(e.text(text)))
	e.sub = message(e.sub, sampleLabel, e.sub2)
}

func (e *encoder) numberLabel(key string, n int64, unitName string) {
	e.sub2 = number(e.sub2[:0], labelKey, uint64(e.text(key)))
	e.sub2 = number(e.sub2, labelNumber, uint64(n))
	e.sub2 = number(e.sub2, labelNumUnit, uint64(e.text(unitName)))
	e.sub = message(e.sub, sampleLabel, e.sub2)
}

// named is a frame of a kind; in Envoy many a route and virtual host have no name.
func named(kind, name string) string {
	if name == "" {
		return "no " + kind
	}
	return kind + " " + Clean(name)
}

// Profile is the peak as pprof reads it, uncompressed. Its samples count requests and the bytes
// that these likely hold, and stand for those that are not sampled too. What is to be seen beside
// (measured, base, unexplained) is in its comments. It is as those of Go's heap: bytes of space are
// sampled, one in so many, and it is of a moment, so that it has no duration. As of now its time is
// now: who scrapes profiles knows them by their time, and drops or refuses those whose time he has
// had.
func Profile(p reservoir.Peak, clock Clock) []byte {
	m := merge(p)
	e := encoder{strings: map[string]int64{}, frames: map[string]uint64{}}
	e.text("") // the first one is empty
	e.valueType(profileSampleType, "requests", "count")
	e.valueType(profileSampleType, "held", "bytes")
	// Requests that a sample stands for are no whole number, and values are: what one is rounded,
	// the next one makes good.
	carry := map[stack]float64{}
	for i := range p.Snapshots {
		s := &p.Snapshots[i]
		for j := range s.Samples {
			x, w := &s.Samples[j], s.Weight(j)
			at := stackOf(x)
			exact := w + carry[at]
			requests := math.Round(exact)
			carry[at] = exact - requests
			e.sample(x, w, whole(requests), whole(w*m.scale.sample(x)))
		}
	}
	e.sub = number(e.sub[:0], mappingID, 1)
	e.sub = number(e.sub, mappingFile, uint64(e.text("envoy")))
	e.sub = number(e.sub, mappingHasFunctions, 1) // there is nothing to look up
	e.buf = message(e.buf, profileMapping, e.sub)
	for i, name := range e.names {
		id := uint64(i + 1)
		e.sub2 = number(e.sub2[:0], lineFunction, id)
		e.sub = number(e.sub[:0], locationID, id)
		e.sub = number(e.sub, locationMapping, 1)
		e.sub = message(e.sub, locationLine, e.sub2)
		e.buf = message(e.buf, profileLocation, e.sub)
		e.sub = number(e.sub[:0], functionID, id)
		e.sub = number(e.sub, functionName, uint64(e.text(name)))
		e.buf = message(e.buf, profileFunction, e.sub)
	}
	at := clock.Wall
	if p.Number > 0 {
		at = clock.nanos(m.first) / 1e6 * 1e6 // the same each time, though both clocks are read again
	}
	e.buf = number(e.buf, profileTime, uint64(at))
	e.valueType(profilePeriodType, "space", "bytes")
	e.buf = number(e.buf, profilePeriod, uint64(m.gap()))
	e.buf = number(e.buf, profileDefaultSampleType, uint64(e.text("held")))
	for _, comment := range m.comments() {
		e.buf = number(e.buf, profileComment, uint64(e.text(comment)))
	}
	for _, text := range e.list {
		e.buf = message(e.buf, profileString, []byte(text))
	}
	return e.buf
}

func (e *encoder) sample(x *reservoir.Sample, weight float64, requests, held int64) {
	e.sub2 = e.sub2[:0]
	l := x.Labels
	for _, name := range [...]string{x.Phase.String(), named("cluster", l.Cluster), named("route", l.Route), named("virtual host", l.VirtualHost)} { // the leaf is first
		e.sub2 = wire.AppendShort(e.sub2, e.frame(name))
	}
	e.sub = message(e.sub[:0], sampleLocation, e.sub2)
	e.sub2 = wire.AppendShort(e.sub2[:0], uint64(requests))
	e.sub2 = wire.AppendShort(e.sub2, uint64(held))
	e.sub = message(e.sub, sampleValue, e.sub2)
	e.label(LabelKey, Clean(l.Key))
	e.label(LabelMethod, Clean(l.Method))
	e.label(LabelSource, Clean(l.Source))
	e.label(LabelProtocol, Clean(l.Protocol))
	e.numberLabel(LabelAge, x.Age.Milliseconds(), UnitAge)
	e.numberLabel(LabelWeight, whole(1000*min(weight, 1e12)), UnitWeight)
	e.buf = message(e.buf, profileSample, e.sub)
}

// comments are what pprof prints above its own answers.
func (m *merged) comments() []string {
	human := func(n int64) string { return unit.Bytes(n).Human() }
	name := "now"
	if m.Number > 0 {
		name = "peak " + strconv.FormatInt(m.Number, 10)
		if m.Highest {
			name += ", the highest"
		}
	}
	limit := ""
	if m.last.Limit > 0 {
		limit = " of " + human(m.last.Limit)
	}
	return []string{
		name + ": in use " + human(m.last.InUse) + limit + ", base " + human(m.last.Base) +
			", likely held by requests " + human(m.held()) + " (at most " + human(m.sum.Bound) + "), no request explains " + human(m.unexplained()),
	}
}
