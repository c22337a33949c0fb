package budget

// Visibility is what is told of a direction of a stream.
type Visibility uint8

const (
	// Counted: its bytes, as they pass.
	Counted Visibility = iota
	// Announced: its headers alone. What those announced, or what was forecast, stands for it.
	Announced
	// Silent: nothing, not even that it has begun.
	Silent
)

// SetVisibility notes what will be told of a direction, before its headers: of one that is not
// counted, what was announced or forecast stands for it. What comes unexpected can't be told as
// long as there is such a stream.
func (a *Account) SetVisibility(s *Stream, d Direction, v Visibility) {
	if s.dir[d].visibility != v {
		a.setVisibility(s, d, v)
	}
}

func (a *Account) setVisibility(s *Stream, d Direction, v Visibility) {
	was := s.hides()
	s.dir[d].visibility = v
	switch is := s.hides(); {
	case is && !was:
		a.streams.hidden++
	case was && !is:
		a.streams.hidden--
	}
}

// Counted says that what passes of the direction is told.
func (s *Stream) Counted(d Direction) bool { return !s.dir[d].unseen() }

// Hides says that there is a stream of which not all is told.
func (a *Account) Hides() bool { return a.streams.hidden > 0 }

// hides says that not all that passes of the stream is told.
func (s *Stream) hides() bool { return s.dir[Request].unseen() || s.dir[Response].unseen() }

func (m *message) unseen() bool { return m.visibility != Counted }
