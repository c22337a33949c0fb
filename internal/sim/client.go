package sim

import (
	"math/rand/v2"
	"time"
)

// Call is one request and what becomes of it, if nobody stands in the way.
type Call struct {
	Body     int64 // bytes that the client sends; it may stop before Announced, or send less
	Announce int64 // Content-Length; Unknown = chunked
	SendRate int64 // bytes/s; 0 = as fast as it is read
	Wait     Time  // of the upstream, before it reads the request's body
	TakeRate int64 // at which the upstream reads the request, bytes/s; 0 = at once
	Think    Time  // of the upstream, from the request's last byte to the response

	Response int64 // bytes
	Chunked  bool  // without Content-Length
	GiveRate int64 // at which the upstream sends it, bytes/s; 0 = at once
	ReadRate int64 // at which the client reads it, bytes/s; 0 = at once
	Idle     bool  // with Chunked: it does not end, and nothing more comes, until the client hangs up
	// Stall, if not nil, says when the client does not read: it may drain what Envoy holds and
	// stall again.
	Stall func(since Time) bool

	HangUp Time // after which the client gives up, whatever the phase; 0 = never
}

// Upload is a request of n announced bytes with a short response.
func Upload(n int64, wait Time) Call { return Call{Body: n, Announce: n, Wait: wait, Response: 200} }

// Get is a request without a body.
func Get(response int64, wait Time) Call { return Call{Response: response, Wait: wait} }

// Client makes calls, one after the other.
type Client struct {
	Class     string // under which it is counted
	Start     Time   // since the beginning
	Stop      Time   // when it makes no new call any more; 0 = at the end of the load
	Calls     int    // how many it makes at most; 0 = until it stops
	Every     Time   // pace: a call begins no earlier than so long after the one before began; 0 = at once
	Retry     Time   // after a reject or a broken connection; its call is made again
	Obey      bool   // after a reject it comes back when it was told to, if it was
	Fresh     bool   // a connection for each call
	HTTP2     int    // id of the HTTP/2 connection that it shares with others; 0 = an HTTP/1 connection of its own
	Conn      int    // id of the HTTP/1 connection that it takes if it is free, and no HTTP/2 one has; 0 = one of its own
	Worker    int    // that takes its connections; -1 = any
	MakeCall  func(random *rand.Rand) Call
	KeepCalls bool // a rejected call counts as one of Calls
	Who       *Who // nil = its route, and any header, is called as Class is

	// Of clients from a Source: the call is made no earlier than Gap after the one before in the
	// chain has ended, and never beside it. nil = it waits for no other.
	Chain *Chain
	Gap   Time
}

// Who says whose requests are.
type Who struct {
	Route, Cluster, VirtualHost, Source, Path string
	Names                                     []string // of the headers that it has
	Header                                    func(name string) string
}

// Chain are calls that are made one after the other. The zero value is ready.
type Chain struct {
	busy    bool
	ended   Time // the last one; 0 = none has
	waiting []*client
}

// Load is a list of clients, and how long they make calls.
type Load struct {
	Name     string
	Clients  []Client
	Duration Time
	Warm     Time // calls that are done, and all else that classes count, count from then on
	// Drain is how long those under way when the time is over may go on.
	Drain Time
	// Source, if not nil, names further clients while the load goes on, is told what becomes of
	// them, and with it Envoy forgets who has made his calls. Then the report has no samples and no
	// latencies, and nothing holds the filter's estimate against the truth: a load may be as long
	// as it wants, and stretches in which nothing happens take no time.
	Source Source
}

// Repeat returns n clients like the one given, each a little later than the one before.
func Repeat(n int, apart Time, c Client) []Client {
	all := make([]Client, n)
	for i := range all {
		all[i] = c
		all[i].Start += Time(i) * apart
	}
	return all
}

// Small is n GETs a second: the bystanders.
func Small(perSecond int) []Client {
	const clients = 20
	every := time.Second * clients / Time(perSecond)
	return Repeat(clients, every/clients, Client{
		Class: "small", Worker: -1, Every: every, Retry: every, KeepCalls: true,
		MakeCall: func(*rand.Rand) Call { return Get(1000, time.Millisecond) },
	})
}

// client is one at work.
type client struct {
	*Client
	conn    *Conn
	next    Time // when its next call begins
	call    Call
	pending bool // call is to be made (again)
	begun   Time // of the call in hand, its first try
	told    Time // it has come back after so long, as it was told, or will; 0 = it was told nothing
	made    int
	busy    bool // a stream of it is under way
	queued  bool // it is in the queue of those to make a call
	under   bool // it is counted among those with a call under way
}
