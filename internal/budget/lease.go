package budget

// lease is what the table has lent to one worker. It knows neither the account nor the table.
//
// The worker may hold total, fresh and coming, without asking. Of that it may admit only what lay
// under the threshold of the claim when the table was last looked at: a lease is a promise of what
// may be held, not of what may still be let in. Between two exchanges a lease only shrinks: so the
// others, who count total, count enough.
type lease struct {
	total  int64
	admits rooms // at most total, each
}

// left is how much the worker may hold after it has admitted for the claim.
func (l *lease) left(c Claim) int64 {
	if c == Forced {
		return l.total
	}
	return l.admits[c.room()]
}

// tighten takes back what it may admit, where the room has fallen.
func (l *lease) tighten(free rooms) { l.admits.atMost(free) }

// spend takes n bytes away that are in a reading now: they must not be granted a second time.
func (l *lease) spend(n int64) {
	l.total -= n
	for i := range l.admits {
		l.admits[i] -= n
	}
}

// shrink lowers it to what is needed and the slack, and raises it to what is needed.
func (l *lease) shrink(need, slack int64) {
	l.total = max(min(l.total, need+slack), need)
	l.admits.atMost(each(l.total))
}

// rooms are how many bytes lie under soft, under hard and under the limit.
type rooms [3]int64

const (
	underSoft = iota
	underHard
	underLimit
)

func (r *rooms) atMost(n rooms) {
	for i := range r {
		r[i] = min(r[i], n[i])
	}
}

func each(n int64) rooms { return rooms{n, n, n} }
