package heapdump

import (
	"fmt"
	"path"
	"strings"

	"github.com/google/pprof/profile"

	"github.com/highwater-envoy/highwater/internal/rtti"
)

// frame is what is known of an address.
type frame struct {
	function string // as it is shown; empty = it is folded into its caller
	owner    string // the class, or with symbols the function where it has none; empty = none that holds memory
	start    uint64 // of the function, as linked
}

// names are the frames of a dump by the id of their location.
type names map[uint64]frame

// newNames names all locations of a dump. symbols is a file; empty = there is none.
func newNames(p *profile.Profile, table *rtti.Table, symbols string) (names, error) {
	if err := sameBuild(p, table); err != nil {
		return nil, err
	}
	at := map[uint64]uint64{} // ids of locations to their address as linked
	var addresses []uint64
	for _, l := range p.Location {
		if address, ok := linked(p, l, table); ok {
			at[l.ID] = address
			addresses = append(addresses, address)
		}
	}
	n := names{}
	if symbols == "" {
		for id, address := range at {
			n[id] = classFrame(table, address)
		}
		return n, nil
	}
	functions, err := table.OpenSymbols(symbols, addresses)
	if err != nil {
		return nil, fmt.Errorf("the symbols: %w", err)
	}
	classes := map[string]bool{}
	table.EachClass(func(mangled string) { classes[rtti.TypeName(mangled)] = true })
	for id, address := range at {
		n[id] = symbolFrame(table, address, functions[address], classes)
	}
	return n, nil
}

// sameBuild says whether a dump is of a binary. An id does not say all: Envoy's is the commit,
// which the binaries of both machines have.
func sameBuild(p *profile.Profile, table *rtti.Table) error {
	if len(p.Mapping) == 0 {
		return nil
	}
	if id := p.Mapping[0].BuildID; id != "" && table.BuildID != "" && id != table.BuildID {
		return fmt.Errorf("the dump is of another build (%s) than the binary (%s): name the binary of the Envoy that made it", clean(id), table.BuildID)
	}
	for _, l := range p.Location {
		if m := l.Mapping; ofMain(p, m) && !table.Maps(m.Offset, m.Limit-m.Start) {
			return fmt.Errorf("the dump is of another binary: its code has %d bytes from %#x on, and the binary's (%v) does not: "+
				"name the binary of the Envoy that made it", m.Limit-m.Start, m.Offset, table.Machine)
		}
	}
	return nil
}

// ofMain says whether a mapping is of the binary, and not of a library.
func ofMain(p *profile.Profile, m *profile.Mapping) bool {
	return m != nil && m.File == p.Mapping[0].File && m.BuildID == p.Mapping[0].BuildID
}

// linked is the address of a location as linked, if it is in the binary. TCMalloc gives addresses
// within the call, and not behind it, as pprof wants them.
func linked(p *profile.Profile, l *profile.Location, table *rtti.Table) (uint64, bool) {
	m := l.Mapping
	if !ofMain(p, m) || l.Address < m.Start || l.Address >= m.Limit {
		return 0, false
	}
	return table.Address(l.Address - m.Start + m.Offset)
}

// classFrame names a function by its class and its number in that class's vtable.
func classFrame(table *rtti.Table, address uint64) frame {
	f, ok := table.Lookup(address)
	if !ok || f.Class == "" {
		return frame{}
	}
	class := rtti.TypeName(f.Class)
	if plumbing(class) {
		return frame{}
	}
	r := frame{function: fmt.Sprintf("%s#%d", class, f.Slot), start: f.Start}
	if !loop(class) {
		r.owner = class
	}
	return r
}

// symbolFrame names a function by its symbol.
func symbolFrame(table *rtti.Table, address uint64, mangled string, classes map[string]bool) frame {
	if mangled == "" {
		return classFrame(table, address)
	}
	name := clean(rtti.FunctionName(mangled)) // a file of symbols may say anything
	if plumbing(name) {
		return frame{}
	}
	f, _ := table.Lookup(address)
	r := frame{function: name, owner: name, start: f.Start}
	if at := strings.LastIndex(name, "::"); at > 0 && classes[name[:at]] {
		r.owner = name[:at]
	}
	if loop(r.owner) {
		r.owner = ""
	}
	return r
}

// plumbing says whether a name is of what others are built of: the allocator, and the libraries
// that keep what they are given.
func plumbing(name string) bool {
	for _, prefix := range []string{
		"std::", "absl::", "__cxxabiv1::", "__gnu_cxx::", "tcmalloc::", "TCMalloc", "operator new", "malloc", "calloc", "realloc", "aligned_alloc",
		"posix_memalign", "void* tcmalloc::", "void* std::", "void std::", "void* absl::", "void absl::",
	} {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return false
}

// loop says whether a class runs others' callbacks, of whatever kind.
func loop(class string) bool {
	return strings.HasPrefix(class, "Envoy::Event::") || strings.HasPrefix(class, "Envoy::Thread::")
}

// library is where a stack is that nothing else is known of.
func library(s *profile.Sample, main *profile.Mapping) string {
	for _, l := range s.Location {
		if l.Mapping != nil && l.Mapping.File != "" && l.Mapping.File != main.File {
			return path.Base(l.Mapping.File)
		}
	}
	return ""
}
