package price

import (
	"math"
	"time"
)

// stock is what there is of one kind, the streams of a key or the connections without a stream, and
// what has been seen of it: how sure its price may be.
type stock struct {
	id     uint64
	taken  bool
	live   bool    // P ties it to others: it is in use, or was just now
	first  float64 // deviation of the price before anything is known, at least
	prior  float64 // as configured
	n      float64 // at the last reading
	next   float64 // at this one
	peak   float64 // of n, fading in use
	anchor float64 // n when it last moved
	moves  int     // how often n was another one
	uses   int     // readings with any
	seen   time.Duration
}

const (
	keySD        = 600 << 10 // TestRandomWorlds
	connectionSD = 300 << 10 // one price for all, that a few must not teach. TestRecordedSeries

	parks = 2 * time.Second  // without any: the fall tells of the price too. TestParkedKeysCostNothing
	gone  = 30 * time.Second // without any: another key may take the place. TestKeysThatAreGoneMakePlace

	manyMoves = 4  // TestAConstantCountTellsNothing
	moveShare = 16 // of the peak, which a move is at least. TestAConstantCountTellsNothing

	sure    = 150 << 10 // TestABystanderIsNotBlamed
	certain = 4         // deviations from what is configured. TestABystanderIsNotBlamed

	peakFades = time.Minute // to 1 in e. TestAPriceThatMattersNoMore
	peakGap   = time.Second // a key that comes back after a night is still known. TestAPriceThatMattersNoMore
)

// deviation of the price before anything is known, and the most that time makes of it.
func (s *stock) deviation() float64 { return max(s.first, s.prior/2) }

// count takes what there is at this reading, and returns what the keys cost that found no place, as
// configured.
func (m *Model) count(connections, connectionPrior int64, keys []Count) (others float64) {
	for i := range m.stocks {
		m.stocks[i].next = 0
	}
	c := &m.stocks[0]
	if !c.taken {
		m.take(0, 0, connectionSD)
	}
	m.add(0, connections, connectionPrior)
	at := 0 // keys mostly come in the order of the last reading: where the search begins
	for i := range keys {
		k := &keys[i]
		if k.N <= 0 {
			continue
		}
		if at = m.find(k.ID, at); at == 0 {
			others += clamp(k.N) * clamp(k.Prior)
			continue
		}
		m.add(at, k.N, k.Prior)
	}
	return min(others, most)
}

// add counts n more of a stock.
func (m *Model) add(i int, n, prior int64) {
	s := &m.stocks[i]
	s.prior = clamp(prior)
	s.next = min(s.next+clamp(n), most)
	if s.uses == 0 {
		m.x[first+i], m.p[first+i][first+i] = s.prior, sq(s.deviation())
	}
}

// find is the place of a key, which it takes if it has none; 0 = there is none.
func (m *Model) find(id uint64, after int) int {
	for range MaxKeys {
		after = after%MaxKeys + 1
		if s := &m.stocks[after]; s.taken && s.id == id {
			return after
		}
	}
	best := 0
	for i := 1; i < len(m.stocks); i++ {
		s := &m.stocks[i]
		if !s.taken {
			best = i
			break
		}
		if s.n == 0 && s.next == 0 && m.at-s.seen >= gone && (best == 0 || s.uses < m.stocks[best].uses) {
			best = i
		}
	}
	if best != 0 {
		m.take(best, id, keySD)
	}
	return best
}

// take begins a stock anew: nothing of the key that had the place stays.
func (m *Model) take(i int, id uint64, first float64) {
	m.park(i)
	m.stocks[i] = stock{id: id, taken: true, first: first}
}

// park takes a stock out of use.
func (m *Model) park(i int) {
	m.stocks[i].live = false
	m.untie(first + i)
	m.h[first+i] = 0
}

// untie drops what ties a state to others. P stays a covariance, and only knows less.
func (m *Model) untie(i int) {
	for j := range m.p {
		if j != i {
			m.p[i][j], m.p[j][i] = 0, 0
		}
	}
}

// settle moves the counts to those of this reading, and finds which states are in use.
func (m *Model) settle() {
	m.used, m.rise, m.fall, m.moved = 0, 0, 0, 0
	for i := range int32(first) {
		m.active[m.used] = i
		m.used++
	}
	for i := range m.stocks {
		s := &m.stocks[i]
		if s.n > 0 || s.next > 0 {
			by := (s.next - s.n) * m.x[first+i]
			m.rise += max(by, 0)
			m.fall -= min(by, 0)
			m.moved += by * by
			s.use(m.at)
		}
		switch {
		case s.n > 0:
			s.live = true
		case s.live && m.at-s.seen >= parks:
			m.park(i)
		}
		if s.live {
			m.h[first+i] = s.n
			m.active[m.used] = int32(first + i)
			m.used++
		}
	}
	m.end = m.active[m.used-1] + 1
}

// use moves to the next count, and says what was seen.
func (s *stock) use(now time.Duration) {
	s.peak -= s.peak * float64(min(max(now-s.seen, 0), peakGap)) / float64(peakFades)
	s.n, s.seen = s.next, now
	s.peak = max(s.peak, s.n)
	s.uses = min(s.uses+1, math.MaxInt32)
	if math.Abs(s.n-s.anchor) >= max(s.peak/moveShare, 1) {
		s.anchor, s.moves = s.n, min(s.moves+1, math.MaxInt32)
	}
}

// inForce is the price that is asked for. It is what was learned only where that is sure, where
// enough counts were seen, and where it matters: a wrong high price locks out who does no harm.
func (m *Model) inForce(i int) (bytes int64, known bool) {
	s := &m.stocks[i]
	mean, sd := m.x[first+i], math.Sqrt(m.p[first+i][first+i])
	off := math.Abs(mean - s.prior)
	if s.moves < manyMoves || sd > sure || off < certain*sd || off*s.peak < float64(m.Matters) {
		return int64(s.prior), false
	}
	return int64(mean + min(sd, mean/4)), true
}
