package doctor

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/docs/reference"
	"github.com/highwater-envoy/highwater/internal/memorymap"
)

const page = "../../docs/reference/doctor.md"

// first are the first cells of a table.
func first(t *testing.T, heading string) (list []string) {
	t.Helper()
	for _, cells := range reference.Rows(reference.Section(t, page, heading)) {
		list = append(list, cells[0])
	}
	return list
}

// The reference has each finding and each part, in their order, and no other.
func TestReference(t *testing.T) {
	require.Equal(t, findings, first(t, "Findings"))
	require.Equal(t, memorymap.Names(), first(t, "Parts"))
	require.Equal(t, memorymap.InsideNames(), first(t, "Inside the application"))
}
