package observer

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/highwater-envoy/highwater/internal/cgroup"
	"github.com/highwater-envoy/highwater/internal/evidence"
	"github.com/highwater-envoy/highwater/internal/memorymap"
)

// Evidence says what has been kept.
type Evidence struct {
	Bundles int       `json:"bundles"` // that there are
	Bytes   int64     `json:"bytes"`   // that they take
	Taken   uint64    `json:"taken"`
	Last    time.Time `json:"last"` // when the last one was taken; zero = none was
	Dir     string    `json:"dir"`  // of the last one
}

const (
	lookForEvidence = 100 * time.Millisecond
	// A directory that can't be written is tried again after so long.
	tidyAgain = 30 * time.Second
)

// keepEvidence takes a bundle when there is reason to, until the context ends.
func (o *Observer) keepEvidence(ctx context.Context) {
	if o.options.Evidence.Directory == "" {
		return
	}
	keeper := evidence.NewKeeper(o.options.Evidence)
	var tidied time.Time
	failed := true
	tick := time.NewTicker(lookForEvidence)
	defer tick.Stop()
	for {
		if now := time.Now(); failed && now.Sub(tidied) >= tidyAgain {
			tidied = now
			failed = o.noteEvidence(keeper, keeper.Tidy())
		}
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			trigger, due := keeper.See(now, o.evidenceState(now))
			if !due {
				continue
			}
			failed = o.takeEvidence(ctx, keeper, now, trigger)
		}
	}
}

// evidenceState is what triggers are seen by.
func (o *Observer) evidenceState(now time.Time) (s evidence.State) {
	o.mu.Lock()
	defer o.mu.Unlock()
	s.Events = -1
	if c := o.mu.figures.container; c != nil {
		s.Events = c.Events.OOM + c.Events.OOMKill + c.Events.High + c.Events.Max
	}
	if !o.fresh(now) {
		return s
	}
	s.InUse, s.Limit, s.Left = o.mu.reading.InUse, o.mu.limit, o.mu.near.left
	room, growth := o.room(), o.mu.trend.recent()
	if c := o.mu.figures.container; c != nil && c.Limit != cgroup.NoLimit {
		if s.Limit == 0 || c.Limit < s.Limit {
			s.Limit = c.Limit
		}
	}
	if left := time.Duration(float64(max(room, 0)) / max(growth, 1) * float64(time.Second)); room >= 0 && growth > 0 && (s.Left == 0 || left < s.Left) {
		s.Left = max(left, time.Millisecond)
	}
	s.Found = o.mu.verdicts.growth.Found() || o.mu.verdicts.leak.Found()
	return s
}

// room is what is left of the container, or else of the budget; −1 = not known. Free pages of the
// heap are room: Envoy takes these first. o.mu is held.
func (o *Observer) room() int64 {
	if c := o.mu.figures.container; c != nil && c.Limit != cgroup.NoLimit {
		return max(c.Limit-c.WorkingSet+o.mu.reading.Free, 0)
	}
	if o.mu.limit > 0 {
		return max(o.mu.limit-o.mu.reading.InUse, 0)
	}
	return -1
}

// takeEvidence takes a bundle, and returns whether that failed.
func (o *Observer) takeEvidence(ctx context.Context, keeper *evidence.Keeper, now time.Time, t evidence.Trigger) (failed bool) {
	status := o.Status()
	o.mu.Lock()
	s := evidence.Source{
		Admin: o.kept.copy, Root: o.options.Root, PID: o.mu.figures.pid, Requests: o.options.Requests, Observed: status,
		StatsPath: memorymap.StatsPath, Room: o.room(), Growth: o.mu.trend.recent(),
	}
	if c := o.mu.figures.container; c != nil {
		s.Cgroup = c
	}
	o.mu.Unlock()
	dir, m, err := keeper.Take(ctx, now, t, s)
	if ctx.Err() != nil && err != nil {
		return true
	}
	if dir != "" {
		missing := []string{}
		for _, f := range m.Files {
			if f.Error != "" {
				missing = append(missing, f.Name)
			}
		}
		o.mu.Lock()
		o.mu.evidence.Taken++
		o.mu.evidence.Last, o.mu.evidence.Dir = now, dir
		o.mu.Unlock()
		o.log.Warn("evidence is kept", "trigger", string(t), "directory", dir, "took", time.Since(now).Round(time.Millisecond), "missing", missing)
	}
	return o.noteEvidence(keeper, err)
}

// noteEvidence notes what there is, and what failed.
func (o *Observer) noteEvidence(keeper *evidence.Keeper, err error) (failed bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.mu.evidence.Bundles, o.mu.evidence.Bytes = keeper.Totals()
	o.note(FaultEvidence, err)
	return err != nil
}

// copy writes the body of the answer as it comes.
func (a *admin) copy(ctx context.Context, path string, to io.Writer) error {
	body, err := a.open(ctx, path)
	if err != nil {
		return err
	}
	defer body.Close()
	if _, err := io.Copy(to, body); err != nil {
		return fmt.Errorf("the answer of %s%s broke off: %w", a.base, path, err)
	}
	return nil
}
