package observer

import (
	"errors"
	"fmt"
	"path"
	"time"

	"github.com/highwater-envoy/highwater/internal/evidence"
	"github.com/highwater-envoy/highwater/internal/leak"
	"github.com/highwater-envoy/highwater/internal/unit"
)

// Config is the observer's part of the server's configuration.
type Config struct {
	Release  Release         `json:"release"`
	Envoy    Envoy           `json:"envoy"`
	Leak     Leak            `json:"leak"`
	Evidence evidence.Config `json:"evidence"`
}

// Release says when free pages are given back, and by which files Envoy's overload manager is
// driven.
type Release struct {
	// Threshold: where Envoy, its free pages included, has this share of its limit, they are to be
	// given back. 0 = never for that.
	Threshold unit.Ratio `json:"threshold"`
	// Interval: else after so long, where there are more than Keep. 0 = never for that.
	Interval unit.Duration `json:"interval"`
	Keep     unit.Bytes    `json:"keep"`
	// PressureFile and PulseFile are what Envoy's injected_resource monitors read; empty = none.
	// Only this user and root may be able to write to their directory and to those above it.
	PressureFile string `json:"pressure_file"`
	PulseFile    string `json:"pulse_file"`
}

// valuePath is where a file is to be written, with its key.
type valuePath struct{ key, path string }

func (r *Release) files() [2]valuePath {
	return [2]valuePath{{"pressure_file", r.PressureFile}, {"pulse_file", r.PulseFile}}
}

// Envoy says which process is observed.
type Envoy struct {
	PID    int    `json:"pid"`    // 0 = the one process here that is called envoy
	Cgroup string `json:"cgroup"` // its memory cgroup's directory, such as /sys/fs/cgroup/envoy; empty = that of the process
}

// Default is the configuration with every key that has a default.
func Default() Config {
	watch := leak.Default()
	return Config{
		Release:  Release{Threshold: 0.85, Interval: unit.Duration(30 * time.Second), Keep: 32 * unit.MiB},
		Leak:     Leak{Interval: unit.Duration(watch.Every), Window: unit.Duration(watch.Window)},
		Evidence: evidence.Default(),
	}
}

// Validate returns all that is wrong with the configuration, joined; each error begins with the
// key.
func (c *Config) Validate() error {
	var errs []error
	check := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	r := &c.Release
	check(r.Threshold >= 0 && r.Threshold <= 1, "release.threshold: %v must be from 0%% (never) to 100%%", r.Threshold)
	check(r.Interval == 0 || r.Interval >= unit.Duration(time.Second) && r.Interval <= unit.Duration(24*time.Hour), "release.interval: %v must be 0 (never) or from 1s to 24h", r.Interval)
	check(r.Keep <= unit.TiB, "release.keep: %v must be at most 1TiB", r.Keep)
	for _, f := range r.files() {
		check(f.path == "" || path.IsAbs(f.path) && path.Clean(f.path) == f.path && f.path != "/",
			"release.%s: %q must be an absolute path without . and .., as in Envoy's injected_resource monitor", f.key, f.path)
	}
	check(r.PulseFile == "" || r.PulseFile != r.PressureFile, "release.pulse_file: %q must not be release.pressure_file: to give pages back would cut timeouts too", r.PulseFile)
	for i, f := range r.files() {
		other := r.files()[1-i]
		check(f.path == "" || f.path != other.path+next, "release.%s: %q must not be release.%s with %s behind: that is written first, and then renamed",
			f.key, f.path, other.key, next)
	}
	e := &c.Envoy
	check(e.PID >= 0 && e.PID <= 1<<22, "envoy.pid: %d must be from 0 (found by itself) to %d", e.PID, 1<<22)
	check(e.Cgroup == "" || path.IsAbs(e.Cgroup), "envoy.cgroup: %q must be an absolute path, such as /sys/fs/cgroup/envoy", e.Cgroup)
	l := &c.Leak
	check(l.Interval == 0 || l.Interval >= unit.Duration(time.Second) && l.Interval <= unit.Duration(time.Minute), "leak.interval: %v must be 0 (no verdicts) or from 1s to 1m", l.Interval)
	check(l.Window >= 20*l.Interval && l.Window <= unit.Duration(time.Hour), "leak.window: %v must be at least 20 x leak.interval, for a trend takes that many samples, and at most 1h", l.Window)
	errs = append(errs, c.Evidence.Validate())
	return errors.Join(errs...)
}
