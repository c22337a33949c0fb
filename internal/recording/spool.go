package recording

import (
	"bufio"
	"cmp"
	"container/heap"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"slices"
	"time"
)

// runLength is how many requests are held in memory: more are sorted and written to a file, run by
// run, from which they are merged.
const runLength = 200_000

// spool holds requests, and has them sorted.
type spool struct {
	most        int // that are held
	run         []Request
	file        *os.File
	runs        []int // how many requests each has, one behind the other
	first, last time.Duration
	any         bool
	shifted     time.Duration
}

func (s *spool) add(q *Request) error {
	end := q.Start + q.Duration
	if !s.any || q.Start < s.first {
		s.first = q.Start
	}
	if !s.any || end > s.last {
		s.last = end
	}
	s.any = true
	s.run = append(s.run, *q)
	if len(s.run) < s.most {
		return nil
	}
	return s.spill()
}

func (s *spool) order() {
	slices.SortStableFunc(s.run, func(a, b Request) int { return cmp.Compare(a.Start, b.Start) })
}

// spill writes what is in memory to the file.
func (s *spool) spill() (err error) {
	if s.file == nil {
		if s.file, err = os.CreateTemp("", "highwater-replay-"); err != nil {
			return err
		}
		_ = os.Remove(s.file.Name()) // it goes with this process, however that ends
	}
	s.order()
	w := bufio.NewWriterSize(s.file, 1<<18)
	for i := range s.run {
		if err := binary.Write(w, binary.LittleEndian, &s.run[i]); err != nil {
			return err
		}
	}
	s.runs = append(s.runs, len(s.run))
	s.run = s.run[:0]
	return w.Flush()
}

func (s *spool) sort() error {
	if s.file != nil && len(s.run) > 0 {
		if err := s.spill(); err != nil {
			return err
		}
		s.run = nil
	}
	s.order()
	return nil
}

// shift makes the time of the first request 0.
func (s *spool) shift(by time.Duration) { s.shifted = by }

func (s *spool) close() error {
	if s == nil || s.file == nil {
		return nil
	}
	err := s.file.Close()
	s.file = nil
	return err
}

func (s *spool) each(visit func(q *Request) bool) error {
	c, err := s.open()
	if err != nil {
		return err
	}
	for {
		q, err := c.Next()
		switch {
		case err == io.EOF:
			return nil
		case err != nil:
			return err
		case !visit(q):
			return nil
		}
	}
}

// Cursor goes through a recording.
type Cursor struct {
	spool *spool
	at    int      // in memory
	runs  runHeap  // of the file
	given *runFrom // whose request was given last
	out   Request
}

// runFrom is a run of the file, from a request on.
type runFrom struct {
	in   *bufio.Reader
	left int
	next Request
	n    int // which run: of those that began at once the first comes first
}

func (s *spool) open() (*Cursor, error) {
	c := &Cursor{spool: s}
	size := int64(binary.Size(Request{}))
	var at int64
	for n, length := range s.runs {
		r := &runFrom{in: bufio.NewReaderSize(io.NewSectionReader(s.file, at, int64(length)*size), 1<<15), left: length, n: n}
		at += int64(length) * size
		if err := r.read(); err != nil {
			return nil, err
		}
		c.runs = append(c.runs, r)
	}
	heap.Init(&c.runs)
	return c, nil
}

func (r *runFrom) read() error {
	if r.left == 0 {
		return io.EOF
	}
	r.left--
	err := binary.Read(r.in, binary.LittleEndian, &r.next)
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// Next is the next request; it is good until the next call. io.EOF is the end.
func (c *Cursor) Next() (*Request, error) {
	if c.spool.file == nil {
		if c.at >= len(c.spool.run) {
			return nil, io.EOF
		}
		c.out = c.spool.run[c.at]
		c.at++
		c.out.Start -= c.spool.shifted
		return &c.out, nil
	}
	if c.given != nil {
		switch err := c.given.read(); {
		case err == io.EOF:
		case err != nil:
			return nil, err
		default:
			heap.Push(&c.runs, c.given)
		}
	}
	if len(c.runs) == 0 {
		return nil, io.EOF
	}
	c.given = heap.Pop(&c.runs).(*runFrom)
	c.out = c.given.next
	c.out.Start -= c.spool.shifted
	return &c.out, nil
}

type runHeap []*runFrom

func (h runHeap) Len() int { return len(h) }
func (h runHeap) Less(i, j int) bool {
	if h[i].next.Start != h[j].next.Start {
		return h[i].next.Start < h[j].next.Start
	}
	return h[i].n < h[j].n
}
func (h runHeap) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h *runHeap) Push(x any)   { *h = append(*h, x.(*runFrom)) }
func (h *runHeap) Pop() any {
	old := *h
	r := old[len(old)-1]
	*h = old[:len(old)-1]
	return r
}
