package e2e

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// growingPlugin writes a Proxy-Wasm plugin whose machine grows by 1 MiB, 20 times a second, up to
// 48 MiB: what a plugin does that leaks. It is put together by hand, for a compiler's runtime would
// be most of it. https://webassembly.github.io/spec/core/binary/
func growingPlugin(t *testing.T) (file string) {
	t.Helper()
	const (
		i32, function, empty       = 0x7f, 0x60, 0x40
		typeTake1Give1, typeNone   = 0, 1
		typeTake2, typeTake2Give1  = 2, 3
		typeTake1                  = 4
		setTick                    = 0 // the only function that is imported
		exportedFunction, exported = 0, 2
	)
	name := func(s string) []byte { return append([]byte{byte(len(s))}, s...) }
	section := func(id byte, entries ...[]byte) []byte {
		body := leb(uint32(len(entries)))
		for _, e := range entries {
			body = append(body, e...)
		}
		return append(append([]byte{id}, leb(uint32(len(body)))...), body...)
	}
	code := func(body ...byte) []byte {
		body = append(append([]byte{0}, body...), 0x0b) // no locals, and end
		return append(leb(uint32(len(body))), body...)
	}
	start := code(0x41, 50, 0x10, setTick, 0x1a, 0x41, 1) // set_tick(50 ms), drop, 1
	module := []byte("\x00asm\x01\x00\x00\x00")
	for _, s := range [][]byte{
		section(1,
			[]byte{function, 1, i32, 1, i32}, []byte{function, 0, 0}, []byte{function, 2, i32, i32, 0},
			[]byte{function, 2, i32, i32, 1, i32}, []byte{function, 1, i32, 0}),
		section(2, append(append(name("env"), name("proxy_set_tick_period_milliseconds")...), 0, typeTake1Give1)),
		section(3, []byte{typeNone}, []byte{typeTake1Give1}, []byte{typeTake2}, []byte{typeTake2Give1}, []byte{typeTake2Give1}, []byte{typeTake1}),
		section(5, []byte{0, 4}), // a memory of 4 pages of 64 KiB
		section(7,
			append(name("memory"), exported, 0),
			append(name("proxy_abi_version_0_2_1"), exportedFunction, 1), append(name("proxy_on_memory_allocate"), exportedFunction, 2),
			append(name("proxy_on_context_create"), exportedFunction, 3), append(name("proxy_on_vm_start"), exportedFunction, 4),
			append(name("proxy_on_configure"), exportedFunction, 5), append(name("proxy_on_tick"), exportedFunction, 6)),
		section(10, code(), code(0x41, 0x80, 0x08), code(), start, start, code(
			0x3f, 0, 0x41, 0x80, 0x06, 0x49, 0x04, empty, // if memory.size < 768 pages
			0x3f, 0, 0x41, 16, 0x74, // where its end is: memory.size << 16
			0x41, 16, 0x40, 0, 0x1a, // memory.grow by 16 pages, drop
			0x41, 1, 0x41, 0x80, 0x80, 0xc0, 0, 0xfc, 0x0b, 0, // fill 1 MiB with 1
			0x0b)),
	} {
		module = append(module, s...)
	}
	file = filepath.Join(t.TempDir(), "growing.wasm")
	require.NoError(t, os.WriteFile(file, module, 0o600))
	return file
}

// leb is an unsigned number as Wasm has it.
func leb(n uint32) (out []byte) {
	for {
		if n < 0x80 {
			return append(out, byte(n))
		}
		out = append(out, byte(n)|0x80)
		n >>= 7
	}
}
