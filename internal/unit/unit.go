// Package unit holds the kinds of figures that a configuration is written in: Bytes, Ratio, Limit
// and Duration. Each parses the text that people write, prints text that parses to the same value,
// and refuses what is ambiguous rather than guess.
package unit

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// Bytes is a number of bytes. It prints in the largest binary unit that loses nothing: 64KiB, 1MiB,
// 1500.
type Bytes int64

// The binary units. Envoy's own settings are plain bytes; Kubernetes writes Mi where we write MiB,
// so both parse.
const (
	KiB Bytes = 1 << 10
	MiB Bytes = 1 << 20
	GiB Bytes = 1 << 30
	TiB Bytes = 1 << 40
)

var byteUnits = []struct {
	suffix string
	factor Bytes
}{
	// Longer suffixes first: "KiB" must not be read as "B".
	{"TiB", TiB},
	{"GiB", GiB},
	{"MiB", MiB},
	{"KiB", KiB},
	{"Ti", TiB},
	{"Gi", GiB},
	{"Mi", MiB},
	{"Ki", KiB},
	{"TB", 1e12},
	{"GB", 1e9},
	{"MB", 1e6},
	{"kB", 1e3},
	{"B", 1},
}

// ErrParse is wrapped by every error of the Parse functions.
var ErrParse = errors.New("not understood")

// ParseBytes reads a size such as "512MiB", "64KiB", "1.5GiB", "1MB" (10^6) or "65536". An empty
// text, a negative size, a unit that it does not know and a size that does not fit 63 bits are
// errors that wrap ErrParse.
func ParseBytes(text string) (Bytes, error) {
	number, factor := strings.TrimSpace(text), Bytes(1)
	for _, u := range byteUnits {
		if rest, ok := strings.CutSuffix(number, u.suffix); ok {
			number, factor = strings.TrimSpace(rest), u.factor
			break
		}
	}
	if n, err := strconv.ParseInt(number, 10, 64); err == nil && isDigits(number) {
		if n > math.MaxInt64/int64(factor) {
			return 0, fmt.Errorf("%w: %q is larger than any memory", ErrParse, text)
		}
		return Bytes(n) * factor, nil
	}
	f, err := parseDecimal(number)
	if err != nil {
		return 0, fmt.Errorf("%w: %q is not a size; write one such as 512MiB, 64KiB or 65536", ErrParse, text)
	}
	if f *= float64(factor); f >= math.MaxInt64 {
		return 0, fmt.Errorf("%w: %q is larger than any memory", ErrParse, text)
	}
	return Bytes(math.Round(f)), nil
}

// String prints b exactly, in the largest binary unit that divides it.
func (b Bytes) String() string {
	for _, u := range byteUnits[:4] {
		if b != 0 && b%u.factor == 0 {
			return strconv.FormatInt(int64(b/u.factor), 10) + u.suffix
		}
	}
	return strconv.FormatInt(int64(b), 10)
}

// Human prints b for people, with a decimal and a unit: 1.5MiB. It does not parse back to the same
// value.
func (b Bytes) Human() string {
	for _, u := range byteUnits[:4] {
		if b >= u.factor || b <= -u.factor {
			return strconv.FormatFloat(float64(b)/float64(u.factor), 'f', 1, 64) + u.suffix
		}
	}
	return strconv.FormatInt(int64(b), 10) + "B"
}

// Ratio is a share: 0.85 is written 85% or 0.85.
type Ratio float64

// ParseRatio reads "85%" or "0.85". Negative shares and everything that is not a plain decimal are
// errors that wrap ErrParse; whether a share above 1 makes sense is for the caller to say.
func ParseRatio(text string) (Ratio, error) {
	number, percent := strings.CutSuffix(strings.TrimSpace(text), "%")
	f, err := parseDecimal(strings.TrimSpace(number))
	if err != nil {
		return 0, fmt.Errorf("%w: %q is not a share; write one such as 85%% or 0.85", ErrParse, text)
	}
	if percent {
		f /= 100
	}
	return Ratio(f), nil
}

// Of is the share of n, rounded down.
func (r Ratio) Of(n int64) int64 { return int64(float64(r) * float64(n)) }

// String prints the share in percent, to nine digits at least.
func (r Ratio) String() string {
	// Ten digits hide what binary makes of 0.29 × 100; where they are too few, all are printed.
	percent := strconv.FormatFloat(float64(r)*100, 'f', 10, 64)
	if back, err := strconv.ParseFloat(percent, 64); err != nil || math.Abs(back/100-float64(r)) > 1e-9*math.Abs(float64(r)) {
		percent = strconv.FormatFloat(float64(r)*100, 'f', -1, 64)
	}
	if strings.Contains(percent, ".") {
		percent = strings.TrimRight(strings.TrimRight(percent, "0"), ".")
	}
	return percent + "%"
}

// Limit is a size, or a share of a limit that is not known until the program runs: 512MiB or 80%.
// At most one of the two is not 0; neither is no limit.
type Limit struct {
	Bytes Bytes
	Share Ratio
}

// ParseLimit reads what ends in % as a share, and everything else as ParseBytes does: 0.8 is no
// share here, but less than a byte. A share of 0 is an error, as of everything that is not
// understood; it wraps ErrParse.
func ParseLimit(text string) (Limit, error) {
	if strings.HasSuffix(strings.TrimSpace(text), "%") {
		share, err := ParseRatio(text)
		if err == nil && share == 0 {
			err = fmt.Errorf("%w: %q is no limit; write a share above 0%% or a size such as 512MiB", ErrParse, text)
		}
		return Limit{Share: share}, err
	}
	b, err := ParseBytes(text)
	return Limit{Bytes: b}, err
}

// String prints the share, if it is one, else the size.
func (l Limit) String() string {
	if l.Share != 0 {
		return l.Share.String()
	}
	return l.Bytes.String()
}

// Duration is a time.Duration that is written with its unit: 25ms, 1s.
type Duration time.Duration

// ParseDuration reads what time.ParseDuration reads; a negative duration or one without a unit is
// an error that wraps ErrParse. A bare 0 is fine.
func ParseDuration(text string) (Duration, error) {
	d, err := time.ParseDuration(strings.TrimSpace(text))
	if err != nil || d < 0 {
		return 0, fmt.Errorf("%w: %q is not a duration; write one such as 25ms or 2s", ErrParse, text)
	}
	return Duration(d), nil
}

// String prints as time.Duration does, without zero parts at the end: 2m rather than 2m0s.
func (d Duration) String() string {
	s := time.Duration(d).String()
	if strings.HasSuffix(s, "m0s") {
		s = s[:len(s)-2]
	}
	if strings.HasSuffix(s, "h0m") {
		s = s[:len(s)-2]
	}
	return s
}

// parseDecimal reads digits with at most one point; no sign, exponent, hexadecimal, Inf or NaN,
// which strconv would take.
func parseDecimal(s string) (float64, error) {
	if s == "" || s == "." || strings.Count(s, ".") > 1 || !isDigits(strings.Replace(s, ".", "", 1)) {
		return 0, ErrParse
	}
	return strconv.ParseFloat(s, 64)
}

func isDigits(s string) bool {
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return s != ""
}
