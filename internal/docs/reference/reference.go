// Package reference reads the reference pages of this repository, for tests that hold them against
// the code.
package reference

import (
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// Section is what stands in a page below a heading of the second level, which has to be there.
func Section(tb testing.TB, page, heading string) string {
	tb.Helper()
	text, err := os.ReadFile(page)
	require.NoError(tb, err)
	_, rest, found := strings.Cut(string(text), "\n## "+heading+"\n")
	require.True(tb, found, "%s: %s", page, heading)
	section, _, _ := strings.Cut(rest, "\n## ")
	return section
}

// Rows are the cells of the rows of tables whose first cell is code. That is without its quotes.
func Rows(section string) (all [][]string) {
	for row := range strings.Lines(section) {
		if row, isCode := strings.CutPrefix(row, "| `"); isCode {
			cells := strings.Split(strings.TrimRight(row, "| \n"), " | ")
			cells[0] = strings.TrimSuffix(cells[0], "`")
			all = append(all, cells)
		}
	}
	return all
}
