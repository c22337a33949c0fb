package budget

import "time"

// keeps learns how much of what passes stays: how much a reading has grown for each byte that has
// passed since the one before. Uploads that the upstream reads at once leave a tenth to a half of
// what they bring, those that it does not read leave all.
//
// It says nothing of the next burst, so that nobody is let in by it. It says who may wait, for that
// is taken back as soon as readings tell otherwise.
type keeps struct {
	_ [0]func() // no two are compared: the function that could would only take room in the .wasm

	at              Time // of the reading that the next is compared with; 0 = there is none
	reading, passed int64
	learned         Time // when it last learned
}

const (
	keepsFrom  = 8 << 20         // less has to pass for a comparison: caches of the allocator move as much; TestKeeps
	keepsFor   = 5 * time.Second // what was learned holds so long; TestKeeps
	keepsLeast = 250             // thousandths; the upstream may stall at any moment; TestKeeps
	keepsMost  = 2000            // likewise; TestKeeps
)

// observe takes a reading and all that had passed by then, and sets what the table says.
func (k *keeps) observe(now Time, t *Table, passed int64) {
	if now-k.learned > keepsFor {
		t.Keeps = 0
	}
	switch n := passed - k.passed; {
	case k.at == 0, n < 0, n < keepsFrom && now-k.at > time.Second:
	case n < keepsFrom:
		return
	default:
		is := max(min((t.Reading-k.reading)*1000/n, keepsMost), keepsLeast)
		if t.Keeps > is {
			is = (t.Keeps + is) / 2 // it rises at once, and falls slowly
		}
		t.Keeps, k.learned = is, now
	}
	k.at, k.reading, k.passed = now, t.Reading, passed
}

// keeps is what stays of what passes: all of it, where nothing is known.
func (t *Table) keeps() float64 {
	if t.Keeps <= 0 {
		return 1
	}
	return float64(t.Keeps) / 1000
}
