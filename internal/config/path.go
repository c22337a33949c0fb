package config

import "strings"

// AnyPrefix says whether the path is below one of the prefixes, and plain.
func AnyPrefix(prefixes []string, path string) bool {
	for _, prefix := range prefixes {
		if hasPathPrefix(path, prefix) {
			return plain(path)
		}
	}
	return false
}

// hasPathPrefix says whether the path, without its query, begins with the prefix, which ends with a
// segment or a slash.
func hasPathPrefix(path, prefix string) bool {
	rest, ok := strings.CutPrefix(path, prefix)
	if !ok {
		return false
	}
	return rest == "" || prefix[len(prefix)-1] == '/' || rest[0] == '/' || endsPath(rest[0])
}

func endsPath(b byte) bool { return b == '?' || b == '#' }

// plain says that whoever reads the path means the same by it, however often he decodes it, and
// that none of its segments leads out of another. Not plain are segments that begin with dots and
// no name behind them (also before a parameter: "..;x"), backslashes, encoded slashes, backslashes
// and percent signs, and what is not printable ASCII, encoded or not. The query is no part of it.
func plain(path string) bool {
	at := begins
	for i := 0; i < len(path) && !endsPath(path[i]); i++ {
		b := path[i]
		switch b {
		case '/':
			if at == dots {
				return false
			}
			at = begins
			continue
		case '%':
			var ok bool
			if b, ok = decoded(path[i:]); !ok {
				return false
			}
			i += 2
		case ' ':
			return false
		}
		if b < ' ' || b > '~' || b == '\\' {
			return false
		}
		if at = at.next(b); at == misleads {
			return false
		}
	}
	return at != dots
}

// segment is what has been read of one segment of a path.
type segment uint8

const (
	begins   segment = iota // nothing
	dots                    // and nothing else yet
	named                   // what makes a name of it
	misleads                // dots, and what makes no name of them
)

// next is what it is with one byte more.
func (s segment) next(b byte) segment {
	switch {
	case b == '.' && s == begins:
		return dots
	case b == '.':
		return s
	case s == dots && !startsName(b):
		return misleads
	}
	return named
}

// decoded is the byte that the text begins with as %xx. It is not ok where it is none, or one that
// whoever decodes once more reads differently.
func decoded(text string) (b byte, ok bool) {
	if len(text) < 3 {
		return 0, false
	}
	high, low := hex(text[1]), hex(text[2])
	b = high<<4 | low
	return b, high <= 0xf && low <= 0xf && b != '/' && b != '%'
}

// hex is the value of a hexadecimal digit; above 15 it is none.
func hex(b byte) byte {
	switch {
	case b >= '0' && b <= '9':
		return b - '0'
	case b|0x20 >= 'a' && b|0x20 <= 'f':
		return b | 0x20 - 'a' + 10
	}
	return 0xff
}

// startsName says whether the byte, behind dots, makes a name of them, such as .well-known.
func startsName(b byte) bool {
	return b >= '0' && b <= '9' || b|0x20 >= 'a' && b|0x20 <= 'z' || b == '-' || b == '_' || b == '~'
}
