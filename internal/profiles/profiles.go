// Package profiles reads pprof profiles that may come from anybody: what is read of one, what that
// is unpacked, and what is made of it is bounded.
package profiles

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"

	"github.com/google/pprof/profile"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/highwater-envoy/highwater/internal/input"
	"github.com/highwater-envoy/highwater/internal/unit"
)

const (
	// MaxBytes is how large a profile may be, as it comes and unpacked.
	MaxBytes = 8 * unit.MiB
	// MaxEntries is how many samples, labels, frames and the like it may have: parsed, each takes
	// up to 150 bytes.
	MaxEntries = 500_000
)

// Unpack is what a packed profile is, and what is not packed as it is.
func Unpack(data []byte) ([]byte, error) {
	if !bytes.HasPrefix(data, []byte{0x1f, 0x8b}) {
		return data, nil
	}
	packed, err := gzip.NewReader(bytes.NewReader(data))
	if err != nil {
		return nil, fmt.Errorf("it can't be unpacked: %w", err)
	}
	data, err = input.ReadFrom(packed, "the profile, unpacked,", MaxBytes)
	if err != nil && !errors.Is(err, input.ErrTooLarge) {
		err = fmt.Errorf("it can't be unpacked: %w", err)
	}
	return data, err
}

// Parse reads a profile that is not packed, and says whether it can be true.
func Parse(data []byte) (*profile.Profile, error) {
	if err := few(data); err != nil {
		return nil, err
	}
	p, err := profile.ParseUncompressed(data)
	if err == nil {
		err = p.CheckValid()
	}
	if err != nil {
		return nil, fmt.Errorf("it is no profile: %w", err)
	}
	return p, nil
}

// few says whether a profile has few enough entries, before anything is made of it: an empty one is
// two bytes, and some hundred when it is parsed.
func few(data []byte) error {
	n, err := entries(data, true)
	switch {
	case err != nil:
		return fmt.Errorf("it is no profile: %w", err)
	case n > MaxEntries:
		return fmt.Errorf("the profile has more than %d entries, which is more than is read", MaxEntries)
	}
	return nil
}

// entries counts the fields of a profile, and of its samples and locations, of which one may have
// any number too.
func entries(data []byte, within bool) (all int, err error) {
	const samples, locations = 2, 4
	for len(data) > 0 {
		field, kind, n := protowire.ConsumeTag(data)
		if n < 0 {
			return all, protowire.ParseError(n)
		}
		data = data[n:]
		if n = protowire.ConsumeFieldValue(field, kind, data); n < 0 {
			return all, protowire.ParseError(n)
		}
		all++
		value, _ := protowire.ConsumeBytes(data)
		switch {
		case kind != protowire.BytesType:
		case within && (field == samples || field == locations):
			more, err := entries(value, false)
			if err != nil {
				return all, err
			}
			all += more
		case !within:
			// It may be a list of numbers, such as a stack, of one byte each: an eighth of an
			// entry.
			all += len(value) / 8
		}
		data = data[n:]
	}
	return all, nil
}
