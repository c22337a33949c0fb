package guard

import (
	"fmt"
	"reflect"
	"strings"

	"github.com/highwater-envoy/highwater/internal/budget"
	"github.com/highwater-envoy/highwater/internal/config"
	"github.com/highwater-envoy/highwater/internal/fairness"
	"github.com/highwater-envoy/highwater/internal/polling"
	"github.com/highwater-envoy/highwater/internal/price"
	"github.com/highwater-envoy/highwater/internal/reservoir"
	"github.com/highwater-envoy/highwater/internal/unit"
)

// What the state is made of is here: values that know neither a worker nor a stream.

// policy is what all plugins of a process have in common, and is in force in all of it: the plugin
// that started last sets it. The zero value is that before any has started.
type policy struct {
	_ [0]func() // no two are compared: the function that could would only take room in the .wasm

	inForce   bool
	enforcing bool // verdicts are carried out on a listener at least: see SetEnforcing
	budget    config.Budget
	throttle  config.Throttle
	memory    config.Memory
	trace     config.Trace
	reject    config.RetryAfter
	linger    unit.Duration
	evicts    bool
	limits    *budget.Limits // what budget comes to, as the account has it
}

// shared are the same figures under the keys that they have in a configuration.
type shared struct {
	Budget     config.Budget     `json:"budget"`
	Throttle   config.Throttle   `json:"throttle"`
	Memory     config.Memory     `json:"memory"`
	Trace      config.Trace      `json:"trace"`
	RetryAfter config.RetryAfter `json:"reject.retry_after"`
	Linger     unit.Duration     `json:"buffers.linger"`
	Evict      bool              `json:"evict"`
}

func (p *policy) shared() shared {
	return shared{p.budget, p.throttle, p.memory, p.trace, p.reject, p.linger, p.evicts}
}

// set puts a configuration's part of it in force, and returns what that changes.
func (p *policy) set(c *config.Config) (changed string) {
	was, before := p.shared(), p.inForce
	p.inForce = true
	p.budget, p.throttle, p.memory, p.trace = c.Budget, c.Throttle, c.Memory, c.Trace
	p.reject, p.linger, p.evicts = c.Reject.RetryAfter, c.Buffers.Linger, c.Evict
	if is := p.shared(); before && was != is {
		changed = differences(&was, &is)
	}
	return changed
}

// differences lists what is not the same, such as "budget.limit 200MiB → 150MiB, evict true →
// false".
func differences(was, is *shared) string {
	var all []string
	compareFields("", reflect.ValueOf(was).Elem(), reflect.ValueOf(is).Elem(), &all)
	return strings.Join(all, ", ")
}

func compareFields(path string, was, is reflect.Value, all *[]string) {
	for i := range was.NumField() {
		key, _, _ := strings.Cut(was.Type().Field(i).Tag.Get("json"), ",")
		a, b := was.Field(i), is.Field(i)
		if _, text := a.Interface().(fmt.Stringer); a.Kind() == reflect.Struct && !text {
			compareFields(path+key+".", a, b, all)
		} else if x, y := fmt.Sprint(a.Interface()), fmt.Sprint(b.Interface()); x != y {
			*all = append(*all, fmt.Sprintf("%s%s %s → %s", path, key, orNone(x), orNone(y)))
		}
	}
}

func orNone(text string) string {
	if text == "" {
		return "none"
	}
	return text
}

// exemptions are the rules of exempt, ready to be asked.
type exemptions struct {
	paths    []string // prefixes; a grpc_service is /package.Service/
	routes   []string
	clusters []string
}

func exemptionsOf(rules []config.Exempt) (x exemptions) {
	for i := range rules {
		switch e := &rules[i]; {
		case e.PathPrefix != "":
			x.paths = append(x.paths, e.PathPrefix)
		case e.Route != "":
			x.routes = append(x.routes, e.Route)
		case e.Cluster != "":
			x.clusters = append(x.clusters, e.Cluster)
		default:
			x.paths = append(x.paths, "/"+e.GRPCService+"/")
		}
	}
	return x
}

// pace says when a worker's next tick is due.
//
// What the others know of a worker, and it of them, is a tick old, so that ticks must come often
// while there is anything to know. But a tick of an idle machine costs some 0.2 ms of CPU, most of
// it to wake up: 40 a second and worker cost as much as 300 requests. So a worker ticks fast while
// somebody waits, and slower the less there is to do; and a tick may rest, which is to do nothing.
type pace struct {
	_ [0]func() // no two are compared: the function that could would only take room in the .wasm

	ticks      uint64      // those that did not rest
	rested     bool        // the last tick was none
	active     budget.Time // when there was last something to do
	judgedTick uint64      // the tick since which one was judged that could be presumed
	Sleeps     bool        // the next tick comes late: Wake it, where a connection or a request begins or bytes come
}

// Wake says that there is work again, where Sleeps is true: the next tick is due after Tick at the
// latest.
func (p *pace) Wake(now budget.Time) { p.Sleeps, p.active = false, now }

// reader is a worker's part in reading the allocator.
type reader struct {
	polls bool // it is this worker that asks
	poll  polling.Poll
}

// prices is what a stream of each key holds beside its bytes, as it was learnt: see learnPrices.
type prices struct {
	model   *price.Model  // where this worker has polled; else nil
	parts   []price.Part  // of all workers
	counts  []price.Count // the same, for the model
	inForce []price.Price // by id
	told    price.Told
	heard   price.Told // to be used again
	hasTold bool       // the others have something of this worker
	at      budget.Time
	logged  []uint64    // ids of keys whose price was
	toldAt  budget.Time // and when the last was
	buf     []byte
}

// shares is what the workers of a process tell each other of their keys, and what follows.
//
// Each worker publishes a total for each of its keys: what it has, what it waits for, how many
// connections. From all totals each reckons the same: by weighted max-min, what a key would have if
// it wanted all there is. That is done for the room, for what lies between soft and hard, for a
// quarter of the floor and for connections. What a key has on the other workers is taken off where
// it asks. One that nobody knew at the exchange is the newcomer until the next.
type shares struct {
	fairness.Exchange
	at       budget.Time          // of the last one; 0 = there was none
	newcomer fairness.Entitlement // of one that comes now
	newPart  int64                // of connections, likewise
	buf      []byte
	own      []fairness.Total
}

// openEnded is what is learnt of requests of which nothing is told but that they are there: no byte
// of an upgrade (WebSocket) or of CONNECT comes to an ext_proc server. See Worker.learnOpenEnded.
type openEnded struct {
	price  int64 // of one, bytes
	known  bool
	looked budget.Time
}

// probes is what a key has under way for responses that nothing is known of: see Worker.mayProbe.
type probes struct {
	_ [0]func() // no two are compared: the function that could would only take room in the .wasm

	unknown    int64       // what the responses may hold of requests that went when nothing was known of any, and are not answered
	probing    int64       // what those of its probes may hold, and is not reserved
	probed     budget.Time // when the last of them went
	cameProbed bool        // it had just come, and did not wait
	sampled    int         // large responses without a length that are counted: see Guard.WantsBody
}

// body is that of a request, bytes.
type body struct {
	length    int64 // announced, or Unknown
	bodyLimit int64 // filters may hold so much, where its connection has caps
	wants     int64 // what it brings, announced or forecast, at most its cap
}

// unproven is what a cold request's response may hold and is in one of two sums, until its headers
// have come or, as any reservation for them, it lapses. A probe goes without what it expects being
// reserved: few are enough for many, because each is over when its response's headers have come.
// And what went when nothing was known of its key tells that more of those are no news.
//
// The two are not one sum: what went unknown would count as probes, of which a key with large
// responses has one at a time (scenario hidden_bodies), and requests that are exempt would take the
// places of probes (TestHiddenExempt).
type unproven struct {
	probing int64 // in the worker's and its key's sum of what probes may hold
	unknown int64 // in its key's sum of what may be held of those that went when nothing was known
	sampled bool  // in its key's number of large responses that are counted

	declined bool // that its response's body be counted: see Guard.WantsBody
}

// meanwhile is what has come of a shadow's response. Where the shadow stands in the queue, it is
// judged when that has let it go.
type meanwhile struct {
	answered bool
	length   int64
}

// arrivals is what has come on a connection, bytes.
type arrivals struct {
	_ [0]func() // no two are compared: the function that could would only take room in the .wasm

	last    int64 // in the last read
	since   int64 // since its last request began, or ended
	arrived int64 // for the paused HTTP/1 request, before and since
	from    int64 // of what comes first, so much can be refused: see burdens
	most    int64 // that a request may leave unread while it waits
	asks    bool  // what has come since is a request without a body: see Worker.crowds
}

// ended are the ticks in which something of a connection was.
type ended struct {
	endedIn uint64 // a stream of it
	cut     uint64 // itself
}

// Caps are what a face has set itself on a connection, bytes. A face that can't sets none, and then
// `buffers` tells what Envoy may hold.
//
// On HTTP/1 Envoy reads Read ahead of its filters, and they hold what the route and the listener
// let them (Host.BodyLimit), or the upstream's connection does. A paused or rejected request leaves
// what the last read has brought, for its face has Envoy stop to read. Of HTTP/2 a face can set the
// connection's part alone: what its streams may send ahead is in their windows. A response that is
// Metered has Read in the codec, or the one piece that came first, and Own in front of it.
type Caps struct {
	Read int64 // the connection's buffer limit; 0 = none is set
	Own  int64 // that of its listener, which each request's own is restored to; 0 = it has none

	Metered bool // it is HTTP/2, and no more passes to its codec than its client takes
}

// tracer is a worker's sample of its requests. Who is in it is decided when the worker looks: when
// a mark is made or somebody wants to see it, and each traceEvery meanwhile, so that the labels of
// those that stay are there by then. A stream that is short or small costs nothing, not even a
// draw.
type tracer struct {
	gap      float64     // as of the last look; 0 = there was none
	at       budget.Time // of that
	epoch    int64       // the last mark that was seen
	looked   budget.Time // and the last wish to see the sample as of now
	count    reservoir.Count
	snapshot reservoir.Snapshot
	buf      []byte
	names    map[string]string
}

// traced is what the sample knows of a stream, or of what an ended response left unread on its
// connection. The zero value is one that nobody has looked at yet.
type traced struct {
	draw      float64           // see reservoir.Draw; 0 = not drawn yet
	reach     int64             // the most that it has come to, as far as was looked
	labels    *reservoir.Labels // nil = it is not in the sample
	described bool              // the labels are all there, not the method alone
	opened    budget.Time
}

// futile is what lets large requests in while shedding is futile: as many as the floor has room
// for, and one at a time beside.
type futile struct {
	taken bool        // the one beside is there
	ended budget.Time // when the last that was let in by this ended: the next one needs a reading asked for after that
}
