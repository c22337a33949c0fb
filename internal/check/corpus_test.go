package check

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/corpus"
)

var rewrite = flag.Bool("rewrite", false, "write the findings of the corpus as they are now")

// summary writes what was found: in full, but of what nearly every Envoy has the names alone.
func summary(b *strings.Builder, r Report) {
	var common []string
	for _, f := range r.Findings {
		if slices.Contains(usual, f.Name) || f.Name == "no-guard" {
			common = append(common, f.Name)
			continue
		}
		at := "-"
		if len(f.Places) > 0 {
			at = f.Places[0]
		}
		if more := len(f.Places) - 1; more > 0 {
			at += fmt.Sprintf(" and %d more", more)
		}
		fmt.Fprintf(b, "  %s %s: %s: %s\n", f.Severity, f.Name, at, f.What)
	}
	if len(common) > 0 {
		fmt.Fprintf(b, "  as most: %s\n", strings.Join(slices.Compact(common), " "))
	}
	b.WriteByte('\n')
}

// Configurations that nobody here wrote: each can be read, and what is found in it is what
// testdata/corpus.txt says, which is there to be read and agreed with. What Write makes of those
// that have listeners is right.
func TestCorpus(t *testing.T) {
	var b strings.Builder
	count, written := 0, 0
	for _, p := range corpus.Projects {
		fmt.Fprintf(&b, "# %s %s\n\n", p.Module, p.Version)
		all, err := p.Configurations(t.Context())
		require.NoError(t, err)
		for _, name := range sorted(all) {
			count++
			fmt.Fprintf(&b, "%s\n", name)
			e, err := Read(all[name])
			if err != nil {
				fmt.Fprintf(&b, "  not read: %v\n\n", err)
				continue
			}
			r := Check(e, Options{})
			verdict, _, _ := strings.Cut(r.Verdict, ".")
			fmt.Fprintf(&b, "  %s\n", verdict)
			summary(&b, r)
			for _, f := range r.Findings {
				require.Contains(t, severities(f.Name), string(f.Severity), f.Name)
			}
			if out, _, err := Write(all[name], Options{}); err == nil {
				written++
				again := report(t, string(out), Options{})
				require.Contains(t, again.Verdict, "Highwater guards all of", name)
				for _, f := range again.Findings {
					require.NotEqual(t, Error, f.Severity, "%s: %+v", name, f)
				}
			}
		}
	}
	require.GreaterOrEqual(t, count, 80)
	require.GreaterOrEqual(t, len(corpus.Projects), 6)
	require.GreaterOrEqual(t, written, 15)
	golden := filepath.Join("testdata", "corpus.txt")
	if *rewrite {
		require.NoError(t, os.MkdirAll("testdata", 0o755))
		require.NoError(t, os.WriteFile(golden, []byte(b.String()), 0o600))
	}
	want, err := os.ReadFile(golden)
	require.NoError(t, err)
	require.Equal(t, string(want), b.String(), "after a change that is meant: go test ./internal/check -run Corpus -rewrite, and read what differs")
}
