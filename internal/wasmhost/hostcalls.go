package wasmhost

import (
	"context"
	"encoding/binary"
	"time"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
)

// status is what a host call returns.
type status uint32

const (
	success       status = 0
	notFound      status = 1
	badArgument   status = 2
	invalidMemory status = 6
	casMismatch   status = 8
)

const hostModule = "env"

// hostCalls are the functions that the plugin imports. All parameters are i32, but the last one of
// those that are wide, which is i64. They are addresses in the linear memory, sizes in bytes, and
// for what is returned the addresses of where to put it.
var hostCalls = []struct {
	name   string
	params int
	wide   bool
	call   func(vm *VM, args []uint64) status
}{
	{name: "proxy_log", params: 3, call: (*VM).log},
	{name: "proxy_get_shared_data", params: 5, call: (*VM).getSharedData},
	{name: "proxy_set_shared_data", params: 5, call: (*VM).setSharedData},
	{name: "proxy_get_property", params: 4, call: (*VM).getProperty},
	{name: "proxy_set_property", params: 4, call: (*VM).setProperty},
	{name: "proxy_get_header_map_value", params: 5, call: (*VM).getHeaderMapValue},
	{name: "proxy_get_header_map_pairs", params: 3, call: (*VM).getHeaderMapPairs},
	{name: "proxy_get_buffer_bytes", params: 5, call: (*VM).getBufferBytes},
	{name: "proxy_set_buffer_bytes", params: 5, call: (*VM).setBufferBytes},
	{name: "proxy_set_effective_context", params: 1, call: (*VM).setEffectiveContext},
	{name: "proxy_continue_stream", params: 1, call: (*VM).continueStream},
	{name: "proxy_close_stream", params: 1, call: (*VM).closeStream},
	{name: "proxy_send_local_response", params: 8, call: (*VM).sendLocalResponse},
	{name: "proxy_http_call", params: 10, call: (*VM).httpCall},
	{name: "proxy_set_tick_period_milliseconds", params: 1, call: (*VM).setTickPeriod},
	{name: "proxy_define_metric", params: 4, call: (*VM).defineMetric},
	{name: "proxy_increment_metric", params: 2, wide: true, call: (*VM).incrementMetric},
	{name: "proxy_record_metric", params: 2, wide: true, call: (*VM).recordMetric},
	{name: "proxy_get_metric", params: 2, call: (*VM).getMetric},
}

func hasHostCall(name string) bool {
	for i := range hostCalls {
		if hostCalls[i].name == name {
			return true
		}
	}
	return false
}

// instantiateHost makes the host calls one module, for all VMs: each call finds its VM in the
// context.
func instantiateHost(ctx context.Context, r wazero.Runtime) error {
	b := r.NewHostModuleBuilder(hostModule)
	for i := range hostCalls {
		h := &hostCalls[i]
		params := make([]api.ValueType, h.params)
		for j := range params {
			params[j] = api.ValueTypeI32
		}
		if h.wide {
			params[h.params-1] = api.ValueTypeI64
		}
		f := func(ctx context.Context, stack []uint64) {
			vm := ctx.Value(vmKey{}).(*VM)
			vm.calls[i]++
			vm.proxy++
			for j, t := range params {
				if t == api.ValueTypeI32 {
					stack[j] = uint64(uint32(stack[j])) // the upper half may be anything
				}
			}
			stack[0] = uint64(h.call(vm, stack))
		}
		b.NewFunctionBuilder().WithGoFunction(api.GoFunc(f), params, []api.ValueType{api.ValueTypeI32}).Export(h.name)
	}
	_, err := b.Instantiate(ctx)
	return err
}

// on is the context that a host call is for.
func (vm *VM) on() *guestContext {
	if vm.effective != nil {
		return vm.effective
	}
	return vm.current
}

// read is n bytes of the linear memory at an address, valid until the plugin runs again.
func (vm *VM) read(address, n uint64) ([]byte, bool) {
	return vm.memory.Read(uint32(address), uint32(n))
}

// give copies a value into memory that the plugin allocates, and tells it where.
func give[T string | []byte](vm *VM, value T, address, size uint64) status {
	var at uint32
	if len(value) > 0 {
		e := &vm.exports[onMemoryAllocate]
		e.stack[0] = uint64(len(value))
		if err := e.function.CallWithStack(vm.ctx, e.stack[:]); err != nil {
			panic(err) // it is a trap of the callback that is running, too
		}
		at = uint32(e.stack[0])
		to, ok := vm.memory.Read(at, uint32(len(value)))
		if !ok {
			return invalidMemory
		}
		copy(to, value)
	}
	if !vm.memory.WriteUint32Le(uint32(address), at) || !vm.memory.WriteUint32Le(uint32(size), uint32(len(value))) {
		return invalidMemory
	}
	return success
}

// log takes level, text.
func (vm *VM) log(a []uint64) status {
	text, ok := vm.read(a[1], a[2])
	if !ok {
		return invalidMemory
	}
	level, line := Level(a[0]), string(text)
	if level >= Error {
		vm.refusal = line
	}
	vm.process.options.Log(level, line)
	return success
}

// getSharedData takes key; returns value, cas.
func (vm *VM) getSharedData(a []uint64) status {
	key, ok := vm.read(a[0], a[1])
	if !ok {
		return invalidMemory
	}
	v := vm.process.shared.values[string(key)]
	if v == nil {
		return notFound
	}
	if !vm.memory.WriteUint32Le(uint32(a[4]), v.cas) {
		return invalidMemory
	}
	return give(vm, v.value, a[2], a[3])
}

// setSharedData takes key, value, cas.
func (vm *VM) setSharedData(a []uint64) status {
	key, ok1 := vm.read(a[0], a[1])
	value, ok2 := vm.read(a[2], a[3])
	if !ok1 || !ok2 {
		return invalidMemory
	}
	if !vm.process.shared.Set(string(key), value, uint32(a[4])) {
		return casMismatch
	}
	return success
}

// getProperty takes a path whose parts are separated by zeros; returns value.
func (vm *VM) getProperty(a []uint64) status {
	path, ok := vm.read(a[0], a[1])
	if !ok {
		return invalidMemory
	}
	on := vm.on()
	var downstream *Downstream
	switch {
	case on.stream != nil:
		downstream = on.stream.Info.Downstream
	case on.connection != nil:
		downstream = on.connection.Downstream
	}
	value, found := "", false
	switch string(path) {
	case "plugin_root_id":
		value, found = on.plugin.rootID, true
	case "connection\x00id":
		if downstream == nil {
			return notFound
		}
		binary.LittleEndian.PutUint64(vm.scratch[:], downstream.ID)
		return give(vm, vm.scratch[:], a[2], a[3])
	default:
		if on.stream != nil {
			value, found = on.stream.property(path)
		}
		if !found && downstream != nil {
			value, found = downstream.property(path)
		}
	}
	if !found {
		return notFound
	}
	return give(vm, value, a[2], a[3])
}

func (d *Downstream) property(path []byte) (value string, found bool) {
	switch string(path) {
	case "connection\x00tls_version":
		value = d.TLSVersion
	case "request\x00protocol":
		value = d.Protocol
	case "source\x00address":
		value = d.Source
	case "destination\x00address":
		value = d.Address
	}
	return value, value != ""
}

func (s *Stream) property(path []byte) (value string, found bool) {
	switch string(path) {
	case "request\x00protocol":
		return s.Info.Protocol, s.Info.Protocol != ""
	case "xds\x00route_name":
		return s.Info.Route, s.Info.Route != ""
	case "xds\x00cluster_name":
		return s.Info.Cluster, s.Info.Cluster != ""
	case "xds\x00virtual_host_name":
		if s.Info.VirtualHost != "" {
			return s.Info.VirtualHost, true
		}
	}
	return s.Property(string(path))
}

// setProperty takes path, value.
func (vm *VM) setProperty(a []uint64) status {
	path, ok1 := vm.read(a[0], a[1])
	value, ok2 := vm.read(a[2], a[3])
	if !ok1 || !ok2 {
		return invalidMemory
	}
	s := vm.on().stream
	if s == nil {
		return notFound
	}
	for i := range s.properties {
		if s.properties[i][0] == string(path) {
			s.properties[i][1] = string(value)
			return success
		}
	}
	s.properties = append(s.properties, [2]string{string(path), string(value)})
	return success
}

// headers is a header map by its number in the ABI, nil where there is none now.
func (c *guestContext) headers(kind uint64) [][2]string {
	switch {
	case kind == 0 && c.stream != nil:
		return c.stream.request
	case kind == 2 && c.stream != nil:
		return c.stream.response
	case kind == 6 && c.plugin != nil:
		return c.plugin.headers
	}
	return nil
}

// getHeaderMapValue takes map, name; returns value.
func (vm *VM) getHeaderMapValue(a []uint64) status {
	name, ok := vm.read(a[1], a[2])
	if !ok {
		return invalidMemory
	}
	headers := vm.on().headers(a[0])
	if headers == nil {
		return badArgument
	}
	for i := range headers {
		if headers[i][0] == string(name) {
			return give(vm, headers[i][1], a[3], a[4])
		}
	}
	return notFound
}

// getHeaderMapPairs takes map; returns all of it.
func (vm *VM) getHeaderMapPairs(a []uint64) status {
	headers := vm.on().headers(a[0])
	if len(headers) == 0 {
		return give(vm, "", a[1], a[2])
	}
	return give(vm, encodePairs(headers), a[1], a[2])
}

// encodePairs is the ABI's form of a header map: their number, the sizes of each name and value,
// then these themselves, each with a zero after it.
func encodePairs(headers [][2]string) []byte {
	b := binary.LittleEndian.AppendUint32(nil, uint32(len(headers)))
	for _, h := range headers {
		b = binary.LittleEndian.AppendUint32(b, uint32(len(h[0])))
		b = binary.LittleEndian.AppendUint32(b, uint32(len(h[1])))
	}
	for _, h := range headers {
		b = append(append(b, h[0]...), 0)
		b = append(append(b, h[1]...), 0)
	}
	return b
}

// decodePairs is its inverse. What is cut short is no header map, and ok is false.
func decodePairs(b []byte) (headers [][2]string, ok bool) {
	if len(b) < 4 {
		return nil, len(b) == 0
	}
	n := uint64(binary.LittleEndian.Uint32(b))
	if 4+8*n > uint64(len(b)) {
		return nil, false
	}
	sizes, rest := b[4:4+8*n], b[4+8*n:]
	headers = make([][2]string, n)
	for i := range headers {
		for j := range headers[i] {
			size := uint64(binary.LittleEndian.Uint32(sizes))
			if size+1 > uint64(len(rest)) {
				return nil, false
			}
			headers[i][j] = string(rest[:size])
			sizes, rest = sizes[4:], rest[size+1:]
		}
	}
	return headers, true
}

// The buffers of what a connection's client sent, and of what goes to it.
const (
	downstreamData = 2
	upstreamData   = 3
)

// getBufferBytes takes buffer, start, size; returns that part of it, or as much as there is.
func (vm *VM) getBufferBytes(a []uint64) status {
	const (
		httpCallResponseBody = 4
		vmConfiguration      = 6
		pluginConfiguration  = 7
	)
	on := vm.on()
	p := on.plugin
	switch a[0] {
	case downstreamData:
		if on.connection == nil {
			return notFound
		}
		return giveFrom(vm, on.connection.Begins, a)
	case httpCallResponseBody:
		if p.headers == nil {
			return notFound
		}
		return giveFrom(vm, p.body, a)
	case vmConfiguration:
		return success // empty
	case pluginConfiguration:
		return giveFrom(vm, p.configuration, a)
	default:
		return notFound // bodies are sizes alone
	}
}

// setBufferBytes takes buffer, start, size, and what comes in their place. Of what a connection
// sent, that can be nothing alone: it is a size here, as bodies are.
func (vm *VM) setBufferBytes(a []uint64) status {
	on := vm.on()
	if on.connection == nil || a[1] != 0 || a[4] != 0 {
		return badArgument
	}
	lies := &on.connection.unread
	switch a[0] {
	case downstreamData:
	case upstreamData:
		lies = &on.connection.unwritten
	default:
		return badArgument
	}
	*lies -= min(int(uint32(a[2])), *lies)
	return success
}

func giveFrom[T string | []byte](vm *VM, buffer T, a []uint64) status {
	start := min(a[1], uint64(len(buffer)))
	part := buffer[start:min(start+a[2], uint64(len(buffer)))]
	if len(part) == 0 {
		return success // as Envoy: the addresses keep what they have
	}
	return give(vm, part, a[3], a[4])
}

// setEffectiveContext takes id.
func (vm *VM) setEffectiveContext(a []uint64) status {
	c := vm.contexts[uint32(a[0])]
	if c == nil {
		return badArgument
	}
	vm.effective = c
	return success
}

// Stream types of the ABI.
const (
	requestStream    = 0
	downstreamStream = 2
)

// continueStream takes a stream type. Only requests are ever paused.
func (vm *VM) continueStream(a []uint64) status {
	if a[0] != requestStream {
		return badArgument
	}
	if on := vm.on(); on.stream != nil {
		on.stream.request = nil
		vm.queue = append(vm.queue, action{kind: resume, on: on})
	}
	return success // on another context Envoy says so, too, and does nothing
}

// closeStream takes a stream type.
func (vm *VM) closeStream(a []uint64) status {
	if a[0] != downstreamStream {
		return badArgument
	}
	if on := vm.on(); on.connection != nil {
		vm.queue = append(vm.queue, action{kind: closeDownstream, on: on})
	}
	return success
}

// sendLocalResponse takes status, details, body, headers, gRPC status.
func (vm *VM) sendLocalResponse(a []uint64) status {
	body, ok1 := vm.read(a[3], a[4])
	pairs, ok2 := vm.read(a[5], a[6])
	if !ok1 || !ok2 {
		return invalidMemory
	}
	headers, ok := decodePairs(pairs)
	if !ok {
		return badArgument
	}
	if on := vm.on(); on.stream != nil {
		r := LocalResponse{Status: int(uint32(a[0])), Headers: headers, Body: string(body), GRPCStatus: int32(uint32(a[7]))}
		vm.queue = append(vm.queue, action{kind: answer, on: on, response: r})
	}
	return success
}

// httpCall takes cluster, headers, body, trailers, timeout in ms; returns token. The plugin's calls
// have no body.
func (vm *VM) httpCall(a []uint64) status {
	cluster, ok1 := vm.read(a[0], a[1])
	pairs, ok2 := vm.read(a[2], a[3])
	if !ok1 || !ok2 {
		return invalidMemory
	}
	headers, ok := decodePairs(pairs)
	if !ok {
		return badArgument
	}
	vm.lastToken++
	if !vm.memory.WriteUint32Le(uint32(a[9]), vm.lastToken) {
		return invalidMemory
	}
	on := vm.on()
	if on.plugin.pending == nil {
		on.plugin.pending = map[uint32]struct{}{}
	}
	on.plugin.pending[vm.lastToken] = struct{}{}
	vm.queue = append(vm.queue, action{
		kind: httpCall, on: on, token: vm.lastToken, cluster: string(cluster), headers: headers,
		timeout: time.Duration(uint32(a[8])) * time.Millisecond,
	})
	return success
}

// setTickPeriod takes ms.
func (vm *VM) setTickPeriod(a []uint64) status {
	p := vm.on().plugin
	p.period = time.Duration(uint32(a[0])) * time.Millisecond
	p.rest()
	return success
}

// defineMetric takes kind, name; returns the metric's id, the same in all VMs.
func (vm *VM) defineMetric(a []uint64) status {
	name, ok := vm.read(a[1], a[2])
	if !ok {
		return invalidMemory
	}
	p, kind := vm.process, MetricKind(a[0])
	i, known := p.byName[string(name)]
	switch {
	case kind > Histogram, known && p.metrics[i].Kind != kind:
		return badArgument
	case !known:
		i = uint32(len(p.metrics))
		p.metrics = append(p.metrics, Metric{Name: string(name), Kind: kind})
		p.byName[string(name)] = i
	}
	if !vm.memory.WriteUint32Le(uint32(a[3]), i) {
		return invalidMemory
	}
	return success
}

func (vm *VM) metric(id uint64) *Metric {
	if uint32(id) >= uint32(len(vm.process.metrics)) {
		return nil
	}
	return &vm.process.metrics[uint32(id)]
}

// incrementMetric takes id, by how much. A counter never falls.
func (vm *VM) incrementMetric(a []uint64) status {
	m := vm.metric(a[0])
	switch {
	case m == nil:
		return notFound
	case m.Kind == Histogram, m.Kind == Counter && int64(a[1]) <= 0:
		return badArgument
	}
	m.Value += a[1]
	return success
}

// recordMetric takes id, value: it sets a gauge, and adds to a counter.
func (vm *VM) recordMetric(a []uint64) status {
	m := vm.metric(a[0])
	if m == nil {
		return notFound
	}
	switch m.Kind {
	case Counter:
		m.Value += a[1]
	case Gauge:
		m.Value = a[1]
	case Histogram:
		m.Recorded = append(m.Recorded, a[1])
	}
	return success
}

// getMetric takes id; returns value.
func (vm *VM) getMetric(a []uint64) status {
	m := vm.metric(a[0])
	switch {
	case m == nil:
		return notFound
	case m.Kind == Histogram:
		return badArgument
	case !vm.memory.WriteUint64Le(uint32(a[1]), m.Value):
		return invalidMemory
	}
	return success
}
