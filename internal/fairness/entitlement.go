package fairness

import "time"

// Entitlement is what a key may have on this worker beside what it has anywhere, bytes. It is as of
// the last exchange of shares.
type Entitlement struct {
	_ [0]func() // no two are compared: the function that could would only take room in the .wasm

	At             time.Duration // of that exchange
	Share, Floor   int64         // what it would have of the room, and of a quarter of the floor, if it wanted all of them
	Reserve        int64         // and of what lies between soft and hard
	Others, Smalls int64         // what it has on other workers, and of it in small requests
}

// Sockets are the connections of a key, where connections are told apart by their source.
type Sockets struct {
	_ [0]func() // no two are compared: the function that could would only take room in the .wasm

	Open, Elsewhere int64 // here and on other workers
	Part            int64 // of budget.connections, if every source that has any had the same, by weight
}

// HasItsPart says that a new connection would be more than its part.
func (s *Sockets) HasItsPart() bool { return s.Open+s.Elsewhere >= s.Part }
