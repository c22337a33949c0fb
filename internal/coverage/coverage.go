// Package coverage learns how much of the requests a face is told.
package coverage

import (
	"sync/atomic"
	"time"
)

// Coverage learns how much of the requests a face is told, where the configuration of Envoy's
// filter decides that and nobody can be asked for it: from what comes, and from what does not
// though it should.
//
// Bodies: a face may ask for the body of a message without a length, so that it is counted as it
// passes. A filter that ignores this sends none. One message may have no body; so many of them, and
// not one with a body, show that none is sent. From then on nobody asks, and such bodies are
// forecast. A filter that has sent one is always asked.
//
// Responses: a filter may skip response headers. A request whose client gives up ends without them
// too, but not so many in a row, and not while other responses are told. From then on a request has
// to have room for all that its response can be, until a response is told.
//
// The zero value expects to be told everything. All methods may be called at the same time.
type Coverage struct {
	bodyCame      atomic.Bool  // one that was asked for
	bodiesMissed  atomic.Int64 // so many that were asked for did not come, as long as none had
	lastResponse  atomic.Int64 // when one was told last; 0 = never
	silentsInARow atomic.Int64 // so many requests in a row have ended without a word of their responses
}

// EnoughMissed is how many bodies that were asked for have to be missed for the filter to be
// believed to send none.
const EnoughMissed = 32 // TestCoverageOfBodies

// EnoughSilent is how many requests in a row have to end without their responses for the filter to
// be believed to skip these.
const EnoughSilent = 16 // TestCoverageOfResponses, TestResponsesThatAreNotTold

// giveUpWithin: while any response was told so recently, one that was not is of a client that gave
// up, and says nothing of the filter.
const giveUpWithin = 2 * time.Second // TestCoverageOfResponses

// BodyCame notes that a body has come that was asked for.
func (c *Coverage) BodyCame() { c.bodyCame.Store(true) }

// BodyMissed notes that a body was asked for and has not come, where it must have if it was to. It
// says whether that was the one that shows that none will come.
func (c *Coverage) BodyMissed() (shown bool) {
	return !c.bodyCame.Load() && c.bodiesMissed.Add(1) == EnoughMissed
}

// SendsBodies says whether it makes sense to ask for a body.
func (c *Coverage) SendsBodies() bool { return c.bodiesMissed.Load() < EnoughMissed }

// ResponseCame notes that the headers of a response were told.
func (c *Coverage) ResponseCame(now time.Duration) {
	c.lastResponse.Store(int64(now))
	if c.silentsInARow.Load() != 0 { // most often it is: a store would take the cache line from others
		c.silentsInARow.Store(0)
	}
}

// ResponseMissed notes that a request has ended without a word of its response. It says whether
// that was the one that shows that responses are not told.
func (c *Coverage) ResponseMissed(now time.Duration) (shown bool) {
	if at := c.lastResponse.Load(); at != 0 && now-time.Duration(at) < giveUpWithin {
		return false
	}
	return c.silentsInARow.Add(1) == EnoughSilent
}

// TellsResponses says whether responses are told, as far as is known.
func (c *Coverage) TellsResponses() bool { return c.silentsInARow.Load() < EnoughSilent }
