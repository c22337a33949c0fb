package house

import (
	"fmt"
	"go/ast"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// maxArrows is how many pairs of files of package guard have one use what the other declares, at
// most. It was 77 when state and rules were in the same files, and 58 before prices and buffers
// came.
const maxArrows = 65

// What has an identity in package guard is in state.go, and what it is made of in parts.go. Neither
// calls a rule: so a change of a rule can't change what another rule finds in a stream's state.
func TestRulesAreBuiltOnState(t *testing.T) {
	uses := arrows(t, filepath.Join("..", "guard"))
	n := 0
	for _, to := range uses {
		n += len(to)
	}
	require.LessOrEqual(t, n, maxArrows, "files of guard that use each other")
	require.Greater(t, n, 20, "the arrows are not found")
	require.Equal(t, []string{"parts.go"}, slices.Sorted(maps.Keys(uses["state.go"])))
	require.Empty(t, uses["parts.go"])
}

// arrows says of each file of a package which others it uses a type, a function, a method or a
// constant of. Fields do not count: they are used by whoever knows the type.
func arrows(t *testing.T, dir string) map[string]map[string]bool {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "*.go"))
	require.NoError(t, err)
	set := token.NewFileSet()
	var files []*ast.File
	for _, name := range names {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(set, name, nil, 0)
		require.NoError(t, err)
		files = append(files, file)
	}
	info := &types.Info{Uses: map[*ast.Ident]types.Object{}}
	config := types.Config{Importer: importer.ForCompiler(set, "source", nil)}
	checked, err := config.Check(fmt.Sprint("arrows of ", dir), set, files, info)
	require.NoError(t, err)
	uses := map[string]map[string]bool{}
	for name, object := range info.Uses {
		if field, ok := object.(*types.Var); ok && field.IsField() || object.Pkg() != checked {
			continue
		}
		from, to := filepath.Base(set.Position(name.Pos()).Filename), filepath.Base(set.Position(object.Pos()).Filename)
		if from == to {
			continue
		}
		if uses[from] == nil {
			uses[from] = map[string]bool{}
		}
		uses[from][to] = true
	}
	return uses
}
