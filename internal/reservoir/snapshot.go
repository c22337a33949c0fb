package reservoir

import (
	"errors"
	"math"
	"slices"

	"github.com/highwater-envoy/highwater/internal/wire"
)

// Phase of a stream.
type Phase uint8

// The phases.
const (
	Paused      Phase = iota // in the queue, or rejected: what it has sent lies unread
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
	_ [0]func() // no two are compared: the function that could would only take room in the .wasm

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
	_ [0]func() // no two are compared: the function that could would only take room in the .wasm

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
	headBytes   = 4 + 8*(14+2*int(NumPhases))
)

func (s *Snapshot) appendHead(buf []byte) []byte {
	t := &s.Totals
	buf = wire.AppendInts(buf, int64(s.Worker), s.Episode, s.Epoch, int64(s.At), int64(s.Level), s.Limit, s.InUse, s.Allocated, s.Base,
		int64(math.Float64bits(s.Gap)), t.Streams, t.Connections, t.Likely, t.Bound)
	buf = wire.AppendInts(buf, t.Phases[:]...)
	return wire.AppendInts(buf, t.PhaseBounds[:]...)
}

func (s *Snapshot) readHead(r *wire.Reader) {
	t := &s.Totals
	s.Worker, s.Episode, s.Epoch, s.At, s.Level = uint32(r.Int()), r.Int(), r.Int(), Time(r.Int()), uint8(r.Int())
	s.Limit, s.InUse, s.Allocated, s.Base, s.Gap = size(r), size(r), size(r), size(r), r.Float()
	t.Streams, t.Connections, t.Likely, t.Bound = size(r), size(r), size(r), size(r)
	for i := range t.Phases {
		t.Phases[i] = size(r)
	}
	for i := range t.PhaseBounds {
		t.PhaseBounds[i] = size(r)
	}
	r.Expect(s.At >= -maxTime && s.At <= maxTime, "a time")
	r.Expect(s.Gap > 0 && s.Gap <= maxGap, "a gap")
}

// size is one that is added up with those of other workers, or held against another.
func size(r *wire.Reader) int64 {
	v := r.Int()
	r.Expect(v >= -maxSize && v <= maxSize, "a size")
	return v
}

// Append encodes the snapshot behind buf, in MaxSnapshot bytes at most: where it is larger, its gap
// is doubled, and those that no longer reach it go, until it is not.
func (s *Snapshot) Append(buf []byte) []byte {
	begin := len(buf)
	for {
		buf = s.append(buf[:begin])
		if len(buf)-begin <= MaxSnapshot {
			return buf
		}
		s.thin()
	}
}

// append writes the head, the texts that occur, each once, and the samples, which name texts by
// number.
func (s *Snapshot) append(buf []byte) []byte {
	texts := map[string]uint64{}
	buf = s.appendHead(wire.AppendUint32(buf, snapshotMagic))
	buf = wire.AppendShort(buf, uint64(len(s.Samples)))
	for i := range s.Samples {
		x := &s.Samples[i]
		for _, text := range x.Labels.all() {
			n, ok := texts[*text]
			if !ok {
				// The first time it follows here: so the decoder needs one pass too.
				n = uint64(len(texts))
				texts[*text] = n
				buf = wire.AppendText(wire.AppendShort(buf, n), *text)
				continue
			}
			buf = wire.AppendShort(buf, n)
		}
		buf = append(buf, byte(x.Phase))
		for _, v := range [...]int64{int64(x.Age), x.Request, x.Response, x.Likely, x.Reach} {
			buf = wire.AppendShort(buf, uint64(v))
		}
		buf = wire.AppendInt(buf, int64(math.Float64bits(x.Rank)))
	}
	return buf
}

// AtOf is when an encoded snapshot was frozen; false if it is none.
func AtOf(value []byte) (at Time, ok bool) {
	r := wire.Read(value, snapshotMagic)
	r.Int() // Worker
	r.Int() // Episode
	r.Int() // Epoch
	at = Time(r.Int())
	return at, len(value) >= headBytes && !r.Failed()
}

// ErrSnapshot is wrapped by errors of Decode: the value is not a snapshot of this version.
var ErrSnapshot = errors.New("not a snapshot of requests")

// Decode reads what Append wrote. The error wraps ErrSnapshot; then the snapshot is empty.
func Decode(value []byte) (Snapshot, error) {
	var s Snapshot
	r := wire.Read(value, snapshotMagic)
	r.Expect(len(value) <= MaxSnapshot, "at most 64 KiB")
	s.readHead(&r)
	n := r.Short()
	r.Expect(n <= uint64(r.Left())/sampleBytes, "as many samples as it says")
	if r.Failed() {
		return Snapshot{}, r.End(ErrSnapshot)
	}
	s.Samples = make([]Sample, n)
	var texts []string
	labels := make([]Labels, n)
	for i := range s.Samples {
		s.Samples[i].Labels = &labels[i]
		s.Samples[i].read(&r, &texts)
	}
	if err := r.End(ErrSnapshot); err != nil {
		return Snapshot{}, err
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

// sampleBytes is the least that a sample takes.
const sampleBytes = numLabels + 1 + 5 + 8

func (x *Sample) read(r *wire.Reader, texts *[]string) {
	for _, text := range x.Labels.all() {
		n := r.Short()
		if n == uint64(len(*texts)) && !r.Failed() {
			*texts = append(*texts, r.Text(MaxLabel))
		}
		if n >= uint64(len(*texts)) {
			r.Expect(false, "a text that has been before")
			return
		}
		*text = (*texts)[n]
	}
	x.Phase = Phase(r.Byte())
	r.Expect(x.Phase < NumPhases, "a phase")
	x.Age = Time(short(r, int64(maxTime)))
	for _, v := range [...]*int64{&x.Request, &x.Response, &x.Likely, &x.Reach} {
		*v = short(r, maxSize)
	}
	r.Expect(x.Reach > 0, "what it was drawn by")
	x.Rank = r.Float()
	r.Expect(x.Rank <= math.MaxFloat64, "a rank")
}

func short(r *wire.Reader, most int64) int64 {
	v := r.Short()
	r.Expect(v <= uint64(most), "a size")
	return int64(v)
}
