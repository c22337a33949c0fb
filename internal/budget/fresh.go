package budget

// fresh is what has passed since the readings, in two generations. It knows neither the account nor
// a stream.
//
// A reading has each byte that had passed when it was asked for. When one comes that was asked for
// after the last rotation, the older generation is in it, and goes; the younger becomes the older.
// So each byte is counted until a reading has it, and at most for two readings longer.
type fresh struct {
	_ [0]func() // no two are compared: the function that could would only take room in the .wasm

	passed   [2]int64 // in this generation, and in the one before
	reusable int64    // of passed[0]: what is gone again, for what comes next
	gen      uint32   // number of this generation
	rotated  Time
	noticed  uint64 // sequence of the last reading noticed
}

// add counts n more bytes, of which some may be those that others have given back: the allocator
// gives them out again. It returns how many are new.
func (f *fresh) add(n int64) int64 {
	again := min(n, f.reusable)
	f.reusable -= again
	n -= again
	f.passed[0] += n
	return n
}

// giveBack keeps what is gone for the next, within its generation. Until a reading tells, it stays
// counted, for the allocator's caches may hold it.
func (f *fresh) giveBack(gen uint32, n int64) {
	if gen == f.gen {
		f.reusable += n
	}
}

// notice rotates the generations when there is a reading that was asked for after the last
// rotation, and returns how many bytes are in it.
func (f *fresh) notice(now Time, sequence uint64, asked Time) (in int64, rotates bool) {
	if sequence == f.noticed {
		return 0, false
	}
	f.noticed = sequence
	if asked <= f.rotated {
		return 0, false
	}
	in = f.passed[1]
	f.passed[0], f.passed[1], f.reusable = 0, f.passed[0], 0
	f.gen++
	f.rotated = now
	return in, true
}

// cost is something that was added to fresh: it can be given back in its generation alone.
type cost struct {
	bytes int64
	gen   uint32
}
