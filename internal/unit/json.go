package unit

import "strconv"

// MarshalText prints b as String does, for JSON.
func (b Bytes) MarshalText() ([]byte, error) { return []byte(b.String()), nil }

// UnmarshalText parses as ParseBytes does.
func (b *Bytes) UnmarshalText(text []byte) (err error) {
	*b, err = ParseBytes(string(text))
	return err
}

// MarshalText prints r as String does, for JSON.
func (r Ratio) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText parses as ParseRatio does.
func (r *Ratio) UnmarshalText(text []byte) (err error) {
	*r, err = ParseRatio(string(text))
	return err
}

// MarshalText prints l as String does, for JSON.
func (l Limit) MarshalText() ([]byte, error) { return []byte(l.String()), nil }

// UnmarshalText parses as ParseLimit does.
func (l *Limit) UnmarshalText(text []byte) (err error) {
	*l, err = ParseLimit(string(text))
	return err
}

// MarshalText prints d as String does, for JSON.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText parses as ParseDuration does.
func (d *Duration) UnmarshalText(text []byte) (err error) {
	*d, err = ParseDuration(string(text))
	return err
}

// Milliseconds is d in whole milliseconds, rounded up, so that nothing that is not 0 becomes 0.
func (d Duration) Milliseconds() int64 { return (int64(d) + 999_999) / 1_000_000 }

// Seconds prints d in whole seconds, rounded up: what a retry-after header wants.
func (d Duration) Seconds() string {
	return strconv.FormatInt((int64(d)+999_999_999)/1_000_000_000, 10)
}
