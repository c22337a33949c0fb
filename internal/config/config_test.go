package config

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/unit"
)

func TestOnlyTheLimitIsRequired(t *testing.T) {
	want := Default()
	want.Budget.Limit.Bytes = 512 * unit.MiB
	got, err := Parse([]byte(`{"budget": {"limit": "512MiB"}}`))
	require.NoError(t, err)
	require.Equal(t, want, got)

	_, err = Parse([]byte(`{}`))
	require.EqualError(t, err, "budget.limit: required: the memory that Envoy may use, such as 512MiB")
}

// The defaults are part of the contract: docs/reference/configuration.md and `highwater check`
// repeat them, and Envoy's own are among them.
func TestDefaults(t *testing.T) {
	text, err := json.Marshal(Default())
	require.NoError(t, err)
	require.JSONEq(t, `{
		"mode": "enforce",
		"budget": {"limit": "0", "soft": "80%", "hard": "90%", "resume": "75%", "small": "64KiB", "floor": "5%", "connections": 0},
		"buffers": {"downstream": "1MiB", "upstream": "1MiB", "http2_window": "16MiB", "http2_connection_window": "24MiB", "linger": "1s", "whole_request": "0"},
		"costs": {"stream": "30KiB", "connection": "8KiB", "tls_connection": "13KiB"},
		"fairness": {"by": "route", "weights": {}},
		"exempt": [],
		"throttle": {"queue": 1024, "timeout": "2s"},
		"reject": {"status": 503, "retry_after": {"min": "1s", "max": "30s"}, "body": ""},
		"evict": true,
		"tcp": "enforce",
		"memory": {"cluster": "envoy_admin", "path": "/memory", "interval": "25ms", "idle_interval": "250ms", "on_stale": "estimate"},
		"trace": {"every": "256KiB", "capacity": 512, "step": "5%", "floor": "8MiB", "keep": 8},
		"debug": {"path": ""}
	}`, string(text))
}

// everything sets each key to something else than its default.
const everything = `{
	"mode": "observe",
	"budget": {"limit": "1.5GiB", "soft": "70%", "hard": "87.5%", "resume": "0.6", "small": "32KiB", "floor": "12.5%", "connections": 9},
	"buffers": {"downstream": "64KiB", "upstream": "32KiB", "http2_window": "65536", "http2_connection_window": "16MiB", "linger": "100ms", "whole_request": "16MiB"},
	"costs": {"stream": "1KiB", "connection": "2KiB", "tls_connection": "3001"},
	"fairness": {"by": "header:x-tenant", "weights": {"a": 2, "é": 0.5}},
	"exempt": [{"path_prefix": "/healthz"}, {"route": "r<&>\"é"}, {"cluster": "c"}, {"grpc_service": "pkg.Service"}],
	"throttle": {"queue": 7, "timeout": "1m30s"},
	"reject": {"status": 429, "retry_after": {"min": "2s", "max": "1h"}, "body": "come\nback\u0000later"},
	"evict": false,
	"tcp": "observe",
	"memory": {"cluster": "me", "path": "/m?x", "interval": "50ms", "idle_interval": "500ms", "on_stale": "reject"},
	"trace": {"every": "64KiB", "capacity": 0, "step": "12.5%", "floor": "3MiB", "keep": 2},
	"debug": {"path": "/debug/highwater"}
}`

func TestEveryKeyIsRead(t *testing.T) {
	got, err := Parse([]byte(everything))
	require.NoError(t, err)
	require.Equal(t, Config{
		Mode:   Observe,
		TCP:    Observe,
		Budget: Budget{Limit: unit.Limit{Bytes: 1536 * unit.MiB}, Soft: 0.7, Hard: 0.875, Resume: 0.6, Small: 32 * unit.KiB, Floor: 0.125, Connections: 9},
		Buffers: Buffers{
			Downstream: 64 * unit.KiB, Upstream: 32 * unit.KiB, HTTP2Window: 64 * unit.KiB,
			HTTP2ConnectionWindow: 16 * unit.MiB, Linger: unit.Duration(100 * time.Millisecond), WholeRequest: 16 * unit.MiB,
		},
		Fairness: Fairness{By: "header:x-tenant", Weights: map[string]float64{"a": 2, "é": .5}},
		Costs:    Costs{Stream: unit.KiB, Connection: 2 * unit.KiB, TLSConnection: 3001},
		Exempt:   []Exempt{{PathPrefix: "/healthz"}, {Route: `r<&>"é`}, {Cluster: "c"}, {GRPCService: "pkg.Service"}},
		Throttle: Throttle{Queue: 7, Timeout: unit.Duration(90 * time.Second)},
		Reject: Reject{Status: 429, Body: "come\nback\x00later", RetryAfter: RetryAfter{
			Min: unit.Duration(2 * time.Second), Max: unit.Duration(time.Hour),
		}},
		Memory: Memory{
			Cluster: "me", Path: "/m?x", Interval: unit.Duration(50 * time.Millisecond), IdleInterval: unit.Duration(500 * time.Millisecond),
			OnStale: "reject",
		},
		Trace: Trace{Every: 64 * unit.KiB, Step: 0.125, Floor: 3 * unit.MiB, Keep: 2},
		Debug: Debug{Path: "/debug/highwater"},
	}, got)
}

// A configuration that a tool prints can be pasted back.
func TestPrintedConfigParsesBack(t *testing.T) {
	for _, text := range []string{`{"budget": {"limit": "200MiB"}}`, everything} {
		want, err := Parse([]byte(text))
		require.NoError(t, err)
		for _, indent := range []string{"", "\t"} {
			printed, err := json.MarshalIndent(want, "", indent)
			require.NoError(t, err)
			got, err := Parse(printed)
			require.NoError(t, err, string(printed))
			require.Equal(t, want, got)
		}
	}
}

// JSON made by a program has numbers where people write units.
func TestNumbersAreSizesAndShares(t *testing.T) {
	c, err := Parse([]byte(`{"budget": {"limit": 209715200, "hard": 0.95, "floor": 0}, "throttle": {"timeout": 0}}`))
	require.NoError(t, err)
	require.Equal(t, 200*unit.MiB, c.Budget.Limit.Bytes)
	require.InDelta(t, 0.95, float64(c.Budget.Hard), 1e-12)
	require.Zero(t, c.Budget.Floor)
	require.Zero(t, c.Throttle.Timeout)

	_, err = Parse([]byte(`{"budget": {"limit": 209715200}, "throttle": {"timeout": 2}}`))
	require.EqualError(t, err, `throttle.timeout: not understood: "2" is not a duration; write one such as 25ms or 2s`, "2 what?")
}

// with is the text of a configuration that is valid but for one value, at a path such as
// budget.limit.
func with(path, value string) string {
	keys := strings.Split(path, ".")
	text := value
	for i := len(keys) - 1; i >= 0; i-- {
		text = fmt.Sprintf("{%q: %s}", keys[i], text)
	}
	if rest, ok := strings.CutPrefix(text, `{"budget": {`); ok && keys[1] != "limit" {
		return `{"budget": {"limit": "512MiB", ` + rest
	}
	if keys[0] == "budget" {
		return text
	}
	return `{"budget": {"limit": "512MiB"}, ` + text[1:]
}

// weights are those of so many names.
func weights(n int) string {
	var list []string
	for i := range n {
		list = append(list, fmt.Sprintf(`"tenant%d": 1`, i))
	}
	return "{" + strings.Join(list, ", ") + "}"
}

// Each mistake gives one line, which begins with the key and says what to change.
func TestEachMistakeIsOneLine(t *testing.T) {
	for _, c := range []struct{ path, value, want string }{
		// Keys.
		{"bugdet", `{}`, "bugdet: unknown key; known here: budget, buffers, costs, debug, evict, exempt, fairness, memory, mode, reject, tcp, throttle, trace"},
		{"Mode", `"enforce"`, "Mode: unknown key; known here: budget, buffers, costs, debug, evict, exempt, fairness, memory, mode, reject, tcp, throttle, trace"},
		{"throttle.lenght", `1`, "throttle.lenght: unknown key; known here: queue, timeout"},
		{"reject.retry_after.mean", `"1s"`, "reject.retry_after.mean: unknown key; known here: max, min"},
		{"exempt", `[{"route": "r"}, {"rout": "r", "route": "s"}]`, "exempt[1].rout: unknown key; known here: cluster, grpc_service, path_prefix, route"},
		{"throttle", `{"queue": 1, "queue": 2}`, "throttle.queue: is there twice"},
		{"", `1`, ": unknown key; known here: budget, buffers, costs, debug, evict, exempt, fairness, memory, mode, reject, tcp, throttle, trace"},

		// Keys and their weights.
		{"fairness.by", `"tenant"`, `fairness.by: "tenant" must be none, route, cluster, virtual_host, source or header:<name>`},
		{"fairness.by", `"header:"`, `fairness.by: "header:" must name a header behind "header:", such as header:x-tenant`},
		{"fairness.by", `"header:x tenant"`, `fairness.by: "header:x tenant" must name a header behind "header:", such as header:x-tenant`},
		{"fairness", `{"by": "none", "weights": {"a": 1}}`, "fairness.weights: there are no keys to weigh where fairness.by is none; say by what requests are told apart, such as route"},
		{"fairness.weights", weights(49), "fairness.weights: 49 names are more than 48: of 64 keys that are told apart some must be left for all that have no name here; name those that matter most"},
		{"fairness.weights", `{"a": 0, "b": 0}`, "fairness.weights: they sum to 0: give at least one key a weight above 0"},
		{"fairness.weights", `{"a": -1, "b": 2}`, "fairness.weights.a: -1 must be from 0 to 1e+06"},
		{"fairness.weights", `{"a": 1, "a": 2}`, "fairness.weights.a: is there twice"},
		{"fairness.weights", `{"a": "1"}`, "fairness.weights.a: \"1\" must be a number"},
		{"fairness.weights", `["a"]`, "fairness.weights: [...] must be an object: {...}"},

		// Kinds.
		{"mode", `1`, "mode: 1 must be text in quotes"},
		{"evict", `"false"`, `evict: "false" must be true or false, without quotes`},
		{"mode", `null`, "mode: null must be text in quotes"},
		{"costs", `[]`, "costs: [...] must be an object: {...}"},
		{"costs", `"16KiB"`, `costs: "16KiB" must be an object: {...}`},
		{"costs", `null`, `costs: null must be an object: {...}`},
		{"exempt", `{"route": "r"}`, "exempt: {...} must be a list: [...]"},
		{"exempt", `null`, "exempt: null must be a list: [...]"},
		{"exempt", `["/healthz"]`, `exempt[0]: "/healthz" must be an object: {...}`},
		{"exempt", `[{"route": 7}]`, "exempt[0].route: 7 must be text in quotes"},
		{"throttle.queue", `"7"`, `throttle.queue: "7" must be a whole number`},
		{"throttle.queue", `7.5`, "throttle.queue: 7.5 must be a whole number"},
		{"throttle.queue", `1e400`, "throttle.queue: 1e400 must be a whole number"},
		{"throttle.queue", `true`, "throttle.queue: true must be a whole number"},
		{"budget.small", `true`, `budget.small: true must be a size, a share or a duration in quotes, such as "64KiB", "85%" or "25ms"`},
		{"budget.hard", `{}`, `budget.hard: {...} must be a size, a share or a duration in quotes, such as "64KiB", "85%" or "25ms"`},
		{"buffers.linger", `[]`, `buffers.linger: [...] must be a size, a share or a duration in quotes, such as "64KiB", "85%" or "25ms"`},
		{"budget.small", `"64kib"`, `budget.small: not understood: "64kib" is not a size; write one such as 512MiB, 64KiB or 65536`},
		{"budget.small", `-1`, `budget.small: not understood: "-1" is not a size; write one such as 512MiB, 64KiB or 65536`},
		{"budget.small", `"9999999999TiB"`, `budget.small: not understood: "9999999999TiB" is larger than any memory`},
		{"budget.hard", `"most"`, `budget.hard: not understood: "most" is not a share; write one such as 85% or 0.85`},
		{"buffers.linger", `"-1s"`, `buffers.linger: not understood: "-1s" is not a duration; write one such as 25ms or 2s`},
		{"mode", `"` + strings.Repeat("x", 100) + `"`, `mode: "` + strings.Repeat("x", 100) + `" must be enforce or observe`},

		// Ranges.
		{"tcp", `"off"`, `tcp: "off" must be enforce or observe`},
		{"mode", `"off"`, `mode: "off" must be enforce or observe`},
		{"budget.limit", `"31MiB"`, "budget.limit: 31MiB must be at least 32MiB: an idle Envoy uses some 10MiB"},
		{"budget.limit", `0`, "budget.limit: required: the memory that Envoy may use, such as 512MiB"},
		{"budget.limit", `"0%"`, `budget.limit: not understood: "0%" is no limit; write a share above 0% or a size such as 512MiB`},
		{"budget.limit", `"101%"`, `budget.limit: 101% must be at most 100% of the container's limit`},
		{"budget.hard", `"101%"`, "budget.hard: 101% must be above 0% and at most 100%"},
		{"budget.soft", `"95%"`, "budget.soft: 95% must be above 0% and below budget.hard (90%)"},
		{"budget.soft", `"90%"`, "budget.soft: 90% must be above 0% and below budget.hard (90%)"},
		{"budget.resume", `"90%"`, "budget.resume: 90% must be above 0% and below budget.soft (80%)"},
		{"budget.resume", `"80%"`, "budget.resume: 80% must be above 0% and below budget.soft (80%)"},
		{"budget.resume", `0`, "budget.resume: 0% must be above 0% and below budget.soft (80%)"},
		{"budget.floor", `"51%"`, "budget.floor: 51% must be at most 50%: it may exceed the limit"},
		{"budget.small", `"33MiB"`, "budget.small: 33MiB must be at most a sixteenth of budget.limit (32MiB)"},
		{"budget.connections", `-1`, "budget.connections: -1 must be from 0 (no limit) to 16777216"},
		{"budget.connections", `16777217`, "budget.connections: 16777217 must be from 0 (no limit) to 16777216"},
		{"buffers.downstream", `"1023"`, "buffers.downstream: 1023 must be from 1KiB to 2GiB: what Envoy is set to"},
		{"buffers.upstream", `"3GiB"`, "buffers.upstream: 3GiB must be from 1KiB to 2GiB: what Envoy is set to"},
		{"buffers.http2_window", `0`, "buffers.http2_window: 0 must be from 1KiB to 2GiB: what Envoy is set to"},
		{"buffers.http2_window", `"25MiB"`, "buffers.http2_connection_window: 24MiB must be at least buffers.http2_window (25MiB)"},
		{"buffers.http2_connection_window", `"8MiB"`, "buffers.http2_connection_window: 8MiB must be at least buffers.http2_window (16MiB)"},
		{"buffers.linger", `"61s"`, "buffers.linger: 1m1s must be at most 1m"},
		{"buffers.whole_request", `"1B"`, "buffers.whole_request: 1 must be 0 or from 1KiB to 4GiB: the max_request_bytes of a buffer filter"},
		{"buffers.whole_request", `"5GiB"`, "buffers.whole_request: 5GiB must be 0 or from 1KiB to 4GiB: the max_request_bytes of a buffer filter"},
		{"costs.stream", `"17MiB"`, "costs.stream: 17MiB must be at most 16MiB"},
		{"costs.connection", `"17MiB"`, "costs.connection: 17MiB must be at most 16MiB"},
		{"costs.tls_connection", `"17MiB"`, "costs.tls_connection: 17MiB must be at most 16MiB"},
		{"exempt", `[{}]`, "exempt[0]: must have exactly one of path_prefix, route, cluster, grpc_service, and it must not be empty"},
		{"exempt", `[{"route": ""}]`, "exempt[0]: must have exactly one of path_prefix, route, cluster, grpc_service, and it must not be empty"},
		{"exempt", `[{"route": "r"}, {"route": "r", "cluster": "c"}]`, "exempt[1]: must have exactly one of path_prefix, route, cluster, grpc_service, and it must not be empty"},
		{"exempt", `[{"path_prefix": "healthz"}]`, `exempt[0].path_prefix: "healthz" must begin with /`},
		{"exempt", `[{"path_prefix": "/healthz/.."}]`, `exempt[0].path_prefix: "/healthz/.." can match nothing, because a path is never exempt that has segments of dots, backslashes, encoded slashes, backslashes or percent signs, or what is not printable ASCII; write one without, such as /healthz`},
		{"exempt", `[{"path_prefix": "/a/./b"}]`, `exempt[0].path_prefix: "/a/./b" can match nothing, because a path is never exempt that has segments of dots, backslashes, encoded slashes, backslashes or percent signs, or what is not printable ASCII; write one without, such as /healthz`},
		{"exempt", `[{"path_prefix": "/a/%2E%2e"}]`, `exempt[0].path_prefix: "/a/%2E%2e" can match nothing, because a path is never exempt that has segments of dots, backslashes, encoded slashes, backslashes or percent signs, or what is not printable ASCII; write one without, such as /healthz`},
		{"exempt", `[{"path_prefix": "/a%2fb"}]`, `exempt[0].path_prefix: "/a%2fb" can match nothing, because a path is never exempt that has segments of dots, backslashes, encoded slashes, backslashes or percent signs, or what is not printable ASCII; write one without, such as /healthz`},
		{"exempt", `[{"path_prefix": "/a%5Cb"}]`, `exempt[0].path_prefix: "/a%5Cb" can match nothing, because a path is never exempt that has segments of dots, backslashes, encoded slashes, backslashes or percent signs, or what is not printable ASCII; write one without, such as /healthz`},
		{"exempt", `[{"path_prefix": "/a%252f"}]`, `exempt[0].path_prefix: "/a%252f" can match nothing, because a path is never exempt that has segments of dots, backslashes, encoded slashes, backslashes or percent signs, or what is not printable ASCII; write one without, such as /healthz`},
		{"exempt", `[{"path_prefix": "/a%"}]`, `exempt[0].path_prefix: "/a%" can match nothing, because a path is never exempt that has segments of dots, backslashes, encoded slashes, backslashes or percent signs, or what is not printable ASCII; write one without, such as /healthz`},
		{"exempt", `[{"path_prefix": "/é"}]`, `exempt[0].path_prefix: "/é" can match nothing, because a path is never exempt that has segments of dots, backslashes, encoded slashes, backslashes or percent signs, or what is not printable ASCII; write one without, such as /healthz`},
		{"exempt", `[{"path_prefix": "/a\\b"}]`, `exempt[0].path_prefix: "/a\\b" can match nothing, because a path is never exempt that has segments of dots, backslashes, encoded slashes, backslashes or percent signs, or what is not printable ASCII; write one without, such as /healthz`},
		{"exempt", `[{"path_prefix": "/a?b"}]`, `exempt[0].path_prefix: "/a?b" must end before the query: write the path alone, such as /healthz`},
		{"exempt", `[{"path_prefix": "/a#b"}]`, `exempt[0].path_prefix: "/a#b" must end before the query: write the path alone, such as /healthz`},
		{"exempt", `[{"grpc_service": "/pkg.Service"}]`, `exempt[0].grpc_service: "/pkg.Service" can match nothing; write package.Service, without slashes and methods`},
		{"exempt", `[{"grpc_service": "pkg.Service/Method"}]`, `exempt[0].grpc_service: "pkg.Service/Method" can match nothing; write package.Service, without slashes and methods`},
		{"exempt", `[{"grpc_service": "pkg.Service?x"}]`, `exempt[0].grpc_service: "pkg.Service?x" can match nothing; write package.Service, without slashes and methods`},
		{"exempt", `[{"grpc_service": ".."}]`, `exempt[0].grpc_service: ".." can match nothing; write package.Service, without slashes and methods`},
		{"exempt", `[{"grpc_service": "pkg\u0000"}]`, `exempt[0].grpc_service: "pkg\x00" can match nothing; write package.Service, without slashes and methods`},
		{"throttle.queue", `-1`, "throttle.queue: -1 must be from 0 to 1048576"},
		{"throttle.queue", `1048577`, "throttle.queue: 1048577 must be from 0 to 1048576"},
		{"throttle.timeout", `"301s"`, "throttle.timeout: 5m1s must be at most 5m"},
		{"reject.status", `399`, "reject.status: 399 must be from 400 to 599"},
		{"reject.status", `600`, "reject.status: 600 must be from 400 to 599"},
		{"reject.retry_after.min", `"31s"`, "reject.retry_after.min: 31s must be at most reject.retry_after.max (30s)"},
		{"reject.retry_after", `{"min": "0s", "max": "999ms"}`, "reject.retry_after.max: 999ms must be from 1s to 1h"},
		{"reject.retry_after.max", `"61m"`, "reject.retry_after.max: 1h1m must be from 1s to 1h"},
		{"reject.body", `"` + strings.Repeat("x", 65537) + `"`, "reject.body: 65537 bytes are more than 64KiB"},
		{"memory.cluster", `""`, "memory.cluster: must name the cluster of Envoy's admin interface"},
		{"memory.path", `"memory"`, `memory.path: "memory" must begin with /`},
		{"memory.interval", `"4ms"`, "memory.interval: 4ms must be from 5ms to 500ms: without a reading for 1s there is none"},
		{"memory.idle_interval", `"24ms"`, "memory.idle_interval: 24ms must be from memory.interval (25ms) to 500ms"},
		{"memory.idle_interval", `"501ms"`, "memory.idle_interval: 501ms must be from memory.interval (25ms) to 500ms"},
		{"trace.every", `"1023"`, "trace.every: 1023 must be from 1KiB to 1GiB"},
		{"trace.every", `"2GiB"`, "trace.every: 2GiB must be from 1KiB to 1GiB"},
		{"trace.capacity", `-1`, "trace.capacity: -1 must be from 0 (nothing is sampled) to 4096"},
		{"trace.capacity", `4097`, "trace.capacity: 4097 must be from 0 (nothing is sampled) to 4096"},
		{"trace.step", `0`, "trace.step: 0% must be above 0% and at most 100%: each mark freezes all samples"},
		{"trace.step", `"101%"`, "trace.step: 101% must be above 0% and at most 100%: each mark freezes all samples"},
		{"trace.floor", `0`, "trace.floor: 0 must be from 1MiB to 1TiB"},
		{"trace.keep", `0`, "trace.keep: 0 must be from 1 to 64: each takes Envoy up to 64KiB per worker"},
		{"trace.keep", `65`, "trace.keep: 65 must be from 1 to 64: each takes Envoy up to 64KiB per worker"},
		{"debug.path", `"highwater"`, `debug.path: "highwater" must be a path such as /highwater, without a slash at its end, ? or #`},
		{"debug.path", `"/"`, `debug.path: "/" must be a path such as /highwater, without a slash at its end, ? or #`},
		{"debug.path", `"/high/"`, `debug.path: "/high/" must be a path such as /highwater, without a slash at its end, ? or #`},
		{"debug.path", `"/high?x=y"`, `debug.path: "/high?x=y" must be a path such as /highwater, without a slash at its end, ? or #`},
		{"debug.path", `"/high water"`, `debug.path: "/high water" must be a path such as /highwater, without a slash at its end, ? or #`},
		{"debug.path", `1`, `debug.path: 1 must be text in quotes`},
		{"memory.on_stale", `"panic"`, `memory.on_stale: "panic" must be estimate, admit or reject`},
	} {
		_, err := Parse([]byte(with(c.path, c.value)))
		require.EqualError(t, err, c.want, with(c.path, Clip(c.value)))
	}
}

// Whoever corrects a configuration wants one round, not ten. But one mistake is one line: a size
// that could not be read is not also called too small, nor what is out of range of what it depends
// on called so twice.
func TestAllMistakesAtOnce(t *testing.T) {
	_, err := Parse([]byte(`{
		"mode": "dry", "mode": "wet",
		"budget": {"limit": "lots", "resume": "90%"},
		"buffers": {"upstrem": "1MiB", "linger": "2h"},
		"exempt": [{"path_prefix": "x"}, 5, {"route": "r", "rout": ""}],
		"throttle": [],
		"memory": {"interval": "1ms", "on_stale": 3}
	}`))
	require.Error(t, err)
	require.ElementsMatch(t, []string{
		"mode: is there twice",
		`budget.limit: not understood: "lots" is not a size; write one such as 512MiB, 64KiB or 65536`,
		"budget.resume: 90% must be above 0% and below budget.soft (80%)",
		"buffers.upstrem: unknown key; known here: downstream, http2_connection_window, http2_window, linger, upstream, whole_request",
		"buffers.linger: 2h must be at most 1m",
		`exempt[0].path_prefix: "x" must begin with /`,
		"exempt[1]: 5 must be an object: {...}",
		"exempt[2].rout: unknown key; known here: cluster, grpc_service, path_prefix, route",
		"throttle: [...] must be an object: {...}",
		"memory.interval: 1ms must be from 5ms to 500ms: without a reading for 1s there is none",
		`memory.on_stale: 3 must be text in quotes`,
	}, strings.Split(err.Error(), "\n"))
}

func TestNotAConfiguration(t *testing.T) {
	for name, c := range map[string]struct{ text, want string }{
		"nothing":       {"", "the configuration is empty"},
		"white space":   {" \n\t", "the configuration is empty"},
		"a list":        {"[]", "must be a JSON object"},
		"null":          {"null", "must be a JSON object"},
		"text":          {`"budget"`, "must be a JSON object"},
		"a number":      {"5", "must be a JSON object"},
		"YAML":          {"budget:\n  limit: 512MiB\n", "is not JSON"},
		"a comma more":  {`{"budget": {"limit": "512MiB"},}`, "is not JSON"},
		"cut off":       {`{"budget": {"limit": "512MiB"}`, "is not JSON: unexpected EOF"},
		"cut in a key":  {`{"budg`, "is not JSON"},
		"two objects":   {`{"budget": {"limit": "512MiB"}} {}`, "something follows behind the closing brace"},
		"a brace more":  {`{"budget": {"limit": "512MiB"}}}`, "something follows behind the closing brace"},
		"a wrong brace": {`{"budget": {"limit": "512MiB"]}`, "is not JSON"},
		// A Struct with one key, budget, as Envoy hands it to a plugin:
		// google.protobuf.Struct{fields: {budget: ...}}.
		"a Struct":           {"\x0a\x0f\x0a\x06budget\x12\x05\x2a\x03\x0a\x01x", "as a google.protobuf.Struct arrives: write it as configuration: "},
		"a packed Any":       {"\x12\x03abc", "as a google.protobuf.Struct arrives"},
		"not UTF-8":          {"{\"mode\": \xff}", "is not JSON"},
		"a depth of 17":      {strings.Repeat(`{"a":`, 18) + "1" + strings.Repeat("}", 18), "nested too deeply"},
		"a depth of 500,000": {`{"a":` + strings.Repeat("[", 500_000), "nested too deeply"},
		"too long":           {`{"mode": "` + strings.Repeat(" ", maxConfig) + `"}`, "more than 1MiB"},
	} {
		_, err := Parse([]byte(c.text))
		require.ErrorContains(t, err, c.want, name)
		require.Less(t, len(err.Error()), 400, "%s: it has to fit a line of a log", name)
	}
	// What begins with a newline, as a Struct does, is no Struct if it is JSON; and 1 MiB is not
	// too long.
	text := "\n" + `{"budget": {"limit": "512MiB"}}`
	text += strings.Repeat(" ", maxConfig-len(text))
	_, err := Parse([]byte(text))
	require.NoError(t, err)
}

// A key from who knows where must not fill the log.
func TestLongKeysAndValuesAreCut(t *testing.T) {
	long := strings.Repeat("é", 5000)
	_, err := Parse([]byte(`{"budget": {"limit": "512MiB", "` + long + `": 1}, "throttle": {"queue": "` + long + `"}}`))
	require.Error(t, err)
	require.Less(t, len(err.Error()), 600)
	require.True(t, json.Valid([]byte(`"`+strings.NewReplacer("\n", " ", `"`, "'").Replace(err.Error())+`"`)), "no half characters")
}

// Each size has a bound, so that nothing that is reckoned with it overflows.
func TestSizesNearTheLargestNumberAreRefused(t *testing.T) {
	for _, key := range []string{
		"budget.limit", "budget.small", "buffers.downstream", "buffers.upstream", "buffers.http2_window", "buffers.http2_connection_window",
		"buffers.whole_request", "costs.stream", "costs.connection", "costs.tls_connection", "trace.every", "trace.floor",
	} {
		for _, size := range []string{"9223372036854775807", "9223372036854775807B", "8388607TiB", "1024TiB", "9223372036854775000"} {
			_, err := Parse([]byte(with(key, strconv.Quote(size))))
			require.ErrorContains(t, err, key+": ", size)
		}
	}
	_, err := Parse([]byte(with("budget.limit", `"1024TiB"`)))
	require.EqualError(t, err, "budget.limit: 1024TiB must be below 1024TiB: no memory is so large")
	_, err = Parse([]byte(with("budget.limit", `"1023TiB"`)))
	require.NoError(t, err)
}

func FuzzParse(f *testing.F) {
	for _, seed := range []string{
		"", "{}", everything, `{"budget": {"limit": 209715200, "hard": 0.9}}`, `{"exempt": [{}, 1, {"route": ""}]}`,
		`{"mode": {"a": [[[[]]]]}}`, "\x0a\x0f\x0a\x06budget\x12\x05", `{"budget": {"limit": "512MiB"}} x`,
		`{"budget": {"limit": "9223372036854775807", "small": "1e9"}}`, `{"throttle": {"queue": -9223372036854775808}}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		c, err := Parse(text)
		if err != nil {
			if err.Error() == "" {
				t.Fatalf("%q: an error that says nothing", text)
			}
			return
		}
		if err := c.Validate(); err != nil {
			t.Fatalf("%q parses to what is not valid: %v", text, err)
		}
		printed, err := json.Marshal(c)
		if err != nil {
			t.Fatalf("%q can't be printed: %v", text, err)
		}
		// Shares print with ten decimals: all but the shares must come back.
		again := Default()
		if err := json.Unmarshal(printed, &again); err != nil {
			t.Fatalf("%q prints as %s: %v", text, printed, err)
		}
		again.Budget.Soft, again.Budget.Hard, again.Budget.Resume, again.Budget.Floor = c.Budget.Soft, c.Budget.Hard, c.Budget.Resume, c.Budget.Floor
		if again.Exempt == nil {
			again.Exempt = []Exempt{}
		}
		if fmt.Sprintf("%+v", again) != fmt.Sprintf("%+v", c) {
			t.Fatalf("%q prints as %s, which is %+v, not %+v", text, printed, again, c)
		}
	})
}
