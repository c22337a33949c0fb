package observer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/highwater-envoy/highwater/internal/allocator"
	"github.com/highwater-envoy/highwater/internal/leak"
	"github.com/highwater-envoy/highwater/internal/unit"
)

// Leak says how growth is watched.
type Leak struct {
	// Interval: Envoy's size classes are asked for so often. 0 = never: there are no verdicts then.
	Interval unit.Duration `json:"interval"`
	// Window is how far growth that load does not explain is looked for.
	Window unit.Duration `json:"window"`
}

// classesOf reads the live objects of each size in the answer of /memory/tcmalloc.
func classesOf(text []byte) ([]leak.Class, error) {
	report, err := allocator.Parse(text)
	if err != nil {
		return nil, err
	}
	if !report.Counted {
		return nil, errors.New("the allocator does not tell its size classes: only release builds of Envoy, which have google's TCMalloc, do")
	}
	var list []leak.Class
	for size, n := range report.Live() {
		list = append(list, leak.Class{Size: size, Live: n})
	}
	return list, nil
}

const (
	tcmallocPath = "/memory/tcmalloc"
	// growthShare: Envoy's main thread is to spend 1/20 of its time on this at most. With the
	// default interval it spends 1/500.
	growthShare = 20
	growthMost  = 10 * time.Minute
)

// loadPath asks for what explains memory: streams and connections, the requests that have ended,
// and the versions of what Envoy is configured with. Endpoints are no part of that: they come and
// go all the time.
var loadPath = "/stats?usedonly&filter=" + url.QueryEscape(
	`^(http\..*\.downstream_rq_(completed|active)|listener\..*\.downstream_cx_active|(cluster_manager\.cds|listener_manager\.lds|http\..*\.rds\..*)\.version|`+
		`(cluster_manager\.cluster|listener_manager\.listener)_(added|modified|removed))$`)

// verdicts are what the detector says, and how often it began to.
type verdicts struct {
	growth  leak.Growth
	leak    leak.Leak
	growths uint64
	leaks   uint64
}

// pollGrowth feeds the detector until the context ends.
func (o *Observer) pollGrowth(ctx context.Context) {
	interval := time.Duration(o.options.Leak.Interval)
	if interval == 0 {
		return
	}
	settings := leak.Default()
	settings.Every, settings.Window = interval, time.Duration(o.options.Leak.Window)
	detector := leak.New(settings)
	begin := time.Now()
	next := begin.Add(time.Second) // there is a reading by then
	for {
		if !sleep(ctx, max(time.Until(next), o.growth.rests(time.Now()))) {
			return
		}
		asked := time.Now()
		s, seen, err := o.askGrowth(ctx)
		if ctx.Err() != nil {
			return
		}
		took := time.Since(asked)
		o.growth.asked(asked, took, err)
		// Samples at equal distances, where Envoy is not slow.
		if next = next.Add(max(interval, min(growthShare*took, growthMost))); next.Before(asked) {
			next = asked.Add(interval)
		}
		if seen {
			s.At = asked.Sub(begin)
			detector.Add(s)
		}
		o.mu.Lock()
		o.note(FaultGrowth, err)
		o.tell(detector)
		o.mu.Unlock()
	}
}

// tell notes the verdicts, and logs when one begins or ends. o.mu is held.
func (o *Observer) tell(d *leak.Detector) {
	was, v := o.mu.verdicts, &o.mu.verdicts
	v.growth, v.leak = d.Growth(), d.Leak()
	switch {
	case v.growth.Found() && !was.growth.Found():
		v.growths++
		o.log.Warn("memory grows, and load does not explain it", "growth", v.growth.String())
	case !v.growth.Found() && was.growth.Found():
		o.log.Info("what grows no longer grows, or load explains it")
	}
	switch {
	case v.leak.Found() && !was.leak.Found():
		v.leaks++
		o.log.Warn("Envoy leaks memory", "leak", v.leak.String())
	case !v.leak.Found() && was.leak.Found():
		o.log.Info("a leak is no longer seen: Envoy or its configuration is another one, or it has ended")
	}
}

// askGrowth asks for a sample. It is one without size classes where Envoy does not tell of these,
// and none without its load: who does not know that can't say what it explains.
func (o *Observer) askGrowth(ctx context.Context) (s leak.Sample, seen bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, statsTimeout)
	defer cancel()
	text, err := o.growth.get(ctx, loadPath, maxStats)
	if err != nil {
		return s, false, brief(err)
	}
	if s, err = parseLoad(text); err != nil {
		return s, false, err
	}
	o.mu.Lock()
	s.InUse, s.Process = o.mu.reading.Allocated, uint64(o.mu.figures.pid)
	for _, n := range o.mu.buffered.byName() {
		s.Load.Buffered += n
	}
	fresh := o.fresh(time.Now())
	o.mu.Unlock()
	if !fresh || s.InUse == 0 {
		return s, false, errors.New("there is no reading of Envoy's memory now")
	}
	if text, err = o.growth.get(ctx, tcmallocPath, allocator.MaxText); err == nil {
		s.Classes, err = classesOf(text)
	}
	return s, true, brief(err)
}

// parseLoad reads the lines of /stats in its plain form, name: value. The admin interface's own
// requests and connections, and what single workers count, are left out.
func parseLoad(text []byte) (s leak.Sample, err error) {
	for line := range bytes.Lines(text) {
		line = bytes.TrimSpace(line)
		if len(line) == 0 {
			continue
		}
		at := bytes.LastIndex(line, []byte(": ")) // a cluster's name may have anything in it
		if at < 0 {
			return s, errNotStats
		}
		name, value := string(line[:at]), string(line[at+2:])
		if strings.HasPrefix(name, "http.admin.") || strings.HasPrefix(name, "listener.admin.") || strings.Contains(name, ".worker_") {
			continue
		}
		n, err := strconv.ParseUint(value, 10, 64)
		if err != nil {
			return s, errNotStats
		}
		small := int64(min(n, 1<<50))
		switch {
		case strings.HasSuffix(name, ".downstream_rq_completed"):
			s.Finished += n
		case strings.HasSuffix(name, ".downstream_rq_active"):
			s.Load.Requests += small
		case strings.HasSuffix(name, ".downstream_cx_active"):
			s.Load.Connections += small
		default: // a version, or how often something has changed
			h := fnv.New64a()
			fmt.Fprintf(h, "%s %d", name, n)
			s.Config += h.Sum64() // in any order
		}
	}
	return s, nil
}
