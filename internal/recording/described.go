package recording

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/highwater-envoy/highwater/internal/unit"
)

// Group is a number of clients that are alike, of a described load. Sizes and times are written as
// in Highwater's configuration: 4MiB, 2s. Rates are bytes a second; 0 = as fast as it goes.
type Group struct {
	Name    string `json:"name"`    // what it is called in the report; its route where route is not given
	Clients int    `json:"clients"` // how many; required

	Start unit.Duration `json:"start"` // when the first begins
	Apart unit.Duration `json:"apart"` // each begins so much later than the one before
	Stop  unit.Duration `json:"stop"`  // when they make no call any more; needed where calls is not given
	Calls int           `json:"calls"` // of each client; 0 = until stop
	Every unit.Duration `json:"every"` // a call begins no earlier than so long after the one before began

	Upload   unit.Bytes `json:"upload"`    // the request's body; 0 = it has none
	Chunked  bool       `json:"chunked"`   // the request has no content-length
	SendRate unit.Bytes `json:"send_rate"` // of the client
	TakeRate unit.Bytes `json:"take_rate"` // of the upstream

	Wait  unit.Duration `json:"wait"`  // of the upstream, before it reads the body
	Think unit.Duration `json:"think"` // of the upstream, from the body's end to the response

	Response unit.Bytes    `json:"response"`  // its body
	Streamed bool          `json:"streamed"`  // it has no content-length
	GiveRate unit.Bytes    `json:"give_rate"` // of the upstream
	ReadRate unit.Bytes    `json:"read_rate"` // of the client
	HangUp   unit.Duration `json:"hang_up"`   // the client gives up after so long; 0 = never

	HTTP2         bool `json:"http2"`
	PerConnection int  `json:"per_connection"` // HTTP/2: clients that share a connection; 0 = all

	Route       string            `json:"route"`
	Cluster     string            `json:"cluster"`
	VirtualHost string            `json:"virtual_host"`
	Source      string            `json:"source"`
	Path        string            `json:"path"`
	Headers     map[string]string `json:"headers"`
}

// The bounds of what may be described.
const (
	MaxClients = 100_000
	maxGroups  = 1000
	maxTime    = MaxApart
)

func kindOf(line []byte) kind {
	if bytes.Contains(line, []byte(`"clients"`)) && !bytes.Contains(line, []byte(`"start_time"`)) {
		return described
	}
	return notKnown
}

// describe takes a line of a described load. What is wrong with it ends it all: who writes it can
// mend it.
func (r *reader) describe(line []byte) error {
	d := json.NewDecoder(bytes.NewReader(line))
	d.DisallowUnknownFields()
	var g Group
	if err := d.Decode(&g); err != nil {
		return errors.New(strings.TrimPrefix(err.Error(), "json: "))
	}
	if d.More() {
		return errors.New("something stands behind the object; write one object a line")
	}
	if err := g.validate(); err != nil {
		return err
	}
	total := g.Clients
	for i := range r.Groups {
		total += r.Groups[i].Clients
	}
	switch {
	case total > MaxClients:
		return fmt.Errorf("clients: there are %d in all, no more than %d may be", total, MaxClients)
	case len(r.Groups) == maxGroups:
		return fmt.Errorf("there are more than %d groups", maxGroups)
	}
	if g.Name == "" {
		g.Name = fmt.Sprintf("group %d", len(r.Groups)+1)
	}
	if g.Route == "" {
		g.Route = g.Name
	}
	r.Groups = append(r.Groups, g)
	end := time.Duration(g.Stop)
	if end == 0 {
		end = time.Duration(g.Start) + time.Duration(g.Clients-1)*time.Duration(g.Apart) + time.Duration(max(g.Calls-1, 0))*time.Duration(g.Every) + time.Second
	}
	if end > maxTime {
		return fmt.Errorf("it lasts %v, no more than %v may be", end, maxTime)
	}
	r.Span = max(r.Span, end)
	return nil
}

func (g *Group) validate() error {
	switch {
	case g.Clients < 1:
		return errors.New("clients: must be at least 1")
	case g.Clients > MaxClients:
		return fmt.Errorf("clients: no more than %d may be", MaxClients)
	case g.Calls == 0 && g.Stop == 0:
		return errors.New("stop: write when the clients make no call any more, such as \"8s\", or with calls how many each makes")
	case g.Calls < 0 || g.Calls > MaxClients:
		return fmt.Errorf("calls: must be from 0 to %d", MaxClients)
	case g.PerConnection < 0:
		return errors.New("per_connection: must not be negative")
	}
	return g.inRange()
}

func (g *Group) inRange() error {
	for name, d := range map[string]unit.Duration{
		"start": g.Start, "apart": g.Apart, "stop": g.Stop, "every": g.Every, "wait": g.Wait, "think": g.Think, "hang_up": g.HangUp,
	} {
		if d < 0 || time.Duration(d) > maxTime {
			return fmt.Errorf("%s: must be from 0s to %v", name, maxTime)
		}
	}
	for name, b := range map[string]unit.Bytes{
		"upload": g.Upload, "response": g.Response, "send_rate": g.SendRate, "take_rate": g.TakeRate, "give_rate": g.GiveRate, "read_rate": g.ReadRate,
	} {
		if b < 0 || b > mostBytes {
			return fmt.Errorf("%s: is out of range", name)
		}
	}
	return nil
}
