// Package wire writes and reads what the workers of a process leave for each other in shared
// storage: words of 32 and 64 bits, the lowest byte first, short numbers and texts. Whoever writes
// there can write anything, so a Reader takes all that comes and never reads beyond its end.
package wire

import (
	"encoding/binary"
	"fmt"
	"math"
)

// AppendInts writes words of 64 bits.
func AppendInts(buf []byte, words ...int64) []byte {
	for _, v := range words {
		buf = binary.LittleEndian.AppendUint64(buf, uint64(v))
	}
	return buf
}

// AppendInt writes one.
func AppendInt(buf []byte, v int64) []byte {
	return binary.LittleEndian.AppendUint64(buf, uint64(v))
}

// AppendUint32 writes a word of 32 bits.
func AppendUint32(buf []byte, v uint32) []byte { return binary.LittleEndian.AppendUint32(buf, v) }

// AppendShort writes a number in as many bytes as it needs, few where it is small, as protobuf
// does. It is not inlined, which would take 500 bytes of the .wasm at each place.
//
//go:noinline
func AppendShort(buf []byte, v uint64) []byte { return binary.AppendUvarint(buf, v) }

// AppendText writes a text behind its length.
func AppendText(buf []byte, text string) []byte {
	return append(AppendShort(buf, uint64(len(text))), text...)
}

// Reader reads a value from its beginning. Once something is not as expected, all that follows is 0
// or empty, and End says what it was.
type Reader struct {
	rest     []byte
	expected string // what was not there; empty as long as all was
}

// Read begins to read a value, which begins with a word that says of which kind and version it is.
func Read(value []byte, magic uint32) Reader {
	r := Reader{rest: value}
	r.Expect(r.Uint32() == magic, "another beginning")
	return r
}

// Expect says that the value is not what it should be unless ok.
func (r *Reader) Expect(ok bool, what string) {
	if !ok && r.expected == "" {
		r.rest, r.expected = nil, what
	}
}

// Left is how many bytes are still to be read.
func (r *Reader) Left() int { return len(r.rest) }

// Failed says whether something was not as expected.
func (r *Reader) Failed() bool { return r.expected != "" }

// End is the error, which wraps is: of what was not as expected, or of what follows.
func (r *Reader) End(is error) error {
	r.Expect(len(r.rest) == 0, "the end")
	if r.expected == "" {
		return nil
	}
	return fmt.Errorf("%w: expected %s", is, r.expected)
}

func (r *Reader) bytes(n uint64) []byte {
	if n > uint64(len(r.rest)) {
		r.Expect(false, "more bytes")
		return nil
	}
	b := r.rest[:n]
	r.rest = r.rest[n:]
	return b
}

// Uint32 reads a word of 32 bits.
func (r *Reader) Uint32() uint32 {
	if b := r.bytes(4); b != nil {
		return binary.LittleEndian.Uint32(b)
	}
	return 0
}

// Int reads a word of 64 bits.
func (r *Reader) Int() int64 {
	if b := r.bytes(8); b != nil {
		return int64(binary.LittleEndian.Uint64(b))
	}
	return 0
}

// Float reads a number of 64 bits.
func (r *Reader) Float() float64 { return math.Float64frombits(uint64(r.Int())) }

// Byte reads one byte.
func (r *Reader) Byte() byte {
	if b := r.bytes(1); b != nil {
		return b[0]
	}
	return 0
}

// Short reads a number that AppendShort wrote.
func (r *Reader) Short() uint64 {
	v, n := binary.Uvarint(r.rest)
	if n <= 0 {
		r.Expect(false, "a number")
		return 0
	}
	r.rest = r.rest[n:]
	return v
}

// Text reads a text, of a longer one the first most bytes. It does not share the value's memory.
func (r *Reader) Text(most int) string {
	b := r.bytes(r.Short())
	return string(b[:min(len(b), most)])
}
