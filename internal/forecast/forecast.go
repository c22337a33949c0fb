// Package forecast says what messages will come to that do not announce it, from what others of the
// same key came to.
package forecast

// Forecast is what a message without a length is expected to come to: mean + 2 mean deviations,
// with the gains with which TCP estimates its timeout (RFC 6298: 1/8 and 1/4). A maximum would let
// one huge response block everyone. The zero value expects 64 KiB.
type Forecast struct {
	_ [0]func() // no two are compared: the function that could would only take room in the .wasm

	mean, deviation int64
	learned         bool
}

const (
	forecastFirst = 64 << 10 // TestForecast
	forecastLeast = 2 << 10  // TestForecast; of 16, 5,000 idle gRPC streams of 200 bytes were taken for 80 MiB
)

// Bytes is the forecast, never below 2 KiB.
func (f *Forecast) Bytes() int64 {
	if !f.learned {
		return forecastFirst
	}
	return max(f.Known(), forecastLeast)
}

// Known is the forecast as far as anything is known: 0 where nothing is.
func (f *Forecast) Known() int64 { return f.mean + 2*f.deviation }

// Learned says that anything is known.
func (f *Forecast) Learned() bool { return f.learned }

// Least is what nearly each message comes to: mean − 2 mean deviations, 0 where they differ much or
// nothing is known.
func (f *Forecast) Least() int64 { return max(f.mean-2*f.deviation, 0) }

// Learn takes the size of one message, of at most its cap.
func (f *Forecast) Learn(n int64) {
	if !f.learned {
		// As in RFC 6298 2.2 the first sample is the mean, and half of it the deviation.
		f.mean, f.deviation, f.learned = n, n/2, true
		return
	}
	diff := n - f.mean
	f.mean += diff / 8
	if diff < 0 {
		diff = -diff
	}
	f.deviation += (diff - f.deviation) / 4
}
