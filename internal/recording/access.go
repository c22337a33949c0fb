package recording

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// Request is one that was recorded, as far as memory depends on it. Times that are not known are
// Unknown, names that are not 0.
type Request struct {
	Start    time.Duration // since the first of the recording
	Duration time.Duration // until the last byte of the response was sent, or until it ended otherwise

	// Since Start: when the request's last byte had come, when it had been sent to the upstream,
	// when the response's first byte came. Sending is from there to the response's last byte.
	Received, Forwarded, Answered, Sending time.Duration

	Announced  int64 // content-length of the request
	Body       int64 // bytes of the request that came
	Length     int64 // content-length of the response
	Response   int64 // bytes of the response that were sent
	Connection uint64
	Flags      Flags

	Route, Cluster, VirtualHost, Source, Path uint32
	Headers                                   [headersKept]uint32 // in the order of Options.Headers
}

// Flags are what else is known.
type Flags uint8

// The flags.
const (
	HTTP2  Flags = 1 << iota
	Broken       // by its client, or by Envoy, before it was over
	Local        // Envoy answered by itself
)

// entry is a line of an access log. Envoy writes numbers as numbers where a field is one operator
// alone, and null or "-" where there is nothing.
type entry struct {
	StartTime       value            `json:"start_time"`
	Duration        value            `json:"duration"`
	RequestDuration value            `json:"request_duration"`
	RequestTx       value            `json:"request_tx_duration"`
	ResponseBegins  value            `json:"response_duration"`
	ResponseTx      value            `json:"response_tx_duration"`
	RequestLength   value            `json:"request_length"`
	BytesReceived   value            `json:"bytes_received"`
	ResponseLength  value            `json:"response_length"`
	BytesSent       value            `json:"bytes_sent"`
	Connection      value            `json:"connection_id"`
	Protocol        string           `json:"protocol"`
	Flags           string           `json:"response_flags"`
	Route           string           `json:"route_name"`
	Cluster         string           `json:"upstream_cluster"`
	VirtualHost     string           `json:"virtual_host"`
	Authority       string           `json:"authority"`
	Source          string           `json:"downstream_remote_address"`
	Path            string           `json:"path"`
	ServiceTime     value            `json:"upstream_service_time"`
	Headers         map[string]value `json:"headers"`
}

// known are the names of entry's fields. Those of Istio's default format that are not read are no
// surprise.
var known = func() map[string]bool {
	all := map[string]bool{}
	var tree map[string]any
	text, _ := json.Marshal(entry{})
	_ = json.Unmarshal(text, &tree)
	for name := range tree {
		all[name] = true
	}
	return all
}()

// value is a number or a string, as it is written.
type value string

// UnmarshalJSON implements json.Unmarshaler.
func (v *value) UnmarshalJSON(text []byte) error {
	switch {
	case len(text) > 1 && text[0] == '"':
		var s string
		if bytes.IndexByte(text, '\\') < 0 {
			s = string(text[1 : len(text)-1])
		} else if err := json.Unmarshal(text, &s); err != nil {
			return err
		}
		if s == "-" {
			s = ""
		}
		*v = value(s)
	case string(text) == "null":
		*v = ""
	case text[0] == '{' || text[0] == '[':
		return fmt.Errorf("%.20s: a number or a string must be here", text)
	default:
		*v = value(text)
	}
	return nil
}

// mostBytes is of a body: what claims to be larger is wrong.
const mostBytes = 1 << 50

// number reads one that is not negative; Unknown where there is none.
func (v value) number() (int64, error) {
	if v == "" {
		return Unknown, nil
	}
	n, err := strconv.ParseInt(string(v), 10, 64)
	if err != nil {
		f, bad := strconv.ParseFloat(string(v), 64)
		if bad != nil || math.IsNaN(f) {
			return 0, fmt.Errorf("%.40q is no number", string(v))
		}
		n = int64(min(f, mostBytes+1))
	}
	if n < 0 || n > mostBytes {
		return 0, fmt.Errorf("%.40q is out of range", string(v))
	}
	return n, nil
}

// milliseconds reads a duration as Envoy writes it.
func (v value) milliseconds() (time.Duration, error) {
	n, err := v.number()
	if err != nil || n < 0 {
		return time.Duration(Unknown), err
	}
	if time.Duration(n) > MaxSpan/time.Millisecond {
		return 0, fmt.Errorf("%.40q ms is longer than %v", string(v), MaxSpan)
	}
	return time.Duration(n) * time.Millisecond, nil
}

// moment reads when something was, since 1970: seconds, with a fraction or without, or as ISO 8601.
func (v value) moment() (time.Duration, error) {
	text := string(v)
	if text == "" {
		return 0, fmt.Errorf("it is missing; write \"%%START_TIME(%%s.%%6f)%%\" into the format")
	}
	if at, err := time.Parse(time.RFC3339Nano, text); err == nil {
		return time.Duration(at.UnixNano()), nil
	}
	whole, fraction, _ := strings.Cut(text, ".")
	seconds, err := strconv.ParseInt(whole, 10, 64)
	if err != nil || seconds < 0 || seconds > 1<<33 {
		return 0, fmt.Errorf("%.40q is no time; write \"%%START_TIME(%%s.%%6f)%%\" into the format", text)
	}
	fraction = (fraction + "000000000")[:9]
	nanos, err := strconv.ParseInt(fraction, 10, 64)
	if err != nil || nanos < 0 {
		return 0, fmt.Errorf("%.40q is no time", text)
	}
	return time.Duration(seconds)*time.Second + time.Duration(nanos), nil
}

// access reads a line of an access log; why it can't.
func (r *reader) access(line []byte) (_ *Request, why string) {
	var e entry
	if err := json.Unmarshal(line, &e); err != nil {
		return nil, wrong(line, err)
	}
	if r.Requests < 10 || r.Lines%sampled == 0 {
		r.lookForUnused(line)
	}
	at, err := e.StartTime.moment()
	if err != nil {
		return nil, "start_time: " + err.Error()
	}
	q := &Request{}
	if why := q.figures(&e); why != "" {
		return nil, why
	}
	if why := q.complete(&e); why != "" {
		return nil, why
	}
	if why := r.when(q, at); why != "" {
		return nil, why
	}
	r.nameIt(q, &e)
	r.Has.add(q)
	return q, ""
}

func (h *Has) add(q *Request) {
	h.Connections = h.Connections || q.Connection > 0
	h.RequestTimes = h.RequestTimes || q.Received >= 0
	h.ResponseTimes = h.ResponseTimes || q.Answered >= 0
	h.Lengths = h.Lengths || q.Announced >= 0 || q.Length >= 0
}

// figures reads times and sizes; why it can't.
func (q *Request) figures(e *entry) (why string) {
	for _, f := range []struct {
		name string
		from value
		to   *time.Duration
	}{
		{"duration", e.Duration, &q.Duration},
		{"request_duration", e.RequestDuration, &q.Received},
		{"request_tx_duration", e.RequestTx, &q.Forwarded},
		{"response_duration", e.ResponseBegins, &q.Answered},
		{"response_tx_duration", e.ResponseTx, &q.Sending},
	} {
		var err error
		if *f.to, err = f.from.milliseconds(); err != nil {
			return f.name + ": " + err.Error()
		}
	}
	id := int64(0)
	for _, f := range []struct {
		name string
		from value
		to   *int64
	}{
		{"request_length", e.RequestLength, &q.Announced},
		{"bytes_received", e.BytesReceived, &q.Body},
		{"response_length", e.ResponseLength, &q.Length},
		{"bytes_sent", e.BytesSent, &q.Response},
		{"connection_id", e.Connection, &id},
	} {
		var err error
		if *f.to, err = f.from.number(); err != nil {
			return f.name + ": " + err.Error()
		}
	}
	q.Connection = uint64(max(id, 0))
	return ""
}

// wrong says what is wrong with a line of JSON, so that alike lines are told alike.
func wrong(line []byte, err error) string {
	if line[0] != '{' {
		return "it is no JSON object; write json_format into Envoy's access log"
	}
	if typed := (*json.UnmarshalTypeError)(nil); errors.As(err, &typed) {
		return fmt.Sprintf("%s: it is a JSON %s, and must be a string", typed.Field, typed.Value)
	}
	text := err.Error()
	if strings.Contains(text, "unexpected end") {
		return "it ends in the middle of its JSON"
	}
	return "it is no JSON: " + text[:min(len(text), 80)]
}

// complete fills in what follows from the rest. why is what can't be done without.
func (q *Request) complete(e *entry) (why string) {
	if q.Duration < 0 {
		return "duration: it is missing; write \"%DURATION%\" into the format"
	}
	if q.Body < 0 && q.Response < 0 {
		return "bytes_received and bytes_sent: both are missing; write \"%BYTES_RECEIVED%\" and \"%BYTES_SENT%\" into the format"
	}
	q.Body, q.Response = max(q.Body, 0), max(q.Response, 0)
	if q.Answered < 0 {
		if service, err := e.ServiceTime.milliseconds(); err == nil && service >= 0 {
			q.Answered = max(q.Received, 0) + service
		}
	}
	if strings.HasPrefix(e.Protocol, "HTTP/2") || strings.HasPrefix(e.Protocol, "HTTP/3") {
		q.Flags |= HTTP2
	}
	for flag := range strings.SplitSeq(e.Flags, ",") {
		switch strings.TrimSpace(flag) {
		case "DC", "DR", "UC", "UR", "LR", "SI", "UT", "DT", "DPE", "UPE", "OM":
			q.Flags |= Broken
		}
	}
	if q.Answered < 0 {
		q.Flags |= Local
	}
	return ""
}

// when places a request in time.
func (r *reader) when(q *Request, at time.Duration) (why string) {
	if r.Requests == 0 {
		r.origin, r.last = at, 0
	}
	q.Start = at - r.origin
	if apart := q.Start - r.last; apart > MaxApart || apart < -MaxApart {
		return fmt.Sprintf("start_time: it is more than %v from the request before: times jump there; split the recording", MaxApart)
	}
	r.last = q.Start
	return ""
}

func (r *reader) nameIt(q *Request, e *entry) {
	if e.VirtualHost == "" || e.VirtualHost == "-" {
		e.VirtualHost = e.Authority
	}
	source := e.Source
	if host, port, ok := cutLast(source, ":"); ok && port != "" && (strings.HasSuffix(host, "]") || !strings.Contains(host, ":")) {
		source = strings.Trim(host, "[]")
	}
	path, _, _ := strings.Cut(e.Path, "?")
	for _, n := range []struct {
		name string
		to   *uint32
	}{
		{e.Route, &q.Route}, {e.Cluster, &q.Cluster}, {e.VirtualHost, &q.VirtualHost}, {source, &q.Source}, {path, &q.Path},
	} {
		if n.name == "-" {
			n.name = ""
		}
		*n.to = r.names.index(n.name)
	}
	for i, h := range r.options.Headers {
		q.Headers[i] = r.names.index(string(e.Headers[h]))
	}
}

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}

// lookForUnused notes fields that nobody asks for: one that was meant to be read may be misspelt.
func (r *reader) lookForUnused(line []byte) {
	var tree map[string]json.RawMessage
	if json.Unmarshal(line, &tree) != nil {
		return
	}
	for name := range tree {
		if !known[name] && len(r.unused) < maxKinds {
			r.unused[name[:min(len(name), 64)]] = true
		}
	}
}
