// Package gather reads what package doctor examines: from a running Envoy's admin interface and
// /proc, or from the files that somebody saved. What cannot be read is named in the Sample, and
// nothing else is missing for it. All that is read is bounded, and so is the time.
package gather

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/highwater-envoy/highwater/internal/allocator"
	"github.com/highwater-envoy/highwater/internal/cgroup"
	"github.com/highwater-envoy/highwater/internal/doctor"
	"github.com/highwater-envoy/highwater/internal/memorymap"
	"github.com/highwater-envoy/highwater/internal/profiles"
)

// The files of a directory of evidence. Each may be missing.
const (
	Manifest   = "manifest.json"
	Memory     = "memory.json"      // of /memory
	TCMalloc   = "tcmalloc.txt"     // of /memory/tcmalloc
	ServerInfo = "server_info.json" // of /server_info
	Stats      = "stats.json"       // of memorymap.StatsPath
	Smaps      = "smaps.txt"        // of /proc/PID, as the next two
	Status     = "status.txt"
	Sockstat   = "sockstat.txt" // of its net
	Cgroup     = "cgroup.json"  // a cgroup.Stats
)

// most is how much of each is read, bytes.
var most = map[string]int64{
	Manifest: 1 << 20, Memory: 64 << 10, TCMalloc: allocator.MaxText, ServerInfo: 1 << 20, Stats: memorymap.MaxStats,
	HeapDump: int64(profiles.MaxBytes), PeakHeapDump: int64(profiles.MaxBytes),
	Smaps: memorymap.MaxSmaps, Status: 1 << 20, Sockstat: 64 << 10, Cgroup: 64 << 10,
}

var errTooLarge = errors.New("it is larger than any of its kind")

// raw are the texts of one moment, with what is wrong with each that is not there.
type raw struct {
	at    time.Time
	texts map[string][]byte
	errs  map[string]error
	pid   int
	group *cgroup.Stats // where it was read live
}

func newRaw(at time.Time) *raw {
	return &raw{at: at, texts: map[string][]byte{}, errs: map[string]error{}}
}

func (r *raw) put(name string, text []byte, err error) {
	if err != nil {
		r.errs[name] = err
		return
	}
	r.texts[name] = text
}

// sample understands the texts.
func (r *raw) sample() doctor.Sample {
	s := doctor.Sample{Time: r.at, Envoy: doctor.Envoy{PID: r.pid}, Container: r.group}
	r.understand(Memory, func(text []byte) (err error) { s.Totals, err = allocator.ParseMemory(text); return err })
	r.understand(TCMalloc, func(text []byte) (err error) { s.Allocator, err = allocator.Parse(text); return err })
	r.understand(Stats, func(text []byte) (err error) { s.Gauges, err = memorymap.ParseStats(text); return err })
	r.understand(Smaps, func(text []byte) (err error) {
		if s.Mappings, err = memorymap.ParseSmaps(text); err != nil {
			s.Mappings = nil // half a map would not add up
		}
		return err
	})
	r.understand(Status, func(text []byte) error {
		status, err := memorymap.ParseStatus(text)
		if err == nil {
			s.Status = &status
		}
		return err
	})
	r.understand(Sockstat, func(text []byte) error {
		n, err := memorymap.ParseSockstat(text, int64(os.Getpagesize()))
		if err == nil {
			s.Sockets = &n
		}
		return err
	})
	r.understand(ServerInfo, func(text []byte) error { return parseServerInfo(text, &s.Envoy) })
	r.understand(Cgroup, func(text []byte) error {
		c := cgroup.Stats{Limit: cgroup.NoLimit, High: cgroup.NoLimit}
		if err := json.Unmarshal(text, &c); err != nil {
			return err
		}
		if c.Limit <= 0 || c.Usage < 0 || c.WorkingSet < 0 || c.Sock < 0 {
			return errors.New("it has impossible sizes")
		}
		s.Container = &c
		return nil
	})
	s.Missing = r.missing()
	return s
}

func (r *raw) understand(name string, parse func([]byte) error) {
	text, ok := r.texts[name]
	if !ok {
		return
	}
	if err := parse(text); err != nil {
		r.errs[name] = err
	}
}

// missing says what is not there and why, one line for each reason. Envoy's own answers come first:
// where it does not answer, much of the rest is missing for that.
func (r *raw) missing() []string {
	names, reasons := map[string][]string{}, []string(nil)
	for _, name := range append([]string{Manifest}, files...) {
		if err := r.errs[name]; err != nil {
			why := brief(err.Error())
			if names[why] == nil {
				reasons = append(reasons, why)
			}
			names[why] = append(names[why], name)
		}
	}
	for i, why := range reasons {
		reasons[i] = strings.Join(names[why], ", ") + ": " + why
	}
	return reasons
}

// files are all that there may be of an Envoy.
var files = []string{Memory, TCMalloc, ServerInfo, Stats, Smaps, Status, Sockstat, Cgroup}

// brief is a text that an error may quote of others: short, in UTF-8, in one line.
func brief(text string) string {
	const longest = 300
	if len(text) > longest {
		text = text[:longest] + "..."
	}
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(text, "\uFFFD"))
}

// parseServerInfo reads what is wanted of /server_info.
func parseServerInfo(text []byte, e *doctor.Envoy) error {
	var m struct {
		Version string `json:"version"`
		Uptime  string `json:"uptime_current_epoch"`
		Options struct {
			Concurrency int `json:"concurrency"`
		} `json:"command_line_options"`
	}
	if err := json.Unmarshal(text, &m); err != nil {
		return fmt.Errorf("not the answer of /server_info: %w", err)
	}
	e.Version = versionOf(m.Version)
	e.Workers = max(m.Options.Concurrency, 0)
	if d, err := time.ParseDuration(m.Uptime); err == nil && d > 0 {
		e.Uptime = d
	}
	return nil
}

// versionOf is the number in
// 9e5580933739775e8bce696a57a2e1bc99368f23/1.40.0/Clean/RELEASE/BoringSSL.
func versionOf(text string) string {
	if parts := strings.Split(text, "/"); len(parts) > 1 {
		return brief(parts[1])
	}
	return brief(text)
}

// Dir reads the files of a directory of evidence. The error says that there is nothing in it.
func Dir(dir fs.FS) (doctor.Sample, error) {
	r := newRaw(time.Time{})
	for _, name := range files {
		text, err := readFile(dir, name)
		r.put(name, text, err)
	}
	if len(r.texts) == 0 {
		return doctor.Sample{}, fmt.Errorf("there is none of %s in it: %w", strings.Join([]string{Memory, TCMalloc, Smaps, Status, Stats}, ", "), r.errs[Memory])
	}
	for name, err := range r.errs {
		if errors.Is(err, fs.ErrNotExist) {
			r.errs[name] = errors.New("not in the directory")
		}
	}
	s := r.sampleOf(dir)
	return s, nil
}

// manifest is what Manifest says of the directory.
type manifest struct {
	Time    time.Time `json:"time"`
	Version string    `json:"envoy_version"`
	Files   []struct {
		Name  string `json:"name"`
		Error string `json:"error"`
	} `json:"files"`
}

func readManifest(dir fs.FS) (m manifest, err error) {
	text, err := readFile(dir, Manifest)
	if err == nil {
		err = json.Unmarshal(text, &m)
	}
	if err != nil {
		return manifest{}, err
	}
	m.Files = m.Files[:min(len(m.Files), 64)]
	return m, nil
}

// why says why a file could not be saved; empty = it does not say.
func (m *manifest) why(name string) string {
	for _, f := range m.Files {
		if f.Name == name {
			return f.Error
		}
	}
	return ""
}

// sampleOf adds what the manifest says.
func (r *raw) sampleOf(dir fs.FS) doctor.Sample {
	m, err := readManifest(dir)
	r.at = m.Time
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		r.errs[Manifest] = err
	}
	for name := range r.errs {
		if why := m.why(name); why != "" {
			r.errs[name] = errors.New(why)
		}
	}
	s := r.sample()
	s.Envoy.Version = cmp.Or(s.Envoy.Version, versionOf(m.Version))
	return s
}

func readFile(dir fs.FS, name string) ([]byte, error) {
	info, err := fs.Stat(dir, name) // before it is opened: to open a pipe may take for ever
	switch {
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular():
		return nil, errors.New("it is no regular file")
	}
	f, err := dir.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return readAll(f, most[name])
}

// readAll reads to the end, and fails where that is more than so many bytes.
func readAll(r io.Reader, most int64) ([]byte, error) {
	text, err := io.ReadAll(io.LimitReader(r, most+1))
	if err == nil && int64(len(text)) > most {
		err = fmt.Errorf("%w: more than %s bytes", errTooLarge, strconv.FormatInt(most, 10))
	}
	return text, err
}
