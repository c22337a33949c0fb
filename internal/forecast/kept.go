package forecast

import "time"

// Kept is how much of a key's requests filters may hold that keep whole bodies, as those have said:
// more than the listener lets them. The zero value is a key without such a filter.
type Kept struct {
	_ [0]func() // no two are compared: the function that could would only take room in the .wasm

	most int64
	seen time.Duration
}

// keptFor: a filter that kept a key's requests does so with the next, for so long.
const keptFor = 10 * time.Second // TestKept

// At is how much may be held of the next request, bytes; 0 = no filter is known.
func (k *Kept) At(now time.Duration) int64 {
	if k.most == 0 || now-k.seen > keptFor {
		return 0
	}
	return k.most
}

// Learn takes what a filter may hold of one request, bytes.
func (k *Kept) Learn(now time.Duration, n int64) {
	k.most, k.seen = max(n, k.At(now)), now
}
