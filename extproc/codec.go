package extproc

import (
	"errors"
	"fmt"
	"runtime"
	"sync"

	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"google.golang.org/grpc/encoding"
	encodingproto "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// message is what comes on a stream. Messages are used again: each keeps what was in the one before
// until then.
type message struct {
	request extprocv3.ProcessingRequest
	size    int   // bytes, as it came
	err     error // it is no ProcessingRequest
}

var messages = sync.Pool{New: func() any { return &message{} }}

// keepUpTo is how large a message may have been whose memory is kept for the next.
const keepUpTo = 64 << 10

func (m *message) free() {
	if m.size > keepUpTo {
		m.request.Reset()
	}
	m.err = nil
	messages.Put(m)
}

// answer is an encoded ProcessingResponse. Most are made once: see answers.go.
type answer []byte

// codec is gRPC's for protobuf, but for the two types above: answers are sent as they are, and what
// can't be decoded is told to the stream, which knows what to say of it.
type codec struct {
	encoding.CodecV2
	large chan struct{} // who decodes a large message has one: its bytes are there twice meanwhile
}

func newCodec() codec {
	return codec{encoding.GetCodecV2(encodingproto.Name), make(chan struct{}, runtime.GOMAXPROCS(0))}
}

// Marshal implements encoding.CodecV2.
func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	if a, ok := v.(answer); ok {
		return mem.BufferSlice{mem.SliceBuffer(a)}, nil
	}
	return c.CodecV2.Marshal(v)
}

// Unmarshal implements encoding.CodecV2.
func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	m, ok := v.(*message)
	if !ok {
		return c.CodecV2.Unmarshal(data, v)
	}
	m.size = data.Len()
	if m.size > plainUpTo {
		c.large <- struct{}{}
		defer func() { <-c.large }()
	}
	whole := data.MaterializeToBuffer(mem.DefaultBufferPool())
	defer whole.Free()
	if m.err = bounded(whole.ReadOnlyData()); m.err == nil {
		m.err = proto.Unmarshal(whole.ReadOnlyData(), &m.request)
	}
	return nil
}

const (
	// plainUpTo is the size up to which a message is decoded as it is.
	plainUpTo = 64 << 10
	// maxHeaders is the size of the headers in a message: Envoy takes 60 KiB of a client, unless
	// told otherwise.
	maxHeaders = 1 << 20
	maxFields  = 10_000 // of these headers; Envoy takes 100, unless told otherwise
)

// errTooLarge is what bounded finds.
var errTooLarge = errors.New("the message is too large")

// bounded looks through a large message before it is decoded: an empty header has two bytes on the
// wire and a hundred in memory, so that 16 MiB would become a gigabyte. A body is one piece and
// costs what it is; so only bodies may be large.
func bounded(data []byte) error {
	if len(data) <= plainUpTo {
		return nil
	}
	headers, fields, rest := 0, 0, 0
	// It is left at the first that is too many: half a million empty headers took 5 ms to count,
	// while what the peer had sent meanwhile was held.
	return eachField(data, func(n protowire.Number, value []byte) error {
		switch n {
		case numberOf("request_body"), numberOf("response_body"):
		case numberOf("request_headers"), numberOf("response_headers"):
			if headers += len(value); headers > maxHeaders {
				return fmt.Errorf("%w: the headers are more than %d bytes", errTooLarge, maxHeaders)
			}
			return eachField(value, func(n protowire.Number, value []byte) error {
				if n != 1 { // HttpHeaders.headers
					rest += len(value)
					return little(rest)
				}
				return eachField(value, func(protowire.Number, []byte) error {
					if fields++; fields > maxFields {
						return fmt.Errorf("%w: there are more than %d headers", errTooLarge, maxFields)
					}
					return nil
				})
			})
		default:
			rest += len(value)
		}
		return little(rest)
	})
}

// little is an error where attributes, trailers and metadata are so many bytes, and too many.
func little(rest int) error {
	if rest > plainUpTo {
		return fmt.Errorf("%w: attributes, trailers and metadata are more than %d bytes", errTooLarge, plainUpTo)
	}
	return nil
}

// eachField calls f with each field of an encoded message. value is what is behind its tag, without
// the length where it has one.
func eachField(data []byte, f func(n protowire.Number, value []byte) error) error {
	for len(data) > 0 {
		n, kind, tag := protowire.ConsumeTag(data)
		if tag < 0 {
			return protowire.ParseError(tag)
		}
		size := protowire.ConsumeFieldValue(n, kind, data[tag:])
		if size < 0 {
			return protowire.ParseError(size)
		}
		value := data[tag : tag+size]
		if kind == protowire.BytesType {
			value, _ = protowire.ConsumeBytes(value)
		}
		if err := f(n, value); err != nil {
			return err
		}
		data = data[tag+size:]
	}
	return nil
}

func numberOf(field protoreflect.Name) protowire.Number { return numbers[field] }

var numbers = func() map[protoreflect.Name]protowire.Number {
	m := map[protoreflect.Name]protowire.Number{}
	fields := (&extprocv3.ProcessingRequest{}).ProtoReflect().Descriptor().Fields()
	for i := range fields.Len() {
		m[fields.Get(i).Name()] = fields.Get(i).Number()
	}
	return m
}()
