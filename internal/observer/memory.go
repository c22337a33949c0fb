package observer

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/highwater-envoy/highwater/internal/cgroup"
	"github.com/highwater-envoy/highwater/internal/memory"
)

const (
	// askTimeout is less than guard's, so that who asks hears why.
	askTimeout = 800 * time.Millisecond
	maxMemory  = 64 << 10
	// reconnect: in a hot restart the Envoy that goes answers on connections that it has, and only
	// new ones come to its successor.
	reconnect = 5 * time.Second
)

// read asks Envoy for its memory and looks at its process and container: the answer in Envoy's form
// with what was seen in it, and the same as a reading. told: whoever asked is told of a failure,
// and need not read of it in the log too.
func (o *Observer) read(ctx context.Context, told bool) (text []byte, r memory.Reading, err error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	asked := time.Now()
	if asked.Sub(o.connected) >= reconnect {
		o.connected = asked
		o.admin.client.CloseIdleConnections()
	}
	text, err = o.admin.get(ctx, o.options.Path, maxMemory)
	if err == nil {
		_, err = memory.Parse(text)
	}
	err = brief(err)
	took := time.Since(asked)
	if ctx.Err() == context.Canceled {
		return nil, r, ctx.Err() // it is not Envoy's fault
	}
	o.admin.asked(asked, took, err)
	// Whatever admin does: where it hangs, the container is all that can be seen.
	f, failures := o.target.look(asked, o.admin.at)
	if err == nil {
		if text, err = compose(text, f); err == nil {
			r, err = memory.Parse(text)
		}
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if f.pid != 0 && f.pid != o.mu.figures.pid {
		o.log.Info("Envoy's process is known", "pid", f.pid, "by", f.how)
	}
	o.mu.figures = f
	o.note(FaultProcess, failures.process)
	o.note(FaultCgroup, failures.cgroup)
	if told || o.options.Told {
		o.count(FaultMemory, err)
	} else {
		o.note(FaultMemory, err)
	}
	if err != nil {
		return nil, memory.Reading{}, err
	}
	o.mu.reading, o.mu.asked, o.mu.took = r, asked, took
	o.foresee(asked, r)
	return text, r, nil
}

// compose adds what was seen to Envoy's answer, in its form: numbers in quotes. It goes behind what
// Envoy said, which stays as it is: of a key that is there twice a reader takes the last, whatever
// its case.
func compose(text []byte, f figures) ([]byte, error) {
	m := map[string]json.RawMessage{}
	if err := json.Unmarshal(text, &m); err != nil {
		return nil, fmt.Errorf("not the answer of /memory: %w", err)
	}
	if m == nil {
		return nil, errors.New("not the answer of /memory: null")
	}
	text = bytes.TrimSpace(text)
	out := bytes.Clone(bytes.TrimRight(text[:len(text)-1], " \t\r\n")) // without the bracket
	comma := ","
	if len(m) == 0 {
		comma = ""
	}
	set := func(key string, n int64) {
		out = fmt.Appendf(out, "%s\n %q: \"%d\"", comma, key, n)
		comma = ","
	}
	if f.pid != 0 {
		set("resident", f.resident)
	}
	if c := f.container; c != nil {
		if c.Limit != cgroup.NoLimit && c.Limit > 0 {
			set("limit", c.Limit)
		}
		set("working_set", c.WorkingSet)
		set("sock", c.Sock)
	}
	return append(out, "\n}\n"...), nil
}

// Memory answers as Envoy's /memory does, with limit, resident, working_set and sock beside, as far
// as they are known: a filter may take its readings from here. What it answers was asked for after
// the call, in one question with all who wait.
func (o *Observer) Memory() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			w.Header().Set("Allow", "GET, HEAD")
			http.Error(w, "only GET and HEAD", http.StatusMethodNotAllowed)
			return
		}
		question := o.join(nil)
		select {
		case <-question.done:
		case <-r.Context().Done():
			return
		}
		w.Header().Set("Cache-Control", "no-store")
		if question.err != nil {
			http.Error(w, question.err.Error(), http.StatusBadGateway)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		_, _ = w.Write(question.text)
	})
}
