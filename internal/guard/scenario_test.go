package guard

import (
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"
	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/budget"
	"github.com/highwater-envoy/highwater/internal/config"
	"github.com/highwater-envoy/highwater/internal/memory"
	"github.com/highwater-envoy/highwater/internal/metric"
	"github.com/highwater-envoy/highwater/internal/unit"
)

// TestScenarios plays the stories of testdata/scenarios. After a change of the policy `go test
// ./internal/guard -run Scenarios -rewrite` writes what happens now; read the difference before it
// is committed. Where it is not obvious, `plot` shows it.
//
//	process [workers=1] [by=route] [limit=200MiB] [connections=0] [queue=1024] [timeout=2s]
//	        [evict=true] [mode=enforce] [weights=(a:2,b:1)] [buffers=64KiB] [on-stale=estimate]
//	read in-use=B [times=1]    a reading, after ticks of 25 ms: what each tick did, and the level
//	tick [for=25ms] [every=25ms] [in-use=B|none]
//	                           ticks for so long, with readings of B, or each reading fails
//	open NAME [n=1] [worker=0] key=K [bytes=B|unknown] [request=announced]
//	     [response=announced|silent]
//	                           n requests NAME1, NAME2 …; without bytes they have no body. One
//	                           worker after the other for worker=all. Of a direction that is
//	                           announced only the headers are told, of a silent one nothing.
//	respond GLOB [bytes=B|unknown] [counted]
//	                           response headers; counted: from here on its body is told
//	pass GLOB request|response bytes=B
//	                           so much more of the body
//	end GLOB request|response
//	close GLOB                 the streams end, their connections stay
//	connect [n=1] [source=10.0.0.1]
//	                           new connections, one worker after the other
//	disconnect GLOB
//	hang-up [n=1] [source=10.0.0.1]
//	                           connections of connect close, those first that came first
//	trap WORKER                it ticks no more, and its requests tell nothing any more
//	counts                     the counters of all workers, but for those that are 0
//	shares                     what each key has and may have, in all workers
//	books                      what the estimate is made of
//	poller                     the worker that asks for readings
//	plot                       reading, estimate and limit since the process began
func TestScenarios(t *testing.T) {
	datadriven.Walk(t, "testdata/scenarios", func(t *testing.T, file string) {
		t.Helper()
		s := &story{t: t}
		datadriven.RunTest(t, file, func(t *testing.T, d *datadriven.TestData) string {
			t.Helper()
			s.t, s.d = t, d
			if s.process != nil {
				s.process.t = t
			}
			return s.command()
		})
	})
}

// peer is a client's address.
type peer string

func (p peer) Source() string { return string(p) }

func (p peer) Uploads() bool { return p != notHTTP }

func (p peer) Method() string { return "POST" }

func (p peer) Place() string { return "10.0.0.254:443" }

func (p peer) ParsedAsHTTP() bool { return p != notHTTP }

const notHTTP = peer("not HTTP")

type peered struct {
	*Connection
	guard *Guard
}

// story is a process and the requests that are in flight.
type story struct {
	t *testing.T
	d *datadriven.TestData
	*process
	requests map[string]*request
	names    []string // in the order of their coming
	opened   map[string]int
	idle     map[string][]peered // connections without requests, by source
	trapped  map[int]bool        // workers
	poller   int                 // the worker that asks for readings
	begun    Time
	plot     plot
}

func (s *story) arg(key, otherwise string) string {
	if s.d.HasArg(key) {
		s.d.ScanArgs(s.t, key, &otherwise)
	}
	return otherwise
}

func (s *story) number(key string, otherwise int) int {
	if s.d.HasArg(key) {
		s.d.ScanArgs(s.t, key, &otherwise)
	}
	return otherwise
}

func (s *story) duration(key, otherwise string) time.Duration {
	d, err := time.ParseDuration(s.arg(key, otherwise))
	require.NoError(s.t, err, s.d.Pos)
	return d
}

// noReading stands for one that fails.
const noReading = -1

func (s *story) bytes(key string, otherwise int64) int64 {
	text := s.arg(key, "")
	switch text {
	case "":
		return otherwise
	case "unknown":
		return budget.Unknown
	case "none":
		return noReading
	}
	n, err := unit.ParseBytes(text)
	require.NoError(s.t, err, s.d.Pos)
	return int64(n)
}

func (s *story) command() string {
	if s.d.Cmd == "process" {
		s.start()
		return ""
	}
	defer s.sample()
	switch s.d.Cmd {
	case "read":
		did := tally{}
		for range s.number("times", 1) {
			s.step(did, 25*ms, s.bytes("in-use", 0))
		}
		return did.String() + s.state()
	case "tick":
		did := tally{}
		every := s.duration("every", "25ms")
		for until := s.now + s.duration("for", "25ms"); s.now < until; {
			s.step(did, every, s.bytes("in-use", s.table().InUse))
		}
		return did.String() + s.state()
	case "books":
		return s.books()
	case "poller":
		return fmt.Sprintln("worker", s.poller)
	case "trap":
		worker, err := strconv.Atoi(s.d.CmdArgs[0].Key)
		require.NoError(s.t, err, s.d.Pos)
		s.trapped[worker] = true
		return ""
	case "plot":
		return s.plot.String()
	case "open":
		return s.openAll()
	case "shares":
		return s.shares()
	case "counts":
		return s.counts()
	case "connect":
		return s.connect()
	case "hang-up":
		return s.hangUp()
	case "respond", "pass", "end", "close", "disconnect":
		return s.each(s.d.CmdArgs[0].Key)
	}
	s.d.Fatalf(s.t, "there is no command %q", s.d.Cmd)
	return ""
}

func (s *story) start() {
	s.process = newProcess(s.t, s.number("workers", 1), func(c *Config) {
		c.Budget.Limit.Bytes = unit.Bytes(s.bytes("limit", 200*mib))
		c.Budget.Connections = s.number("connections", 0)
		c.Throttle.Queue = s.number("queue", c.Throttle.Queue)
		c.Throttle.Timeout = unit.Duration(s.duration("timeout", "2s"))
		c.Buffers.Downstream = unit.Bytes(s.bytes("buffers", int64(c.Buffers.Downstream)))
		c.Buffers.Upstream = unit.Bytes(s.bytes("buffers", int64(c.Buffers.Upstream)))
		c.Memory.OnStale = s.arg("on-stale", c.Memory.OnStale)
		c.Fairness.By = s.arg("by", config.ByRoute)
		c.Evict = s.arg("evict", "true") == "true"
		c.Mode = Mode(s.arg("mode", string(Enforce)))
		if s.d.HasArg("weights") {
			c.Fairness.Weights = map[string]float64{}
			i := slices.IndexFunc(s.d.CmdArgs, func(a datadriven.CmdArg) bool { return a.Key == "weights" })
			for _, v := range s.d.CmdArgs[i].Vals {
				name, text, _ := strings.Cut(v, ":")
				weight, err := strconv.ParseFloat(text, 64)
				require.NoError(s.t, err)
				c.Fairness.Weights[name] = weight
			}
		}
	})
	s.requests, s.names, s.opened, s.idle = map[string]*request{}, nil, map[string]int{}, map[string][]peered{}
	s.trapped, s.poller, s.begun, s.plot = map[int]bool{}, 0, s.now, plot{limit: s.bytes("limit", 200*mib)}
}

// step lets a tick pass on all workers, and answers what is asked for.
func (s *story) step(did tally, after Time, inUse int64) {
	s.now += after
	for i, w := range s.workers {
		if s.trapped[i] {
			continue
		}
		a := w.Tick(s.now)
		s.note(did, a)
		if a.Polls {
			s.poller = i
		}
		switch {
		case !a.Ask:
		case inUse == noReading:
			w.Observe(s.now, memory.Reading{}, errors.New("connection refused"))
		default:
			w.Observe(s.now, memory.Reading{InUse: inUse, Allocated: inUse}, nil)
		}
	}
	s.sample()
}

// account is that of a worker that knows the newest.
func (s *story) account() *budget.Account { return s.workers[s.poller].Account() }

func (s *story) table() *budget.Table { return s.account().Table() }

// sample notes for the plot what is known now.
func (s *story) sample() {
	t, sum := s.table(), s.sum()
	now := point{at: s.now - s.begun, reading: t.InUse, estimate: t.Reading + sum.Fresh + sum.Coming}
	if s.account().Stale(s.now) {
		now.reading, now.estimate = noReading, t.Base+sum.Bounds+sum.Coming
	}
	s.plot.add(now)
}

// sum is what all workers have, as of now.
func (s *story) sum() (all budget.Entry) {
	for i, w := range s.workers {
		own := w.Account().Own()
		if s.trapped[i] {
			own = s.last(own.ID)
		}
		all.Fresh, all.Coming, all.Bounds = all.Fresh+own.Fresh, all.Coming+own.Coming, all.Bounds+own.Bounds
		all.Queue.Waiting += own.Queue.Waiting
	}
	return all
}

// last is what the others know of a trapped worker, until they drop it.
func (s *story) last(id uint32) budget.Entry {
	for _, e := range s.table().Entries {
		if e.ID == id {
			return e
		}
	}
	return budget.Entry{}
}

// books is what the estimate is made of.
func (s *story) books() string {
	t, sum := s.table(), s.sum()
	size := func(n int64) string { return unit.Bytes(n).Human() }
	return fmt.Sprintf("reading %s, fresh %s, coming %s; in flight at most %s\n", size(t.Reading), size(sum.Fresh), size(sum.Coming), size(sum.Bounds))
}

func (s *story) note(did tally, a *Actions) {
	if a.Resume != nil {
		did.add("resumed", s.name(a.Resume))
	}
	for _, r := range a.Rejected {
		v := r.Verdict
		v.Waited, v.RetryAfter = 0, 0
		did.add(v.String(), s.name(r.Stream))
	}
	for _, x := range a.Close {
		did.add("closed", s.name(x))
	}
	for range a.Cut {
		did.add("connection cut", "")
	}
	for range a.Idle {
		did.add("idle connection closed", "")
	}
}

// name is that of the request without its number.
func (s *story) name(x *Stream) string {
	for name, r := range s.requests {
		if &r.Stream == x {
			return strings.TrimRight(name, "0123456789")
		}
	}
	return "?"
}

// state is what the process knows.
func (s *story) state() string {
	t, waiting := s.table(), s.sum().Queue.Waiting
	text := fmt.Sprintf("level %v", t.Level)
	if t.Futile {
		text += ", shedding is futile"
	}
	if t.Impossible {
		text += ", the limit is impossible"
	}
	if waiting > 0 {
		text += fmt.Sprintf(", %d waiting", waiting)
	}
	return text + "\n"
}

func (s *story) openAll() string {
	name, did := s.d.CmdArgs[0].Key, tally{}
	for range s.number("n", 1) {
		s.opened[name]++
		worker := s.opened[name] % len(s.workers)
		if s.arg("worker", "all") != "all" {
			worker = s.number("worker", 0)
		}
		key := s.arg("key", "")
		r := &request{connected: s.connection(worker), route: key, tenant: key}
		s.hide(r)
		full := fmt.Sprint(name, s.opened[name])
		s.requests[full] = r
		s.names = append(s.names, full)
		v := s.guards[worker].Open(s.now, &r.Stream, r, s.bytes("bytes", 0))
		did.add(v.String(), name)
	}
	return did.String()
}

// hide sets what is not told of the request.
func (s *story) hide(r *request) {
	response := s.arg("response", "counted")
	r.hides = [2]bool{budget.Request: s.arg("request", "counted") == "announced", budget.Response: response != "counted"}
	r.untold = response == "silent"
}

// each does the command to all whose names match.
func (s *story) each(glob string) string {
	did := tally{}
	for _, name := range slices.Clone(s.names) {
		if ok, err := path.Match(glob, name); err != nil || !ok {
			require.NoError(s.t, err)
			continue
		}
		r, base := s.requests[name], strings.TrimRight(name, "0123456789")
		g := r.guard
		switch s.d.Cmd {
		case "respond":
			r.hides[budget.Response] = r.hides[budget.Response] && !s.d.HasArg("counted")
			did.add(g.Expect(s.now, &r.Stream, s.bytes("bytes", 0)).String(), base)
		case "pass":
			did.add(g.Grow(s.now, &r.Stream, s.direction(), s.bytes("bytes", 0)).String(), base)
		case "end":
			g.End(s.now, &r.Stream, s.direction())
		case "close":
			g.Close(s.now, &r.Stream)
			s.names = slices.DeleteFunc(s.names, func(n string) bool { return n == name })
		case "disconnect":
			g.Close(s.now, &r.Stream)
			g.Worker().CloseConnection(s.now, r.connected)
			delete(s.requests, name)
			s.names = slices.DeleteFunc(s.names, func(n string) bool { return n == name })
		}
	}
	return did.String()
}

func (s *story) direction() budget.Direction {
	if s.d.HasArg("response") {
		return budget.Response
	}
	return budget.Request
}

func (s *story) connect() string {
	did := tally{}
	for i := range s.number("n", 1) {
		s.nextID++
		c := &Connection{Context: s.nextID}
		source, g := s.arg("source", "10.0.0.1"), s.guards[i%len(s.guards)]
		if g.OpenConnection(s.now, c, peer(source)) {
			s.idle[source] = append(s.idle[source], peered{c, g})
			did.add("admitted", "")
		} else {
			did.add("refused", "")
		}
	}
	return did.String()
}

func (s *story) hangUp() string {
	source, n := s.arg("source", "10.0.0.1"), s.number("n", 1)
	for _, l := range s.idle[source][:n] {
		l.guard.Worker().CloseConnection(s.now, l.Connection)
	}
	s.idle[source] = s.idle[source][n:]
	return ""
}

func (s *story) counts() string {
	did := tally{}
	for _, w := range s.workers {
		for i, n := range w.Counts() {
			if n > 0 {
				did[[2]string{metric.Counters()[i].Name, ""}] += int(n)
			}
		}
	}
	return did.String()
}

func (s *story) shares() string {
	var b strings.Builder
	seen := map[string][3]int64{}
	for _, w := range s.workers {
		w.exchangeShares(s.now)
	}
	for _, w := range s.workers {
		w.eachKey(func(k *key) {
			have := seen[k.Name.Value]
			have[0] += k.Value.use()
			have[1] += k.Value.queue.Bytes()
			have[2] = max(have[2], k.Value.Share)
			seen[k.Name.Value] = have
		})
	}
	for _, name := range slices.Sorted(maps.Keys(seen)) {
		v := seen[name]
		if v[0] == 0 && v[1] == 0 {
			continue
		}
		fmt.Fprintf(&b, "%s: has %s, waits for %s, of a share of %s\n", name, unit.Bytes(v[0]).Human(), unit.Bytes(v[1]).Human(), unit.Bytes(v[2]).Human())
	}
	return b.String()
}

// tally counts what happened to whom.
type tally map[[2]string]int

func (t tally) add(what, who string) { t[[2]string{what, who}]++ }

func (t tally) String() string {
	var b strings.Builder
	for _, k := range slices.SortedFunc(maps.Keys(t), func(a, b [2]string) int {
		return strings.Compare(a[0]+a[1], b[0]+b[1])
	}) {
		fmt.Fprintf(&b, "%d %s\n", t[k], strings.TrimSpace(k[1]+" "+k[0]))
	}
	return b.String()
}
