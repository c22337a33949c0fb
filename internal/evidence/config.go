package evidence

import (
	"errors"
	"fmt"
	"net/url"
	"path"
	"time"

	"github.com/highwater-envoy/highwater/internal/unit"
)

// Config says where evidence is kept, when it is taken, and how much of it. The zero value keeps
// none.
type Config struct {
	// Directory is where bundles are kept; empty = there is no evidence. Only this user and root
	// may be able to write to it: what it has tells of traffic.
	Directory string `json:"directory"`
	// Ahead: a bundle is taken when memory, as it grows now, is at its limit in less than that. 0 =
	// never for that.
	Ahead unit.Duration `json:"ahead"`
	// Keep is how many bundles are kept, and Quota how many bytes they may take together.
	Keep  int        `json:"keep"`
	Quota unit.Bytes `json:"quota"`
	// Interval is the least time between two bundles; see Trigger for what may come sooner.
	Interval unit.Duration `json:"interval"`
	// Requests is the address of a plugin's or a module's debug.path, whose profiles of requests go
	// into the bundles, such as http://127.0.0.1:10001/highwater. Empty = those of the server itself.
	Requests string `json:"requests"`
}

// Default is the configuration with every key that has a default.
func Default() Config {
	return Config{Ahead: unit.Duration(30 * time.Second), Keep: 10, Quota: 256 * unit.MiB, Interval: unit.Duration(5 * time.Minute)}
}

// leastQuota holds a bundle of a large Envoy.
const leastQuota = 16 * unit.MiB

// Validate returns all that is wrong with the configuration, joined; each error begins with the
// key.
func (c *Config) Validate() error {
	if *c == (Config{}) {
		return nil // it keeps nothing
	}
	var errs []error
	check := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	check(c.Directory == "" || path.IsAbs(c.Directory) && path.Clean(c.Directory) == c.Directory && c.Directory != "/",
		"evidence.directory: %q must be an absolute path without . and .., such as /var/lib/highwater/evidence", c.Directory)
	check(c.Ahead >= 0 && c.Ahead <= unit.Duration(time.Hour), "evidence.ahead: %v must be 0 (never) or up to 1h", c.Ahead)
	check(c.Keep >= 1 && c.Keep <= 1000, "evidence.keep: %d must be from 1 to 1000", c.Keep)
	check(c.Quota >= leastQuota && c.Quota <= unit.TiB, "evidence.quota: %v must be from %v to 1TiB", c.Quota, leastQuota)
	check(c.Interval >= unit.Duration(time.Second) && c.Interval <= unit.Duration(24*time.Hour), "evidence.interval: %v must be from 1s to 24h", c.Interval)
	check(c.Requests == "" || isURL(c.Requests), "evidence.requests: %q must be the address of a filter's debug.path, such as http://127.0.0.1:10001/highwater", c.Requests)
	return errors.Join(errs...)
}

func isURL(text string) bool {
	u, err := url.Parse(text)
	return err == nil && (u.Scheme == "http" || u.Scheme == "https") && u.Host != ""
}
