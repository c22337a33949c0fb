package peak

import (
	"encoding/json"
	"strconv"
	"strings"

	"github.com/highwater-envoy/highwater/internal/reservoir"
)

// Source is what a face can tell of its process.
type Source struct {
	Clock    Clock
	About    [][2]string // what it is: a name and its text, in their order
	Level    string
	Figures  func(add func(name string, value int64))
	Counters func(add func(name string, value int64))
	Prices   func() any // what streams and connections cost, for JSON; nil = nothing is told of it
	Peaks    func() []reservoir.Peak
	Current  func() reservoir.Peak // the samples as of now: see WantsCurrent
}

// Answer is an HTTP answer.
type Answer struct {
	Status      int
	ContentType string
	Body        []byte
}

const (
	ok               = 200
	notFound         = 404
	methodNotAllowed = 405

	plain    = "text/plain; charset=utf-8"
	jsonType = "application/json"
	octets   = "application/octet-stream"

	groupsOfCurrent = 100
	groupsOfPeak    = 10
)

// Below is what a path, with its query, asks for below base: "" for base itself. It is false for
// other paths, and where base is empty for all.
func Below(base, path string) (question string, below bool) {
	rest, below := strings.CutPrefix(path, base)
	if base == "" || !below {
		return "", false
	}
	switch {
	case rest == "" || rest[0] == '?':
		return "", true
	case rest[0] == '/':
		return rest[1:], true
	}
	return "", false
}

// WantsCurrent says whether the question is for the samples as of now, so that all workers have to
// freeze theirs before Ask.
func WantsCurrent(question string) bool {
	what, query, _ := strings.Cut(question, "?")
	return what == current || what == "pprof" && peakOf(query) == current
}

// What peak= may be, beside the number of one.
const (
	current = "current" // as of now: what is answered unasked, for those that ask again and again
	latest  = "latest"
	highest = "highest"
)

// peakOf is the value of peak= in a query.
func peakOf(query string) string {
	for pair := range strings.SplitSeq(query, "&") {
		if value, found := strings.CutPrefix(pair, "peak="); found && value != "" {
			return value
		}
	}
	return current
}

// Ask answers a question: status, peaks, current, pprof (as of now) or pprof?peak= with the number
// of one, latest or highest.
func (s *Source) Ask(method, question string) Answer {
	if method != "GET" {
		return text(methodNotAllowed, "only GET\n")
	}
	what, query, _ := strings.Cut(question, "?")
	switch what {
	case "status":
		return s.status()
	case "peaks":
		views := []View{}
		for _, p := range s.Peaks() {
			views = append(views, ViewOf(p, s.Clock, groupsOfPeak))
		}
		return encoded(struct {
			Peaks []View `json:"peaks"`
		}{views})
	case current:
		return encoded(ViewOf(s.Current(), s.Clock, groupsOfCurrent))
	case "pprof":
		return s.profile(peakOf(query))
	}
	return text(notFound, "there are status, peaks, current and pprof[?peak=N, latest or highest]\n")
}

func text(status int, body string) Answer {
	return Answer{Status: status, ContentType: plain, Body: []byte(body)}
}

func encoded(v any) Answer {
	body, err := json.Marshal(v)
	if err != nil { // a NaN that garbage in shared data made
		return text(500, err.Error()+"\n")
	}
	return Answer{Status: ok, ContentType: jsonType, Body: append(body, '\n')}
}

// status writes the figures in their order, which a map would lose.
func (s *Source) status() Answer {
	b := []byte{'{'}
	for _, a := range s.About {
		b = append(strconv.AppendQuote(append(strconv.AppendQuote(b, a[0]), ':'), a[1]), ',')
	}
	b = strconv.AppendQuote(append(b, `"level":`...), s.Level)
	number := func(name string, value int64) {
		b = strconv.AppendInt(append(strconv.AppendQuote(b, name), ':'), value, 10)
	}
	s.Figures(func(name string, value int64) {
		b = append(b, ',')
		number(name, value)
	})
	if s.Prices != nil {
		prices := encoded(s.Prices())
		if prices.Status != ok {
			return prices
		}
		b = append(append(b, `,"prices":`...), prices.Body...)
	}
	b = append(b, `,"counters":`...)
	comma := byte('{')
	s.Counters(func(name string, value int64) {
		b = append(b, comma)
		comma = ','
		number(name, value)
	})
	return Answer{Status: ok, ContentType: jsonType, Body: append(b, "}}\n"...)}
}

// profile is that of now, or of the peak that is asked for.
func (s *Source) profile(which string) Answer {
	if which == current {
		return profileOf(s.Current(), s.Clock)
	}
	peaks := s.Peaks()
	there := ""
	for i, p := range peaks {
		number := strconv.FormatInt(p.Number, 10)
		if which == number || which == highest && p.Highest || which == latest && i == len(peaks)-1 {
			return profileOf(p, s.Clock)
		}
		there += number + ", "
	}
	if there == "" {
		return text(notFound, "no peak yet: memory in use has not risen by trace.floor; peak=current is what there is now\n")
	}
	return text(notFound, "no such peak; there are "+there+"latest, highest and current\n")
}

func profileOf(p reservoir.Peak, clock Clock) Answer {
	return Answer{Status: ok, ContentType: octets, Body: Profile(p, clock)}
}
