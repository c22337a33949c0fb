// Package recording reads loads for a replay: what an Envoy's access log has recorded, a JSON
// object a line, or what somebody describes, a group of clients a line. Both may be compressed by
// gzip.
//
// However long a recording is, what is held of it is bounded: a line by MaxLine, names by MaxNames,
// requests beyond some 200,000 by a temporary file. An access log has a line for each request that
// has ended, in the order of their ends; a Recording has them in the order in which they began.
package recording

import (
	"bufio"
	"bytes"
	"cmp"
	"compress/flate"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/highwater-envoy/highwater/internal/unit"
)

// The bounds.
const (
	MaxLine     = unit.MiB       // of a line: a longer one is left out
	MaxNames    = 1 << 16        // routes, clients, paths and so on: what comes beyond is one name more
	MaxName     = 256            // bytes of a name
	MaxRequests = 20_000_000     // some 3 GiB of a temporary file
	MaxApart    = 24 * time.Hour // between a line and the one before: what is farther off is left out
	MaxSpan     = 31 * MaxApart  // of all
	maxKinds    = 20             // of what is wrong with lines, and of fields that are not used
	Unknown     = int64(-1)      // a length, or a time, that was not recorded
	Others      = "(others)"     // the name of what has no name of its own
	sampled     = 1000           // of so many lines one is looked at for fields that are not used
	reportEvery = 1 << 14        // lines
	headersKept = 4              // values of request headers
)

// Options say what is wanted of a recording.
type Options struct {
	Headers  []string                          // request headers by which requests are told apart, in lower case
	Progress func(lines int64, requests int64) // nil = nobody wants to know; now and then
	inMemory int                               // requests; 0 = runLength
	names    int                               // 0 = MaxNames
}

// Note is something that was left out, and how often.
type Note struct {
	What  string `json:"what"`
	Line  int64  `json:"line"` // the first of them
	Count int64  `json:"count"`
}

// String begins with the line.
func (n Note) String() string {
	if n.Count > 1 {
		return fmt.Sprintf("line %d and %d more: %s", n.Line, n.Count-1, n.What)
	}
	return fmt.Sprintf("line %d: %s", n.Line, n.What)
}

// Recording is a load that was read. Close it.
type Recording struct {
	Name     string
	Lines    int64
	Requests int64
	First    time.Time     // when the first request began; zero = it was not recorded
	Span     time.Duration // from then until the last one has ended
	Skipped  []Note        // what is not in it
	Unused   []string      // fields of the lines that nobody asks for
	Groups   []Group       // of a described load; then there are no requests
	Has      Has

	names *names
	spool *spool
}

// Has says what was recorded of at least one request.
type Has struct{ Connections, RequestTimes, ResponseTimes, Lengths bool }

// Close removes what is in files.
func (r *Recording) Close() error { return r.spool.close() }

// NameOf is what an index stands for.
func (r *Recording) NameOf(i uint32) string { return r.names.all[i] }

// Each visits all requests in the order in which they began. It may be called again. It ends early
// where visit returns false.
func (r *Recording) Each(visit func(q *Request) bool) error { return r.spool.each(visit) }

// Open is Each for who asks for one request after the other. Close the Cursor.
func (r *Recording) Open() (*Cursor, error) { return r.spool.open() }

// Read reads a load. Its error says what is wrong in which line; what can do without is left out,
// and in Skipped.
func Read(ctx context.Context, in io.Reader, name string, o Options) (_ *Recording, err error) {
	if len(o.Headers) > headersKept {
		return nil, fmt.Errorf("requests are told apart by %d headers (%s): no more than %d are kept", len(o.Headers), strings.Join(o.Headers, ", "), headersKept)
	}
	r := &reader{
		Recording: &Recording{Name: name, names: newNames(cmp.Or(o.names, MaxNames)), spool: &spool{most: cmp.Or(o.inMemory, runLength)}}, options: o, unused: map[string]bool{}, notes: map[string]int{},
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.Close())
		}
	}()
	text, err := plain(in)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if err := r.lines(ctx, text); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if err := r.finish(); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return r.Recording, nil
}

// plain is what is in a gzip, or the text itself.
func plain(in io.Reader) (*bufio.Reader, error) {
	b := bufio.NewReaderSize(in, 1<<16)
	begin, err := b.Peek(2)
	if err != nil && err != io.EOF {
		return nil, err
	}
	if len(begin) < 2 || begin[0] != 0x1f || begin[1] != 0x8b {
		return b, nil
	}
	z, err := gzip.NewReader(b)
	if err != nil {
		return nil, fmt.Errorf("it begins as a gzip does, and is none: %w", err)
	}
	return bufio.NewReaderSize(z, 1<<16), nil
}

// reader is a Recording while it is read.
type reader struct {
	*Recording
	options Options
	kind    kind // of the lines
	origin  time.Duration
	last    time.Duration // when the request of the line before began
	unused  map[string]bool
	notes   map[string]int // where in Skipped it is
	buffer  []byte
}

// kind is what the lines are.
type kind uint8

const (
	notKnown kind = iota
	recorded
	described
)

func (r *reader) lines(ctx context.Context, text *bufio.Reader) error {
	for ctx.Err() == nil {
		line, tooLong, err := r.line(text)
		if tooLong {
			r.skip(fmt.Sprintf("it is longer than %s", MaxLine))
		} else if err := r.take(line); err != nil {
			return fmt.Errorf("line %d: %w", r.Lines, err)
		}
		if r.Lines%reportEvery == 0 && r.options.Progress != nil {
			r.options.Progress(r.Lines, r.Requests)
		}
		switch {
		case err == io.EOF:
			return nil
		case errors.Is(err, io.ErrUnexpectedEOF):
			r.skip("the gzip ends in the middle: it was cut off, and what came behind is missing")
			return nil
		case errors.As(err, new(flate.CorruptInputError)), errors.Is(err, gzip.ErrChecksum), errors.Is(err, gzip.ErrHeader):
			return fmt.Errorf("line %d: the gzip is damaged there, and nothing of it is used: %w", r.Lines, err)
		case err != nil:
			return fmt.Errorf("line %d: %w", r.Lines, err)
		}
	}
	return ctx.Err()
}

// line is the next one. A line that is too long is read and thrown away.
func (r *reader) line(text *bufio.Reader) (line []byte, tooLong bool, err error) {
	r.Lines++
	r.buffer = r.buffer[:0]
	for {
		part, err := text.ReadSlice('\n')
		if !tooLong {
			r.buffer = append(r.buffer, part...)
		}
		if len(r.buffer) > int(MaxLine) {
			tooLong = true
			r.buffer = r.buffer[:0]
		}
		if err != bufio.ErrBufferFull {
			return r.buffer, tooLong, err
		}
	}
}

// take takes a line. An error ends it all; what can be left out is.
func (r *reader) take(line []byte) error {
	line = trim(line)
	if len(line) == 0 {
		return nil
	}
	if r.kind == notKnown {
		r.kind = kindOf(line)
	}
	if r.kind == described {
		return r.describe(line)
	}
	q, why := r.access(line)
	if why != "" {
		r.skip(why)
		return nil
	}
	if r.Requests >= MaxRequests {
		return fmt.Errorf("there are more than %d requests: split the recording", MaxRequests)
	}
	r.kind = recorded
	r.Requests++
	return r.spool.add(q)
}

// skip notes that the line is left out.
func (r *reader) skip(why string) {
	if i, ok := r.notes[why]; ok {
		r.Skipped[i].Count++
		return
	}
	if len(r.notes) >= maxKinds {
		why = "for other reasons"
		if i, ok := r.notes[why]; ok {
			r.Skipped[i].Count++
			return
		}
	}
	r.notes[why] = len(r.Skipped)
	r.Skipped = append(r.Skipped, Note{What: why, Line: r.Lines, Count: 1})
}

func (r *reader) finish() error {
	for name := range r.unused {
		r.Unused = append(r.Unused, name)
	}
	slices.Sort(r.Unused)
	if r.kind == described {
		return nil
	}
	if r.Requests == 0 {
		if len(r.Skipped) > 0 {
			return fmt.Errorf("there is no request in it; %s", r.Skipped[0])
		}
		return errors.New("it is empty: it must have a JSON object a line, as docs/reference/replay.md shows")
	}
	return r.sort()
}

// sort puts requests in the order of their beginnings, and counts their times from the first.
func (r *reader) sort() error {
	if err := r.spool.sort(); err != nil {
		return err
	}
	first, last := r.spool.first, r.spool.last
	if last-first > MaxSpan {
		return fmt.Errorf("it spans %v, more than %v: split it", last-first, MaxSpan)
	}
	if r.origin > 0 {
		r.First = time.Unix(0, int64(r.origin+first)).UTC()
	}
	r.spool.shift(first)
	r.Span = last - first
	return nil
}

func trim(line []byte) []byte { return bytes.TrimSpace(bytes.TrimPrefix(line, []byte("\xef\xbb\xbf"))) }

// names are those that requests have, each once.
type names struct {
	most int
	all  []string
	of   map[string]uint32
}

func newNames(most int) *names {
	return &names{most: most, all: []string{"", Others}, of: map[string]uint32{"": 0, Others: 1}}
}

// index of a name. Of a long one the rest does not count.
func (n *names) index(name string) uint32 {
	name = name[:min(len(name), MaxName)]
	if i, ok := n.of[name]; ok {
		return i
	}
	if len(n.all) >= n.most {
		return 1
	}
	name = strings.Clone(name)
	i := uint32(len(n.all))
	n.all, n.of[name] = append(n.all, name), i
	return i
}
