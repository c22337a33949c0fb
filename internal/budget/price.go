package budget

// SetLive says whether the stream is among those that cost what one of its key does: it was let in, whose
// it is was asked, and it stays.
func (a *Account) SetLive(s *Stream, live bool) {
	if live == s.live {
		return
	}
	s.live = live
	if live {
		s.sum.Live++
		a.own.Live++
	} else {
		s.sum.Live--
		a.own.Live--
	}
}

// Burden counts n more bytes that the stream costs by its existence, as Open does. The room has been
// asked for.
func (a *Account) Burden(s *Stream, n int64) {
	if s.cost.gen != a.fresh.gen { // what it cost until now is in a reading
		s.cost = cost{gen: a.fresh.gen}
	}
	s.cost.bytes += n
	a.addFresh(n)
}

// explains: a body of a quarter of the price explains it. While uploads fill the memory, what else rises
// with them, such as what those who wait have sent, is easily taken for what each of them costs.
const explains = 4 // TestABodyExplainsAPrice

// PriceBeside is what one holds at least that has brought n bytes, or will; 0 = these tell.
func (s *Sum) PriceBeside(n int64) int64 {
	if explains*n >= s.Price {
		return 0
	}
	return s.Price
}

// hasPrice says that there is one to look at: for most there is not.
func (s *Stream) hasPrice() bool { return s.live && s.sum.Price > 0 }

// priced is what the stream likely holds, and at most, where one of its key holds its price at least;
// and how much of that is there by the price alone. A compressor of 400 KiB is no byte that passes.
func (s *Stream) priced(likely, bounds int64) (_, _, by int64) {
	if !s.hasPrice() {
		return likely, bounds, 0
	}
	m := &s.dir[Request]
	p := s.sum.PriceBeside(max(m.bound()+m.coming, m.length))
	return max(likely, p), max(bounds, p), max(p-bounds, 0)
}

// Resettle has the next Tick look at what each stream likely holds: a price has changed by much.
func (a *Account) Resettle() { a.streams.swept = 0 }

// Newest calls do with the owner of each live stream, the one that was opened last first, as long as it
// says so.
func (a *Account) Newest(do func(owner any) (more bool)) {
	for s := a.streams.ring.prev; s != &a.streams.ring; s = s.prev {
		if !do(s.owner) {
			return
		}
	}
}
