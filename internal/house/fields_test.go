// Package house holds what the linter does not: how large the types of the policy and its faces may
// become, and how long the lines of comments.
package house

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// maxFields of a struct: with more of them nobody can tell which belong together, and which mean a
// state.
const maxFields = 20

// kept are the packages in which that holds: the policy with its leaves, and its two faces.
var kept = []string{
	"internal/guard", "internal/budget", "internal/config", "internal/coverage", "internal/evidence", "internal/fairness", "internal/flow", "internal/forecast",
	"internal/idle", "internal/leak", "internal/linger", "internal/polling", "internal/reservoir", "internal/retryafter", "internal/wire", "extproc", "filter",
}

func TestStructsAreSmall(t *testing.T) {
	for _, dir := range kept {
		files, err := filepath.Glob(filepath.Join("..", "..", dir, "*.go"))
		require.NoError(t, err)
		structs := 0
		for _, path := range files {
			set := token.NewFileSet()
			file, err := parser.ParseFile(set, path, nil, parser.SkipObjectResolution)
			require.NoError(t, err)
			ast.Inspect(file, func(n ast.Node) bool {
				if s, ok := n.(*ast.StructType); ok {
					structs++
					if has := fields(s); has > maxFields {
						t.Errorf("%s: a struct of %d fields, at most %d", set.Position(s.Pos()), has, maxFields)
					}
				}
				return true
			})
		}
		require.Positive(t, structs, "the structs of %s are not found", dir)
	}
}

// fields counts those of a struct. One that is embedded is one: it has a name of its own.
func fields(s *ast.StructType) (n int) {
	for _, f := range s.Fields.List {
		n += max(1, len(f.Names))
	}
	return n
}

func TestFields(t *testing.T) {
	e, err := parser.ParseExpr("struct { a, b int; embedded; c struct { d, e, f int } }")
	require.NoError(t, err)
	require.Equal(t, 4, fields(e.(*ast.StructType)))
}
