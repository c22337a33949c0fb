package budget

// Entry is what one worker tells the others. Sizes are bytes.
type Entry struct {
	ID          uint32
	Beat        Time  // when it was last written
	Lease       int64 // what the worker may come to hold fresh and coming without asking again
	Fresh       int64
	Coming      int64
	Paused      int64 // of Passed, what came for those who wait
	Stays       int64 // of Fresh, likewise
	Passed      int64 // all that was ever fresh, or would have been of a shadow: a running total
	Small       int64 // coming and likely held of small streams
	Likely      int64 // likely held by its live streams, without shadows
	Bounds      int64 // the most that its live streams can hold of what they have moved
	Exposure    int64 // the most that its live streams could come to hold
	Left        int64 // what its rejected requests left unread, for as long as they linger
	Streams     int64
	VM          int64 // memory of the worker's virtual machine; it is outside every reading
	Presumed    Presumed
	Shadows     Shadows
	Connections Connections
	Queue       Queue
	Evicted     Evicted
}

// Presumed is what is reserved for responses that nobody looks at: see Account.Presume.
type Presumed struct {
	Bytes   int64 // a part of Entry.Coming
	Streams int64 // a part of Entry.Streams
}

// Shadows are streams that mode enforce would have rejected: see Account.Shade.
type Shadows struct {
	Likely int64 // what they likely hold, bytes
	Passed int64 // what was theirs of Entry.Passed
}

// Connections are those of the clients.
type Connections struct {
	Open  int64
	Lease int64 // how many may be open without asking again; 0 without a limit
}

// Queue is who waits in the worker for room.
type Queue struct {
	Waiting int64 // how many
	Wanted  int64 // what they wait for
	Held    int64 // their pause cost, and their headers
	Come    int64 // what of it is there already, as far as that is seen
	Since   Time  // since when somebody waits without a break; 0 = nobody waits
	Rate    int64 // bytes/s that the worker admits while somebody waits: the mean of the last 5 s of that
}

// Evicted is the worker's part of what was to be evicted.
type Evicted struct {
	Leaving  int64 // what may still be there of it, for as long as that lingers
	Sequence int64 // Eviction.Sequence up to which it has done its part
}

func (e *Entry) need() int64 { return e.Fresh + e.Coming }

// counts is what others must count for the worker: what it was promised, or more where it could not
// be refused.
func (e *Entry) counts() int64 { return max(e.Lease, e.need()) }

// fields lists what is encoded of an entry behind its id, in order: the one place that both
// directions share.
func (e *Entry) fields() [entryFields]*int64 {
	return [entryFields]*int64{
		(*int64)(&e.Beat), &e.Lease, &e.Fresh, &e.Coming, &e.Passed, &e.Small, &e.Likely, &e.Bounds, &e.Exposure,
		&e.Evicted.Leaving, &e.Evicted.Sequence, &e.Left, &e.Queue.Held, (*int64)(&e.Queue.Since), &e.Queue.Waiting, &e.Streams, &e.Connections.Open, &e.VM,
		&e.Queue.Wanted, &e.Queue.Rate, &e.Connections.Lease, &e.Presumed.Bytes, &e.Presumed.Streams, &e.Shadows.Likely, &e.Shadows.Passed, &e.Queue.Come, &e.Paused, &e.Stays,
	}
}

// within says that no size or number of the entry is larger than most. Of a running total, a
// reading's number and a time none is.
func (e *Entry) within(most int64) bool {
	for _, v := range e.fields() {
		switch v {
		case (*int64)(&e.Beat), (*int64)(&e.Queue.Since), &e.Passed, &e.Paused, &e.Evicted.Sequence:
			continue
		}
		if *v > most || *v < -most {
			return false
		}
	}
	return true
}
