package reservoir

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
)

// Phase of a stream.
type Phase uint8

// The phases.
const (
	Paused      Phase = iota // in line, or turned away: what it has sent lies unread
	Uploading                // its request has not ended
	Waiting                  // for its upstream's response
	Downloading              // its response has begun, or has ended and is not read yet
	NumPhases
)

// String returns paused, uploading, waiting or downloading.
func (p Phase) String() string {
	return [...]string{"paused", "uploading", "waiting", "downloading"}[min(p, NumPhases-1)]
}

// MaxLabel is the length of a label in bytes; what is beyond is not kept.
const MaxLabel = 128

// Labels say whose a stream is. Empty is not known, or not there.
type Labels struct {
	VirtualHost string
	Route       string
	Cluster     string
	Method      string
	Key         string // by which requests are told apart (fairness.by)
	Source      string // address of the client, without its port
	Protocol    string // such as HTTP/1.1
}

const numLabels = 7

func (l *Labels) all() [numLabels]*string {
	return [numLabels]*string{&l.VirtualHost, &l.Route, &l.Cluster, &l.Method, &l.Key, &l.Source, &l.Protocol}
}

// Cut cuts each label to MaxLabel bytes. What is cut off is not kept alive.
func (l *Labels) Cut() {
	for _, s := range l.all() {
		if len(*s) > MaxLabel {
			*s = string([]byte((*s)[:MaxLabel]))
		}
	}
}

// Sample is one stream of a snapshot, or what an ended response left unread on its connection.
// Sizes are bytes.
type Sample struct {
	Labels   *Labels
	Phase    Phase
	Age      Time
	Request  int64   // the most that it can hold of its request
	Response int64   // and of its response
	Likely   int64   // what it likely holds of both
	Reach    int64   // the most that it ever came to: by it the sample was drawn
	Rank     float64 // see the function
}

// Totals are exact: of all streams, sampled or not. Sizes are bytes.
type Totals struct {
	Streams     int64
	Connections int64
	Likely      int64            // what all streams likely hold
	Bound       int64            // and the most that they can
	Phases      [NumPhases]int64 // of what they likely hold
	PhaseBounds [NumPhases]int64
}

// Snapshot is the sample of one worker, frozen. Sizes are bytes.
type Snapshot struct {
	Worker    uint32
	Episode   int64 // see Marks; 0 = it is for no mark
	Epoch     int64
	At        Time
	Level     uint8
	Limit     int64 // 0 = none is known
	InUse     int64 // the last reading
	Allocated int64 // what the program had asked for, as of that
	Base      int64 // what the process holds without traffic
	Gap       float64
	Totals    Totals
	Samples   []Sample
}

// Weight is how many streams a sample of the snapshot stands for.
func (s *Snapshot) Weight(i int) float64 { return Weight(s.Samples[i].Reach, s.Gap) }

// thin takes the sample down to what it is at twice the gap.
func (s *Snapshot) thin() {
	s.Gap *= 2
	s.Samples = slices.DeleteFunc(s.Samples, func(x Sample) bool { return !(x.Rank >= s.Gap) })
}

const (
	snapshotMagic = 0x31505748 // "HWP1": a changed layout needs a new one
	// MaxSnapshot is the size of an encoded snapshot, bytes, at most.
	MaxSnapshot = 64 << 10
	headFields  = 22
	headBytes   = 4 + 8*headFields
)

func (s *Snapshot) head() [headFields]int64 {
	t := &s.Totals
	return [headFields]int64{
		int64(s.Worker), s.Episode, s.Epoch, int64(s.At), int64(s.Level), s.Limit, s.InUse, s.Allocated, s.Base, int64(math.Float64bits(s.Gap)),
		t.Streams, t.Connections, t.Likely, t.Bound, t.Phases[Paused], t.Phases[Uploading], t.Phases[Waiting], t.Phases[Downloading],
		t.PhaseBounds[Paused], t.PhaseBounds[Uploading], t.PhaseBounds[Waiting], t.PhaseBounds[Downloading],
	}
}

func (s *Snapshot) setHead(f [headFields]int64) {
	*s = Snapshot{
		Worker: uint32(f[0]), Episode: f[1], Epoch: f[2], At: Time(f[3]), Level: uint8(f[4]), Limit: f[5], InUse: f[6], Allocated: f[7], Base: f[8],
		Gap: math.Float64frombits(uint64(f[9])),
		Totals: Totals{
			Streams: f[10], Connections: f[11], Likely: f[12], Bound: f[13],
			Phases: [NumPhases]int64{f[14], f[15], f[16], f[17]}, PhaseBounds: [NumPhases]int64{f[18], f[19], f[20], f[21]},
		},
	}
}

// Encoder encodes snapshots. The zero value is ready; to use it again saves its memory.
type Encoder struct {
	strings map[string]uint64
}

// Append encodes the snapshot behind buf, in MaxSnapshot bytes at most: where it is larger, its gap
// is doubled, and those that no longer reach it go, until it is not.
func (e *Encoder) Append(buf []byte, s *Snapshot) []byte {
	begin := len(buf)
	for {
		buf = e.append(buf[:begin], s)
		if len(buf)-begin <= MaxSnapshot {
			return buf
		}
		s.thin()
	}
}

const keepStrings = 256

// append writes the head, the texts that occur, each once, and the samples, which name texts by
// number.
func (e *Encoder) append(buf []byte, s *Snapshot) []byte {
	if e.strings == nil || len(e.strings) > keepStrings {
		e.strings = map[string]uint64{} // one that was large once is not kept
	}
	clear(e.strings)
	le := binary.LittleEndian
	buf = le.AppendUint32(buf, snapshotMagic)
	for _, v := range s.head() {
		buf = le.AppendUint64(buf, uint64(v))
	}
	buf = binary.AppendUvarint(buf, uint64(len(s.Samples)))
	for i := range s.Samples {
		x := &s.Samples[i]
		for _, text := range x.Labels.all() {
			n, ok := e.strings[*text]
			if !ok {
				// The first time it follows here: so the decoder needs one pass too.
				n = uint64(len(e.strings))
				e.strings[*text] = n
				buf = binary.AppendUvarint(buf, n)
				buf = binary.AppendUvarint(buf, uint64(len(*text)))
				buf = append(buf, *text...)
				continue
			}
			buf = binary.AppendUvarint(buf, n)
		}
		buf = append(buf, byte(x.Phase))
		for _, v := range [...]int64{int64(x.Age), x.Request, x.Response, x.Likely, x.Reach} {
			buf = binary.AppendUvarint(buf, uint64(v))
		}
		buf = le.AppendUint64(buf, math.Float64bits(x.Rank))
	}
	return buf
}

// AtOf is when an encoded snapshot was frozen; false if it is none.
func AtOf(value []byte) (Time, bool) {
	if len(value) < headBytes || binary.LittleEndian.Uint32(value) != snapshotMagic {
		return 0, false
	}
	return Time(binary.LittleEndian.Uint64(value[4+8*3:])), true
}

// ErrSnapshot is wrapped by errors of Decode: the value is not a snapshot of this version.
var ErrSnapshot = errors.New("not a snapshot of requests")

// Decode reads what Append wrote. The error wraps ErrSnapshot; then the snapshot is empty.
func Decode(value []byte) (Snapshot, error) {
	var s Snapshot
	le := binary.LittleEndian
	if len(value) < headBytes || len(value) > MaxSnapshot || le.Uint32(value) != snapshotMagic {
		return s, fmt.Errorf("%w: %d bytes with another beginning", ErrSnapshot, len(value))
	}
	var fields [headFields]int64
	for i := range fields {
		fields[i] = int64(le.Uint64(value[4+8*i:]))
	}
	s.setHead(fields)
	r := reader{rest: value[headBytes:]}
	n := r.number()
	if n > uint64(len(r.rest))/sampleBytes || !(s.Gap > 0 && s.Gap <= maxGap) {
		return Snapshot{}, fmt.Errorf("%w: %d samples in %d bytes, gap %v", ErrSnapshot, n, len(r.rest), s.Gap)
	}
	for _, v := range s.sizes() {
		if v < -maxSize || v > maxSize {
			return Snapshot{}, fmt.Errorf("%w: %d is no size", ErrSnapshot, v)
		}
	}
	if s.At < -maxTime || s.At > maxTime {
		return Snapshot{}, fmt.Errorf("%w: %d is no time", ErrSnapshot, s.At)
	}
	s.Samples = make([]Sample, n)
	var texts []string
	labels := make([]Labels, n)
	for i := range s.Samples {
		s.Samples[i].Labels = &labels[i]
		r.sample(&s.Samples[i], &texts)
	}
	if r.failed || len(r.rest) > 0 {
		return Snapshot{}, fmt.Errorf("%w: cut short, or something follows", ErrSnapshot)
	}
	return s, nil
}

const (
	// maxSize is more than a process can hold, bytes, and maxTime longer than any machine lives:
	// what is added up of sizes, or of the difference of two times, overflows nothing.
	maxSize      = 1 << 50
	maxTime Time = 1 << 60
	// maxGap is more than any Count finds: with it the weight of one byte is no infinity.
	maxGap = 1 << 100
)

// sizes are all of the head that are added up with those of other workers, or held against each
// other.
func (s *Snapshot) sizes() []int64 {
	h := s.head()
	return append(h[10:], s.Limit, s.InUse, s.Allocated, s.Base)
}

// sampleBytes is the least that a sample takes.
const sampleBytes = numLabels + 1 + 5 + 8

type reader struct {
	rest   []byte
	failed bool
}

func (r *reader) fail() {
	r.rest, r.failed = nil, true
}

func (r *reader) number() uint64 {
	v, n := binary.Uvarint(r.rest)
	if n <= 0 {
		r.fail()
		return 0
	}
	r.rest = r.rest[n:]
	return v
}

func (r *reader) bytes(n uint64) []byte {
	if n > uint64(len(r.rest)) {
		r.fail()
		return nil
	}
	b := r.rest[:n]
	r.rest = r.rest[n:]
	return b
}

func (r *reader) sample(x *Sample, texts *[]string) {
	for _, text := range x.Labels.all() {
		switch n := r.number(); {
		case r.failed:
			return
		case n < uint64(len(*texts)):
			*text = (*texts)[n]
		case n == uint64(len(*texts)):
			*text = string(r.bytes(r.number()))
			*texts = append(*texts, *text)
		default:
			r.fail()
			return
		}
	}
	x.Labels.Cut()
	phase := r.bytes(1)
	var sizes [5]int64
	for i := range sizes {
		most := uint64(maxSize)
		if i == 0 {
			most = uint64(maxTime)
		}
		if v := r.number(); v > most {
			r.fail()
		} else {
			sizes[i] = int64(v)
		}
	}
	rank := r.bytes(8)
	if r.failed || phase[0] >= byte(NumPhases) || sizes[4] == 0 {
		r.fail()
		return
	}
	x.Phase = Phase(phase[0])
	x.Age, x.Request, x.Response, x.Likely, x.Reach = Time(sizes[0]), sizes[1], sizes[2], sizes[3], sizes[4]
	if x.Rank = math.Float64frombits(binary.LittleEndian.Uint64(rank)); !(x.Rank <= math.MaxFloat64) {
		r.fail()
	}
}
