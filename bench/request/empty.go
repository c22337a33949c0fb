package main

// An empty module: the callbacks of a request, in WebAssembly by hand, that do nothing and let it
// go on. It is what Envoy's part of Proxy-Wasm costs.

const i32 = 0x7f

type function struct {
	name    string
	params  int
	results int
	value   byte // that it returns
}

func emptyModule() []byte {
	functions := []function{
		{"proxy_abi_version_0_2_1", 0, 0, 0},
		{"proxy_on_memory_allocate", 1, 1, 64},
		{"proxy_on_context_create", 2, 0, 0},
		{"proxy_on_request_headers", 3, 1, 0},
		{"proxy_on_request_body", 3, 1, 0},
		{"proxy_on_response_headers", 3, 1, 0},
		{"proxy_on_response_body", 3, 1, 0},
		{"proxy_on_done", 1, 1, 1},
		{"proxy_on_log", 1, 0, 0},
		{"proxy_on_delete", 1, 0, 0},
	}
	var types, indices, exports, bodies [][]byte
	exports = append(exports, append(name("memory"), 2, 0))
	for i, f := range functions {
		t := append([]byte{0x60, byte(f.params)}, repeat(i32, f.params)...)
		t = append(append(t, byte(f.results)), repeat(i32, f.results)...)
		types = append(types, t)
		indices = append(indices, []byte{byte(i)})
		exports = append(exports, append(name(f.name), 0, byte(i)))
		body := []byte{0} // no locals
		if f.results > 0 {
			body = append(body, 0x41, f.value&0x3f) // i32.const
			if f.value >= 0x40 {
				body = append(body[:1], 0x41, f.value|0x80, 0) // as signed LEB128
			}
		}
		body = append(body, 0x0b) // end
		bodies = append(bodies, append(leb(len(body)), body...))
	}
	m := []byte("\x00asm\x01\x00\x00\x00")
	for _, s := range []struct {
		id    byte
		items [][]byte
	}{{1, types}, {3, indices}, {5, [][]byte{{0, 1}}}, {7, exports}, {10, bodies}} {
		content := leb(len(s.items))
		for _, item := range s.items {
			content = append(content, item...)
		}
		m = append(append(append(m, s.id), leb(len(content))...), content...)
	}
	return m
}

func repeat(b byte, n int) []byte {
	bytes := make([]byte, n)
	for i := range bytes {
		bytes[i] = b
	}
	return bytes
}

func name(s string) []byte { return append(leb(len(s)), s...) }

// leb is n as unsigned LEB128.
func leb(n int) (b []byte) {
	for {
		if n < 0x80 {
			return append(b, byte(n))
		}
		b = append(b, byte(n)|0x80)
		n >>= 7
	}
}
