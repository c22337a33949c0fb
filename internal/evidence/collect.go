package evidence

import (
	"bytes"
	"context"
	"debug/elf"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strconv"
	"time"
)

// Source is where a bundle's files come from. What is nil or zero is not known.
type Source struct {
	// Admin writes what Envoy's admin interface answers at a path.
	Admin func(ctx context.Context, path string, to io.Writer) error
	// StatsPath is what it is asked for as stats.json.
	StatsPath string
	Root      fs.FS // of the machine
	PID       int   // of Envoy
	// Requests are Highwater's own profiles of requests, the one of now first.
	Requests func(ctx context.Context) ([]Profile, error)
	// Cgroup and Observed are written as JSON: what the kernel says of Envoy's cgroup, and what the
	// observer knows.
	Cgroup, Observed any
	// Room is what is left to the limit, bytes; −1 = not known. Growth is by what memory grows,
	// bytes per second.
	Room   int64
	Growth float64
}

// Profile is one of pprof's, of requests.
type Profile struct {
	Name string // such as current or highest
	Data []byte
}

// How long things may take, and how large they may be.
const (
	all        = 45 * time.Second
	ofOne      = 5 * time.Second
	ofDump     = 15 * time.Second
	maxText    = 16 << 20
	maxDump    = 64 << 20
	maxProfile = 8 << 20

	// dumpRoom is what must be left for heap dumps, beside the growth of dumpTime. A dump of Envoy
	// 1.40 took it 0.2 MiB and 0.2 s (make test-oom, TestOOMHeapDumpCost), of which the test lets
	// no more than a half of this pass.
	dumpRoom = 16 << 20
	dumpTime = 1 // seconds
)

// collect writes the files of a bundle: first what costs nothing and says most, for there may not
// be much time.
func (b *bundle) collect(ctx context.Context, s Source) {
	ctx, cancel := context.WithTimeout(ctx, all)
	defer cancel()
	var top []Holder
	if s.Requests != nil {
		top = b.requests(ctx, s)
	}
	b.admin(ctx, s, "memory.json", "/memory", ofOne, maxText)
	b.json("cgroup.json", s.Cgroup, "Envoy's cgroup is not known")
	b.json("observed.json", s.Observed, "nothing was observed")
	b.proc(s, "status.txt", "status")
	b.proc(s, "sockstat.txt", "net/sockstat")
	b.manifest.BuildID = buildID(s.Root, s.PID)
	b.admin(ctx, s, "tcmalloc.txt", "/memory/tcmalloc", ofOne, maxText)
	b.admin(ctx, s, "stats.json", s.StatsPath, ofOne, maxText)
	b.serverInfo(ctx, s)
	b.proc(s, "smaps.txt", "smaps")
	for _, d := range []struct{ name, path string }{{"heap_dump.pb.gz", "/heap_dump"}, {"peak_heap_dump.pb.gz", "/peak_heap_dump"}} {
		if need := dumpRoom + int64(s.Growth*dumpTime); s.Room >= 0 && s.Room < need {
			b.missing(d.name, fmt.Sprintf("it was not asked for: a dump takes memory of Envoy's, and of the %d MiB that should be left %d MiB are", need>>20, s.Room>>20))
			continue
		}
		b.admin(ctx, s, d.name, d.path, ofDump, maxDump)
	}
	b.write("index.html", maxText, func(w io.Writer) error { return page(w, b, s, top) })
}

var errNoAdmin = errors.New("the admin interface is not known")

func (b *bundle) admin(ctx context.Context, s Source, name, path string, within time.Duration, most int64) {
	b.write(name, most, func(w io.Writer) error {
		if s.Admin == nil {
			return errNoAdmin
		}
		ctx, cancel := context.WithTimeout(ctx, within)
		defer cancel()
		return s.Admin(ctx, path, w)
	})
}

// serverInfo is kept, and tells the version.
func (b *bundle) serverInfo(ctx context.Context, s Source) {
	var head bytes.Buffer
	b.write("server_info.json", maxText, func(w io.Writer) error {
		if s.Admin == nil {
			return errNoAdmin
		}
		ctx, cancel := context.WithTimeout(ctx, ofOne)
		defer cancel()
		return s.Admin(ctx, "/server_info", io.MultiWriter(w, &headWriter{&head}))
	})
	var info struct {
		Version string `json:"version"`
	}
	if json.Unmarshal(head.Bytes(), &info) == nil {
		b.manifest.EnvoyVersion = printable(info.Version)
	}
}

// headWriter keeps the first megabyte.
type headWriter struct{ *bytes.Buffer }

func (h *headWriter) Write(p []byte) (int, error) {
	if room := 1<<20 - h.Len(); room > 0 {
		h.Buffer.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}

// printable is a short text without what a terminal might take for something else.
func printable(s string) string {
	out := []rune{}
	for _, r := range s {
		if r >= ' ' && r < 0x7f && len(out) < 200 {
			out = append(out, r)
		}
	}
	return string(out)
}

func (b *bundle) json(name string, v any, without string) {
	if v == nil {
		b.missing(name, without)
		return
	}
	b.write(name, maxText, func(w io.Writer) error {
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(v)
	})
}

func (b *bundle) proc(s Source, name, file string) {
	if s.PID == 0 || s.Root == nil {
		b.missing(name, "Envoy's process is not known")
		return
	}
	b.write(name, maxText, func(w io.Writer) error {
		f, err := s.Root.Open("proc/" + strconv.Itoa(s.PID) + "/" + file)
		if err != nil {
			return err
		}
		defer f.Close()
		n, err := io.Copy(w, f)
		if err == nil && n == 0 {
			return errors.New("it is empty: the process has ended")
		}
		return err
	})
}

// requests keeps the profiles, and returns who holds most in the one of now.
func (b *bundle) requests(ctx context.Context, s Source) (top []Holder) {
	ctx, cancel := context.WithTimeout(ctx, ofOne)
	defer cancel()
	list, err := s.Requests(ctx)
	if err != nil {
		b.missing("requests-current.pb.gz", brief(err))
	}
	for _, p := range list {
		b.write("requests-"+p.Name+".pb.gz", maxProfile, func(w io.Writer) error { return zipped(w, p.Data) })
		if h, err := holders(p.Data); err == nil && top == nil {
			top = h
		}
	}
	return top
}

// buildID is the linker's note in the binary that runs, hex; empty = it is not there.
func buildID(root fs.FS, pid int) string {
	if root == nil || pid == 0 {
		return ""
	}
	f, err := root.Open("proc/" + strconv.Itoa(pid) + "/exe")
	if err != nil {
		return ""
	}
	defer f.Close()
	at, ok := f.(io.ReaderAt)
	if !ok {
		return ""
	}
	binary, err := elf.NewFile(at)
	if err != nil {
		return ""
	}
	section := binary.Section(".note.gnu.build-id")
	if section == nil || section.Size > 1024 {
		return ""
	}
	note, err := section.Data()
	// Sizes of name and description, the type, the name GNU with its zero: 16 bytes.
	if err != nil || len(note) < 16 || string(note[12:16]) != "GNU\x00" {
		return ""
	}
	n := binary.ByteOrder.Uint32(note[4:8])
	if int(n) > len(note)-16 {
		return ""
	}
	return hex.EncodeToString(note[16 : 16+n])
}
