package guard

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/highwater-envoy/highwater/internal/memory"
	"github.com/stretchr/testify/require"
)

// The captures are of one Envoy 1.40: idle, under a burst, and after it, when the allocator kept
// what it had got.
func TestParseReadingOfARealEnvoy(t *testing.T) {
	for file, want := range map[string]memory.Reading{
		"idle.memory.json":  {InUse: 12582912 - 5218304, Allocated: 6389088, Free: 5218304, Mapped: 12582912},
		"burst.memory.json": {InUse: 230686720 - 5406720, Allocated: 223301040, Free: 5406720, Mapped: 230686720},
		// heap_size alone would say 220 MiB: a burst would lock everyone out for ever.
		"after.memory.json": {InUse: 230686720 - 23068672 - 177184768, Allocated: 14729304, Free: 177184768, Mapped: 230686720 - 23068672},
	} {
		text, err := os.ReadFile(filepath.Join("testdata", file))
		require.NoError(t, err)
		got, err := memory.Parse(text)
		require.NoError(t, err, file)
		require.Equal(t, want, got, file)
		require.LessOrEqual(t, got.Allocated, got.InUse, "what the program asked for is part of what is in use")

		// An answer that was cut off is no reading, wherever the cut is; a newline behind the last
		// brace may go.
		for cut := range len(text) {
			if text[cut] == '}' {
				break
			}
			_, err := memory.Parse(text[:cut])
			require.Error(t, err, "%s cut at %d", file, cut)
		}
	}
}

// A newer Envoy may tell more; tcmalloc without a page heap may tell less.
func TestParseReadingTakesWhatItNeeds(t *testing.T) {
	got, err := memory.Parse([]byte(`{"allocated": "5", "heap_size": "10", "limits": 7, "new": {"x": []}}`))
	require.NoError(t, err)
	require.Equal(t, memory.Reading{InUse: 10, Allocated: 5, Mapped: 10}, got)
}

// The companion's answer is Envoy's with what it sees itself. What is resident beyond the heap's
// pages, and the kernel's socket buffers, are in use too; pages of the heap that were never touched
// are not resident, and nothing is less for it.
func TestParseReadingOfTheCompanion(t *testing.T) {
	got, err := memory.Parse([]byte(`{"allocated": "50", "heap_size": "120", "pageheap_unmapped": "20", "pageheap_free": "30",
		"limit": "1000", "resident": "125", "working_set": "400", "sock": "7"}`))
	require.NoError(t, err)
	require.Equal(t, memory.Reading{
		InUse: 120 - 20 - 30 + (125 - 100) + 7, Allocated: 50, Free: 30, Mapped: 100,
		Limit: 1000, Resident: 125, WorkingSet: 400, Sock: 7,
	}, got)
	got, err = memory.Parse([]byte(`{"allocated": "50", "heap_size": "120", "resident": "90"}`))
	require.NoError(t, err)
	require.Equal(t, int64(120), got.InUse)
	require.Zero(t, got.Limit, "not told")
}

// A wrong figure is worse than none: without one memory.on_stale decides, with one everyone might
// be locked out or let in.
func TestParseReadingRefuses(t *testing.T) {
	for name, text := range map[string]string{
		"nothing":              ``,
		"an error page":        `<html>403 Forbidden</html>`,
		"null":                 `null`,
		"a list":               `[]`,
		"an empty object":      `{}`,
		"no heap size":         `{"allocated": "5"}`,
		"no allocated":         `{"heap_size": "10"}`,
		"null for a figure":    `{"allocated": null, "heap_size": "10"}`,
		"words":                `{"allocated": "5", "heap_size": "much"}`,
		"an empty figure":      `{"allocated": "5", "heap_size": ""}`,
		"a fraction":           `{"allocated": "5", "heap_size": "10.5"}`,
		"more than 63 bits":    `{"allocated": "5", "heap_size": "9223372036854775808"}`,
		"a negative heap":      `{"allocated": "5", "heap_size": "-10"}`,
		"an empty heap":        `{"allocated": "0", "heap_size": "0"}`,
		"negative allocated":   `{"allocated": "-5", "heap_size": "10"}`,
		"negative unmapped":    `{"allocated": "5", "heap_size": "10", "pageheap_unmapped": "-1"}`,
		"negative free":        `{"allocated": "5", "heap_size": "10", "pageheap_free": "-1"}`,
		"more free than heap":  `{"allocated": "5", "heap_size": "10", "pageheap_free": "11"}`,
		"all of it free":       `{"allocated": "5", "heap_size": "10", "pageheap_unmapped": "4", "pageheap_free": "6"}`,
		"a limit of nothing":   `{"allocated": "5", "heap_size": "10", "limit": "0"}`,
		"a negative limit":     `{"allocated": "5", "heap_size": "10", "limit": "-1"}`,
		"limit without quotes": `{"allocated": "5", "heap_size": "10", "limit": 5}`,
		"negative resident":    `{"allocated": "5", "heap_size": "10", "resident": "-1"}`,
		"negative sock":        `{"allocated": "5", "heap_size": "10", "sock": "-1"}`,
		"negative working set": `{"allocated": "5", "heap_size": "10", "working_set": "-1"}`,
		"resident overflows":   `{"allocated": "5", "heap_size": "10", "resident": "9223372036854775807", "sock": "9223372036854775807"}`,
		"a heap beyond memory": `{"allocated": "5", "heap_size": "9223372036854775807"}`,
		"allocated overflows":  `{"allocated": "9223372036854775807", "heap_size": "10"}`,
		"a heap of a PiB more": `{"allocated": "5", "heap_size": "1125899906842625"}`,
		"two answers":          `{"allocated": "5", "heap_size": "10"}{"allocated": "5", "heap_size": "10"}`,
	} {
		got, err := memory.Parse([]byte(text))
		require.ErrorContains(t, err, "answer of /memory", name)
		require.Zero(t, got, name)
	}
}

func FuzzParseReading(f *testing.F) {
	for _, file := range []string{"idle", "burst", "after"} {
		text, err := os.ReadFile(filepath.Join("testdata", file+".memory.json"))
		require.NoError(f, err)
		f.Add(text)
	}
	f.Add([]byte(`{"allocated": "5", "heap_size": "10", "pageheap_free": "11"}`))
	f.Add([]byte(`{"allocated": "5", "heap_size": "10", "limit": "100", "resident": "12", "working_set": "50", "sock": "1"}`))
	f.Add([]byte(`{"ALLOCATED": "5", "heap_size": "1e3"}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		r, err := memory.Parse(text)
		if err != nil && r != (memory.Reading{}) {
			t.Fatalf("%q: both %+v and %v", text, r, err)
		}
		if err == nil && (r.InUse <= 0 || r.Allocated < 0 || r.Limit < 0 || r.Free < 0 || r.Mapped <= 0) {
			t.Fatalf("%q is taken for %+v", text, r)
		}
	})
}

// Differences of nonsense must not overflow into something that looks possible.
func TestReadingThatOverflowsIsRefused(t *testing.T) {
	for _, text := range []string{
		`{"allocated":"1","heap_size":"1","pageheap_unmapped":"9223372036854775807","pageheap_free":"9223372036854775807"}`,
		`{"allocated":"1","heap_size":"-9223372036854775808","pageheap_unmapped":"1","pageheap_free":"0"}`,
	} {
		_, err := memory.Parse([]byte(text))
		require.ErrorContains(t, err, "not a possible answer", text)
	}
}

func TestHugeConfigurationsAreRefusedShortly(t *testing.T) {
	many := `{"budget": {"limit": "9223372036854775807"}, "exempt": [1` + strings.Repeat(",1", 100_000) + `]}`
	_, err := Parse([]byte(many))
	require.ErrorContains(t, err, "exempt: 100001 entries are more than 256")
	require.ErrorContains(t, err, "budget.limit: 9223372036854775807 must be below 1024TiB: no memory is so large")
	var unknown strings.Builder
	for i := range 1000 {
		fmt.Fprintf(&unknown, `"k%d": 1, `, i)
	}
	_, err = Parse([]byte(`{` + unknown.String() + `"mode": "observe"}`))
	require.ErrorContains(t, err, "and 951 more")
	_, err = Parse([]byte("{\"budget\": {\"limit\": \"200MiB\"}, \"exempt\": [{\"route\": \"\xff\"}]}"))
	require.ErrorContains(t, err, "UTF-8")
}
