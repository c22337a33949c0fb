package guard

import (
	"github.com/highwater-envoy/highwater/internal/budget"
	"github.com/highwater-envoy/highwater/internal/fairness"
	"github.com/highwater-envoy/highwater/internal/forecast"
)

// keyring is the keys of a worker, and what follows from all of them.
type keyring struct {
	keys      *fairness.Keys[keyed]
	guards    []*Guard // that requests come to: their weights name keys
	shares    shares
	sources   int // connections that are told apart by their source
	heavyKeys int // how many keys have large responses
}

// keyed is what a worker knows of one key.
type keyed struct {
	budget.Sum // what its streams have
	queue      fairness.Queue[Stream]
	forecast.History
	probes
	entitlement
	sockets
	most      int64 // what one of its streams likely holds, while memory is over the limit
	rejected  int64 // bytes that were rejected and may come back, fewer and fewer since
	lastLarge Time  // when its last large request or response came
}

// probes is what a key has under way for responses that nothing is known of: see Worker.mayProbe.
type probes struct {
	_ [0]func() // no two are compared: the function that could would only take room in the .wasm

	unknown    int64 // what the responses may hold of requests that went when nothing was known of any, and are not answered
	probing    int64 // what those of its probes may hold, and is not reserved
	probed     Time  // when the last of them went
	cameProbed bool  // it had just come, and did not wait
}

type key = fairness.Key[keyed]

func (k *keyed) use() int64 { return k.Coming + k.Likely }

// keyOf asks the host once whose the stream is.
func (g *Guard) keyOf(now Time, s *Stream) *key {
	if !s.keyed {
		g.setKey(now, s)
	}
	return s.key
}

func (g *Guard) setKey(now Time, s *Stream) {
	s.keyed = true
	if g.by == nil {
		return
	}
	if k := g.named(now, fairness.Name{By: g.config.Fairness.By, Value: g.by(s.host)}); k != s.key {
		s.key.Refs--
		s.key = k
		k.Refs++
		g.worker.account.Move(&s.Stream, &k.Value.Sum)
	}
}

// keepPlaces has the keys that the guards' weights name keep their places, whatever names clients
// make up.
func (w *Worker) keepPlaces() {
	names := map[fairness.Name]bool{}
	for _, g := range w.guards {
		for name := range g.config.Fairness.Weights {
			names[fairness.Name{By: g.config.Fairness.By, Value: name}] = true
		}
	}
	w.keys.Name(names)
}

func (g *Guard) named(now Time, name fairness.Name) *key {
	if len(name.Value) > fairness.MaxName {
		name.Value = name.Value[:fairness.MaxName]
	}
	k := g.worker.keys.Get(now, name, g.config.Fairness.Weight)
	if x := &g.worker.shares; k.Value.at != x.at { // it was not there at the last exchange
		k.Value.entitlement, k.Value.part, k.Value.elsewhere = x.newcomer, x.newPart, 0
	}
	return k
}

// learn teaches a key's forecasts what a message without a length came to.
func (w *Worker) learn(now Time, k *key, d budget.Direction, n int64) {
	k.Value.Bodies[d].Learn(n)
	if d == budget.Response {
		w.learnResponse(now, k, n)
	}
}

// teach teaches the forecast of all responses of a stream's key. Where the key is not known, it is
// one whose responses are small, and this one is too.
func (w *Worker) teach(now Time, s *Stream, n int64) {
	if s.keyed {
		w.learnResponse(now, s.key, n)
	}
}

func (w *Worker) learnResponse(now Time, k *key, n int64) {
	if k.Value.LearnResponse(now, n, int64(w.budget.Small)) {
		w.countHeavy()
	}
}

func (w *Worker) countHeavy() {
	w.heavyKeys = 0
	w.eachKey(func(k *key) {
		if k.Value.Heavy() {
			w.heavyKeys++
		}
	})
}

func (w *Worker) eachKey(do func(k *key)) {
	do(&w.keys.Other)
	for _, k := range w.keys.All() {
		do(k)
	}
}
