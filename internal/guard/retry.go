package guard

import (
	"github.com/highwater-envoy/highwater/internal/retryafter"
	"github.com/highwater-envoy/highwater/internal/unit"
)

// retryAfter books a place for n bytes among those who are told to come back, and says when it
// begins: see package retryafter.
func (g *Guard) retryAfter(now Time, n int64) unit.Duration {
	w := g.worker
	f := w.retryFigures()
	// What its existence costs too: else a thousand requests without a body would have one place.
	p := w.back.Place(&f, n+int64(g.config.Costs.Stream))
	start, booked := w.account.Book(now, now+p.First, p.Span, now+p.Last)
	if !booked {
		return unit.Duration(w.back.Crowd(now, &f, &p, w.random))
	}
	return unit.Duration(p.Delay(start-now, w.random))
}

func (w *Worker) retryFigures() retryafter.Figures {
	others := w.account.Others()
	return retryafter.Figures{
		Others:  others.Queue.Rate,
		Room:    w.account.Share(w.limits.Soft) - w.account.Table().Base,
		Waits:   others.Queue.Waiting > 0 || w.line.Len() > 0,
		Queued:  others.Queue.Wanted + w.line.Bytes(),
		Timeout: Time(w.throttle.Timeout),
		Min:     Time(w.reject.Min),
		Max:     Time(w.reject.Max),
	}
}

// drawEarlyReject says whether the next request is not to join the queue, because that is so long
// that its timeout would reject one. It counts those that it is asked for, to spread the rejects.
func (w *Worker) drawEarlyReject(now Time) bool {
	f := w.retryFigures()
	return w.back.Draw(w.back.Early(&f, w.account.Table().Booked-now, w.line.Bytes()))
}
