// Package price learns what Envoy's memory costs by the piece: a live stream of a key, and a
// connection without a stream. What is configured is the first guess, and readings correct it.
package price

import (
	"math"
	"time"
)

// Model is what readings tell of prices: a Kalman filter (Kalman 1960; in the notation of
// Bar-Shalom, Li and Kirubarajan, Estimation with Applications to Tracking and Navigation, 5.2)
// over the levels
//
//	z = base + kept + bounds × share + connections × price + Σ streams of key × price of key + w
//
// The state x is all of these but the counts, which are the row H. Each wanders at random, by Q:
//
//	P⁻ = P + Q     S = H P⁻ Hᵀ + R     ν = z − H x
//	x = x⁻ + P⁻ Hᵀ ν ÷ S               P = P⁻ − P⁻ Hᵀ H P⁻ ÷ S
//
// What a constant count costs cannot be told from base, and P says so: only a count that changes
// makes a price sure. Four things are added.
//
// An allocator's caches hold on to memory when streams end. That is kept: it becomes uncertain
// where counts fall, what rises takes of it first, and so neither prices nor base take it.
//
// Noise is not known beforehand. R and base's part of Q grow while ν is larger than S says, or of
// one sign (Mehra 1970), so that nobody is blamed for a restless world.
//
// Prices wander slowly, and may change at once. Two readings in a row beyond three deviations, to
// the same side, make all prices in use unsure again.
//
// A key without streams for a while is parked: its price stays, what ties it to others is dropped,
// and a reading does no work for it.
//
// The zero value is ready.
type Model struct {
	_ [0]func() // no two are compared: the function that could would only take room in the .wasm

	// Matters is what all streams of a key must cost above or below what is configured, before a
	// price that differs is in force, bytes.
	Matters int64

	x      [states]float64
	p      [states][states]float64
	h      [states]float64 // of the last reading
	gain   [states]float64 // P Hᵀ ÷ √S
	active [states]int32   // the states that a reading works on, the first used of them
	used   int
	end    int32              // one more than the last of them
	stocks [1 + MaxKeys]stock // connections, and keys

	rise, fall, moved float64 // of the counts since the last reading, at their prices; moved is squared

	noise, wander        float64 // how much larger R is than assumed, and base's Q
	innovation, previous float64
	at                   time.Duration
	begun                bool
}

// Count is how many live streams a key has.
type Count struct {
	ID    uint64
	N     int64
	Prior int64 // what one of them costs as configured, bytes
}

// MaxKeys have a price of their own. It bounds what keys cost, whatever clients send.
const MaxKeys = 64 // TestKeysThatAreGoneMakePlace

// The states: what is not a stock, then the stocks.
const (
	base = iota
	kept
	share
	first
	states = first + 1 + MaxKeys
)

const (
	step     = 25 * time.Millisecond
	maxSteps = 40 // a gap in the readings is no reason to forget: TestObserveOddReadings

	most = 1 << 42 // of any argument and state: the squares of counts × prices are still numbers. FuzzObserve

	readingNoise = 1 << 20    // deviation of a reading. TestAPriceFollowsTheWorld
	baseDrift    = 200 << 10  // deviation that base gains in a step. TestBaseFollowsALeak
	shareFirst   = .25 * unit // TestRecordedSeries
	shareSD      = .5 * unit  // TestRecordedSeries
	drift        = .004       // of a price and driftOf, which it gains as deviation in a step in use. TestAPriceFollowsTheWorld
	driftOf      = 128 << 10  // TestABystanderIsNotBlamed

	keptOfFall  = .3  // of what fell, the deviation of what is kept. TestCachesThatHold
	reused      = .5  // of what rises, the deviation of what it takes of the kept. TestCachesThatHold
	keptRelease = .02 // of the kept, its deviation in a step: caches give back at once. TestCachesThatHold
	lag         = .25 // of what moved, squared: counts are a tick old. TestABystanderIsNotBlamed
)

// Observe takes a reading with what there was then. Connections are those without a stream. A
// reading of nothing is none: Envoy is never empty.
func (m *Model) Observe(now time.Duration, reading, connections, connectionPrior, bounds int64, keys []Count) {
	if reading <= 0 {
		return
	}
	z := clamp(reading)
	steps := 0.
	if m.begun {
		steps = min(max(float64(now-m.at)/float64(step), 0), maxSteps)
	}
	m.at = now
	z -= m.count(connections, connectionPrior, keys)
	m.settle()
	m.h[base], m.h[kept], m.h[share] = 1, 1, clamp(bounds)/unit
	if !m.begun {
		m.begin(z)
	}
	m.predict(steps)
	m.correct(z)
}

// begin guesses base from the first reading. With traffic it may be anything, and P says so.
func (m *Model) begin(z float64) {
	m.begun, m.noise, m.wander = true, 1, 1
	m.rise, m.fall, m.moved = 0, 0, 0
	for i := range m.stocks {
		z -= m.stocks[i].n * m.x[first+i]
	}
	m.x[base], m.x[share] = max(z, 0), shareFirst
	m.p[base][base] = max(z*z/4, readingNoise*readingNoise)
	m.p[share][share] = shareSD * shareSD
}

// predict lets each state wander for so long.
func (m *Model) predict(steps float64) {
	m.p[base][base] += m.wander * baseDrift * baseDrift * steps
	m.limit(base, most*most)
	m.p[share][share] += sq(.02*shareSD) * steps
	m.limit(share, shareSD*shareSD)
	taken := reused * min(m.rise, m.x[kept])
	m.x[kept] -= taken
	k := m.x[kept]
	m.p[kept][kept] += sq(keptOfFall*m.fall) + sq(taken) + sq(keptRelease*k)*steps
	m.limit(kept, sq(max(k+taken, keptOfFall*m.fall)))
	for i := range m.stocks {
		s := &m.stocks[i]
		if s.n > 0 {
			m.p[first+i][first+i] += sq(drift*(m.x[first+i]+driftOf)) * steps
			m.limit(first+i, sq(s.deviation()))
		}
	}
}

// correct is the update with one reading. The rows of P are those in use; in a row the work is over
// all states up to the last in use, because what is not in use is 0 there.
func (m *Model) correct(z float64) {
	active, end := m.active[:m.used], m.end
	h, gain := m.h[:end], m.gain[:end]
	clear(gain)
	expected := 0.
	for _, i := range active {
		if h[i] == 0 {
			continue
		}
		expected += h[i] * m.x[i]
		row, hi := m.p[i][:len(gain)], h[i]
		for j := range gain {
			gain[j] += row[j] * hi // P is symmetric
		}
	}
	s := 0.
	for _, i := range active {
		s += h[i] * gain[i]
	}
	s = max(s, 0)
	s += max(m.noise*readingNoise*readingNoise+lag*m.moved, digits*s)
	m.previous, m.innovation = m.innovation, z-expected
	root := math.Sqrt(s)
	for j := range gain {
		gain[j] /= root
	}
	for _, i := range active {
		m.x[i] += gain[i] * m.innovation / root
	}
	m.subtract(gain)
	m.truncate()
	m.adapt(s)
}

// truncate uses that no state is below 0. One that is gets the mean and the variance of the part of
// its distribution that may be (Simon and Simon, Constrained Kalman filtering via density function
// truncation, 2010):
//
//	α = −x ÷ σ     λ = φ(α) ÷ Q(α)     x⁺ = σ (λ − α)     σ²⁺ = σ² (1 + αλ − λ²)
//
// What is tied to it moves too, so that what is known of their sum stays: clipped each by itself,
// two keys that rise together drove each other to the sky.
func (m *Model) truncate() {
	active := m.active[:m.used]
	for range truncations {
		worst, by := int32(-1), 0.
		for _, i := range active {
			if off := -m.x[i] / math.Sqrt(m.p[i][i]); off > by {
				worst, by = i, off
			}
		}
		if worst < 0 {
			break
		}
		alpha := min(by, mostAlpha)
		lambda := math.Exp(-alpha*alpha/2) / math.Sqrt(2*math.Pi) / (math.Erfc(alpha/math.Sqrt2) / 2)
		m.condition(worst, math.Sqrt(m.p[worst][worst])*(lambda-alpha), 1+alpha*lambda-lambda*lambda)
	}
	for _, i := range active {
		m.x[i] = min(max(m.x[i], 0), most)
	}
}

const (
	truncations = 8 // in one reading: a bound of the work. TestRandomWorlds
	mostAlpha   = 6 // FuzzObserve
)

// condition moves a state to where it must be, its variance to a share of what it was, and what is
// tied to it by P with it.
func (m *Model) condition(i int32, to, share float64) {
	tied := m.gain[:m.end] // not needed any more
	copy(tied, m.p[i][:])
	v := tied[i]
	by, f := (to-m.x[i])/v, math.Sqrt((1-share)/v)
	for _, j := range m.active[:m.used] {
		m.x[j] += tied[j] * by
	}
	m.x[i] = to
	for j := range tied {
		tied[j] *= f
	}
	m.subtract(tied)
}

// subtract is P − u uᵀ. Of a variance that falls below the least only rounding is left in its row:
// that is dropped.
func (m *Model) subtract(u []float64) {
	active := m.active[:m.used]
	for _, i := range active {
		row, f := m.p[i][:len(u)], u[i]
		for j := range u {
			row[j] -= f * u[j]
		}
	}
	for _, i := range active {
		if m.p[i][i] < least {
			m.untie(int(i))
			m.p[i][i] = least
		}
	}
}

const (
	unit = 1 << 20 // of bounds: so all states are bytes, and variances comparable

	digits = 1e-9 // of what is not known, which a reading leaves: less is rounding. FuzzObserve
	least  = 1    // of a variance: one divides by it. FuzzObserve

	adapts      = .01 // TestABystanderIsNotBlamed; faster, and TestAPriceFollowsTheWorld fails
	worstNoise  = 64  // TestABystanderIsNotBlamed
	worstWander = 400 // TestABystanderIsNotBlamed
	outlier     = 9   // three deviations, squared: one reading is no restless world. TestCachesThatHold
	calms       = .1  // of a deviation, squared, is no sign that base wanders. TestCachesThatHold
)

// adapt learns how restless the world is: E ν² is S, and ν has no memory, where the model is true.
func (m *Model) adapt(s float64) {
	size := m.innovation * m.innovation / s
	same := m.innovation * m.previous / s
	if same > changed && size > changed {
		m.doubt()
	}
	m.noise *= math.Exp(adapts * (min(size, outlier) - 1))
	m.noise = min(max(m.noise, 1), worstNoise)
	if m.fall > 0 {
		same = 0 // that may be kept
	}
	m.wander *= math.Exp(adapts * (min(max(same, -outlier), outlier) - calms))
	m.wander = min(max(m.wander, 1), worstWander)
}

const changed = 9 // three deviations, squared, twice. TestAnAttackerTeachesALowPrice

// doubt forgets how sure prices in use are: the world is another one (Gustafsson, Adaptive
// Filtering and Change Detection, 2000). Whose streams are many then explains what the others
// cannot.
func (m *Model) doubt() {
	for i := range m.stocks {
		if s := &m.stocks[i]; s.n > 0 {
			m.p[first+i][first+i] += sq(s.deviation())
		}
	}
}

// limit bounds the variance of a state, and what ties it to others with it, so that P stays one.
func (m *Model) limit(i int, variance float64) {
	variance = max(variance, least)
	if m.p[i][i] <= variance {
		return
	}
	f := math.Sqrt(variance / m.p[i][i])
	for _, j := range m.active[:m.used] {
		m.p[i][j] *= f
		m.p[j][i] *= f
	}
	m.p[i][i] = variance
}

// Price is what one more stream of the key costs: what was learned where that is known, and what is
// configured where it is not.
func (m *Model) Price(id uint64) (bytes int64, known bool) {
	for i := 1; i < len(m.stocks); i++ {
		if s := &m.stocks[i]; s.taken && s.id == id {
			return m.inForce(i)
		}
	}
	return 0, false
}

// Known calls do with each key whose price was learned, and is in force.
func (m *Model) Known(do func(id uint64, bytes int64)) {
	for i := 1; i < len(m.stocks); i++ {
		if s := &m.stocks[i]; s.taken && s.uses > 0 {
			if bytes, known := m.inForce(i); known {
				do(s.id, bytes)
			}
		}
	}
}

// Connection is what one more connection without a stream costs.
func (m *Model) Connection() (bytes int64, known bool) { return m.inForce(0) }

// Innovation is what the last reading was more than expected, bytes.
func (m *Model) Innovation() int64 { return int64(m.innovation) }

// Base is what there would be without any traffic, bytes.
func (m *Model) Base() int64 { return int64(m.x[base]) }

func sq(v float64) float64 { return v * v }

// clamp is a count or a sum of bytes as a number that can be squared.
func clamp(n int64) float64 { return float64(min(max(n, 0), most)) }
