package rtti

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/rtti/rttitest"
)

// house is a family of classes. Function 0 is that of the C++ library, and 9 belongs to no class.
var house = rttitest.Binary{
	BuildID:   []byte{0xab, 0xcd, 0xef},
	Functions: 10,
	Classes: []rttitest.Class{
		{Name: "4Base", Virtual: []int{1, 2}},
		{Name: "3Sub", Bases: []int{0}, Virtual: []int{1, 3}},        // has 1 from its base
		{Name: "7Another", Virtual: []int{4, 5}},                     // 5 is folded with one of a stranger's
		{Name: "4Both", Bases: []int{0, 2}, Virtual: []int{1, 6}},    // has 1 from one of its bases
		{Name: "8Stranger", Virtual: []int{5, 7}},                    // see 5
		{Name: "8Abstract"},                                          // its vtable has been optimised away
		{Name: "N2ns4LeftE", Bases: []int{5}, Virtual: []int{8}},     // has 8 from what both inherit from
		{Name: "N2ns5RightE", Bases: []int{5}, Virtual: []int{8, 9}}, // the same
	},
}

// whose are the functions' classes and slots.
func whose(t *testing.T, table *Table) (all []string) {
	t.Helper()
	for i := range house.Functions {
		f, ok := table.Lookup(rttitest.Function(i) + 3)
		require.True(t, ok)
		require.Equal(t, rttitest.Function(i), f.Start)
		all = append(all, fmt.Sprintf("%s#%d", f.Class, f.Slot))
	}
	return all
}

// A function belongs to the class from which all others in whose vtables it is have it. What two
// strangers have belongs to none.
func TestFunctionsBelongToClasses(t *testing.T) {
	want := []string{"#0", "4Base#0", "4Base#1", "3Sub#1", "7Another#0", "#0", "4Both#1", "8Stranger#1", "8Abstract#0", "N2ns5RightE#1"}
	for name, edit := range map[string]func(b *rttitest.Binary){
		"amd64":            func(*rttitest.Binary) {},
		"arm64":            func(b *rttitest.Binary) { b.Machine = elf.EM_AARCH64 },
		"packed":           func(b *rttitest.Binary) { b.Packed = true },
		"another library":  func(b *rttitest.Binary) { b.External = true },
		"the same, arm64":  func(b *rttitest.Binary) { b.External, b.Machine = true, elf.EM_AARCH64 },
		"the same, packed": func(b *rttitest.Binary) { b.External, b.Packed = true, true },
		"static":           func(b *rttitest.Binary) { b.Static = true },
		"no build id":      func(b *rttitest.Binary) { b.BuildID = nil },
	} {
		t.Run(name, func(t *testing.T) {
			b := house
			edit(&b)
			table, err := Build(bytes.NewReader(b.Bytes()))
			require.NoError(t, err)
			got := whose(t, table)
			if !b.External { // function 0 is of all three kinds of typeinfos, which inherit from one
				require.Contains(t, got[0], "class_type_info")
				got[0] = "#0"
			}
			require.Equal(t, want, got)
			require.Equal(t, fmt.Sprintf("%x", b.BuildID), table.BuildID)
			_, ok := table.Lookup(rttitest.Function(house.Functions))
			require.False(t, ok, "there is no code behind the last function")
			address, ok := table.Address(rttitest.Offset(3))
			require.True(t, ok)
			require.Equal(t, rttitest.Function(3), address)
			again, err := decode(table.encode())
			require.NoError(t, err)
			require.Equal(t, table.functions, again.functions)
			require.Equal(t, table.names, again.names)
			require.Equal(t, got[1:], whose(t, again)[1:])
		})
	}
}

func TestSymbols(t *testing.T) {
	table, err := Build(bytes.NewReader(house.Bytes()))
	require.NoError(t, err)
	full := house
	full.Symbols = map[int]string{1: "_ZN4Base3runEv", 9: "helper", 4: "_ZN7Another4stopEi"}
	names, err := table.Symbols(bytes.NewReader(full.Bytes()), []uint64{rttitest.Function(9) + 15, rttitest.Function(1), rttitest.Function(2), rttitest.Function(4) + 1})
	require.NoError(t, err)
	require.Equal(t, map[uint64]string{
		rttitest.Function(1): "_ZN4Base3runEv", rttitest.Function(4) + 1: "_ZN7Another4stopEi", rttitest.Function(9) + 15: "helper",
	}, names)
	require.Equal(t, "Base::run", FunctionName(names[rttitest.Function(1)]))

	_, err = table.Symbols(bytes.NewReader(house.Bytes()), nil)
	require.ErrorIs(t, err, ErrNoSymbols)
	other := full
	other.BuildID = []byte{1}
	_, err = table.Symbols(bytes.NewReader(other.Bytes()), nil)
	require.ErrorContains(t, err, "its symbols are of another build than the binary (abcdef)")
	other = full
	other.Functions++ // the same commit, and another build of it
	_, err = table.Symbols(bytes.NewReader(other.Bytes()), nil)
	require.ErrorContains(t, err, "of another build")
}

func TestNames(t *testing.T) {
	for mangled, want := range map[string]string{
		"N5Envoy6Buffer15WatermarkBufferE":                                               "Envoy::Buffer::WatermarkBuffer",
		"N5Envoy12_GLOBAL__N_13FooE":                                                     "Envoy::(anonymous namespace)::Foo",
		"NSt3__120__shared_ptr_emplaceIN5Envoy3FooENS_9allocatorIS2_EEEE":                "Envoy::Foo",
		"NSt3__110__function6__funcIZN5Envoy6Server3RunEiE3$_0FvvEEE":                    "Envoy::Server::Run()::lambda",
		"NSt3__110__function6__funcIZN5Envoy6ServerC1EiEUlvE_FvvEEE":                     "Envoy::Server::Server()::lambda",
		"NSt3__110__function6__funcIPFbiEFbiEEE":                                         "std::__function::__func<bool (*)(int), bool (int)>",
		"N4absl12lts_202608176Status3FooE":                                               "absl::Status::Foo",
		"N5Envoy3FooINSt3__112basic_stringIcNS1_11char_traitsIcEENS1_9allocatorIcEEEEEE": "Envoy::Foo<std::string>",
		"3Foo": "Foo",
		"N":    "N",
		"9":    "9",
		"N" + strings.Repeat("3FooI", 400) + strings.Repeat("E", 400) + "E": "",
	} {
		got := TypeName(mangled)
		require.LessOrEqual(t, len(got), maxShown+len("<...>"))
		if want != "" {
			require.Equal(t, want, got)
		}
	}
}

// A file may be anything. Each of these is refused, or has fewer classes, in little time and
// memory.
func TestBinariesOfAnySort(t *testing.T) {
	whole := house.Bytes()
	edited := func(at int, b ...byte) []byte {
		text := slices.Clone(whole)
		copy(text[at:], b)
		return text
	}
	programs := func(edit func(p []elf.Prog64)) []byte {
		p := make([]elf.Prog64, binary.LittleEndian.Uint16(whole[56:]))
		require.NoError(t, binary.Read(bytes.NewReader(whole[64:]), binary.LittleEndian, p))
		edit(p)
		var b bytes.Buffer
		require.NoError(t, binary.Write(&b, binary.LittleEndian, p))
		return edited(64, b.Bytes()...)
	}
	huge := bytes.Repeat([]byte{0xff}, 8)
	for name, c := range map[string]struct {
		text []byte
		want string // of the error; empty = there may be none
	}{
		"empty":                    {nil, "not a 64-bit ELF binary"},
		"ten MiB of garbage":       {bytes.Repeat([]byte("garbage "), 10<<17), "not a 64-bit ELF binary"},
		"ten MiB of zeros":         {make([]byte, 10<<20), "not a 64-bit ELF binary"},
		"32 bits":                  {edited(4, 1), "not a 64-bit ELF binary"},
		"big-endian":               {edited(5, 2), "not a 64-bit ELF binary"},
		"another machine":          {edited(18, 8), "not a 64-bit ELF binary"},
		"no program headers":       {edited(56, 0, 0), "0 program headers"},
		"too many program headers": {edited(56, 0xff, 0xff), "65535 program headers"},
		"headers beyond the end":   {edited(32, 0, 0, 0, 0, 1), "its program headers: "},
		"headers far beyond":       {edited(32, huge...), "its program headers: "},
		"cut in its headers":       {whole[:100], "its program headers: "},
		"cut before its data":      {whole[:0x180_000], "it ends within its data"},
		"cut in its data":          {whole[:len(whole)-8], "it ends within its "},
		"a segment without end":    {programs(func(p []elf.Prog64) { p[2].Filesz = 1<<64 - 1 }), "a segment ends before it begins"},
		"data of 2^60 bytes":       {programs(func(p []elf.Prog64) { p[2].Filesz = 1 << 60 }), "its data of 1152921504606846976 bytes is more than is read"},
		"code of 2^60 bytes":       {programs(func(p []elf.Prog64) { p[1].Filesz = 1 << 60 }), ""},
		"text of 2^60 bytes":       {programs(func(p []elf.Prog64) { p[0].Filesz = 1 << 60 }), "is not looked through"},
		"frames of 2^60 bytes":     {programs(func(p []elf.Prog64) { p[3].Filesz = 1 << 60 }), "its .eh_frame_hdr of 1152921504606846976 bytes is more than is read"},
		"no frames":                {programs(func(p []elf.Prog64) { p[3].Type = 0 }), "it has no .eh_frame_hdr"},
		"frames elsewhere":         {programs(func(p []elf.Prog64) { p[3].Off = 0 }), "is of a kind that is not read"},
		"a dynamic section of it":  {programs(func(p []elf.Prog64) { p[5].Off, p[5].Filesz = 64, 4096 }), ""},
		"notes of it all":          {programs(func(p []elf.Prog64) { p[4].Off, p[4].Filesz = 0, 1<<60 }), ""},
		"unaligned data":           {programs(func(p []elf.Prog64) { p[2].Vaddr += 3 }), ""},
		"overlapping segments":     {programs(func(p []elf.Prog64) { p[1].Vaddr, p[0].Vaddr = p[2].Vaddr, p[2].Vaddr }), ""},
	} {
		t.Run(name, func(t *testing.T) {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			began := time.Now()
			_, err := Build(bytes.NewReader(c.text))
			runtime.ReadMemStats(&after)
			if c.want != "" {
				require.ErrorContains(t, err, c.want)
				require.NotContains(t, err.Error(), "\n")
			}
			require.Less(t, time.Since(began), 5*time.Second)
			require.Less(t, after.TotalAlloc-before.TotalAlloc, uint64(64<<20))
		})
	}
}

// Classes that inherit from each other in a circle, and one that has all others, end too.
func TestFamiliesWithoutEnd(t *testing.T) {
	circle := &family{known: map[uint64][]uint64{}, classes: map[uint64]*class{
		8: {name: "1A", bases: []uint64{16}}, 16: {name: "1B", bases: []uint64{8, 16}}, 24: {name: "1C", bases: []uint64{8, 1 << 60}},
	}}
	require.Equal(t, []uint64{8, 16}, circle.line(8))
	require.Equal(t, []uint64{8, 16, 24}, circle.line(24))
	_, ok := circle.common([]uint64{8, 16})
	require.False(t, ok, "neither inherits from the other more than the other from it")

	large := &family{known: map[uint64][]uint64{}, classes: map[uint64]*class{}}
	var all []uint64
	for i := range uint64(100_000) {
		c := &class{name: "1A"}
		for j := range uint64(maxBases) {
			c.bases = append(c.bases, i*7+j*13)
		}
		large.classes[i] = c
		all = append(all, i)
	}
	began := time.Now()
	_, _ = large.common(all)
	require.LessOrEqual(t, large.size, maxLines+maxLine)
	require.Less(t, time.Since(began), 20*time.Second)
}

func FuzzBuild(f *testing.F) {
	for _, edit := range []func(b *rttitest.Binary){
		func(*rttitest.Binary) {}, func(b *rttitest.Binary) { b.External = true }, func(b *rttitest.Binary) { b.Symbols = map[int]string{1: "f"} },
	} {
		b := house
		edit(&b)
		whole := b.Bytes()
		f.Add(whole[:4096], whole[0x180_000:])
	}
	f.Fuzz(func(t *testing.T, low, data []byte) {
		// What is between headers and data has nothing that is read.
		low = low[:min(len(low), 0x180_000)]
		whole := slices.Concat(low, make([]byte, 0x180_000-len(low)), data)
		table, err := Build(bytes.NewReader(whole))
		if err != nil {
			return
		}
		table.EachClass(func(mangled string) { TypeName(mangled) })
		for i := range 16 {
			table.Lookup(rttitest.Function(i))
		}
		if again, err := decode(table.encode()); err != nil || len(again.functions) != len(table.functions) {
			t.Fatalf("what was kept can't be read: %v", err)
		}
		_, _ = table.Symbols(bytes.NewReader(whole), []uint64{rttitest.Function(1)})
	})
}

func FuzzDecode(f *testing.F) {
	table, err := Build(bytes.NewReader(house.Bytes()))
	require.NoError(f, err)
	f.Add(table.encode()[len(format)+32:])
	f.Fuzz(func(t *testing.T, text []byte) {
		table, err := decode(sealed(text))
		if err != nil {
			return
		}
		table.EachClass(func(mangled string) { TypeName(mangled) })
		table.Lookup(rttitest.Function(1))
	})
}
