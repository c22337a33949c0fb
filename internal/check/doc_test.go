package check

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// The reference explains each finding in a paragraph, with its severities, and no other.
func TestReference(t *testing.T) {
	text, err := os.ReadFile("../../docs/reference/check.md")
	require.NoError(t, err)
	var told, are []string
	for _, m := range regexp.MustCompile(`(?m)^### (.+)\n\n\*([^*]+)\.\* (.+)`).FindAllStringSubmatch(string(text), -1) {
		told = append(told, m[1]+": "+strings.ToLower(m[2]))
		require.Greater(t, len(m[3]), 20, m[1])
	}
	for _, k := range kinds {
		are = append(are, k.name+": "+k.severities)
	}
	require.Equal(t, are, told)
}

// Every finding that the code makes is among the kinds, and every kind is made somewhere.
func TestKinds(t *testing.T) {
	made := map[string]bool{}
	for _, pattern := range []string{"*.go", "../envoyconfig/*.go"} {
		files, err := filepath.Glob(pattern)
		require.NoError(t, err)
		for _, path := range files {
			if strings.HasSuffix(path, "_test.go") {
				continue
			}
			file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
			require.NoError(t, err)
			ast.Inspect(file, func(n ast.Node) bool {
				if name := madeBy(n); name != "" {
					made[name] = true
				}
				return true
			})
		}
	}
	delete(made, "field") // envoyconfig's, which is told as unknown-field or unreadable
	var names []string
	for _, k := range kinds {
		names = append(names, k.name)
	}
	slices.Sort(names)
	require.Equal(t, names, sorted(made))
}

// madeBy is the name of the finding that a call makes; empty where it makes none.
func madeBy(n ast.Node) string {
	call, ok := n.(*ast.CallExpr)
	if !ok {
		return ""
	}
	var at int
	switch f := call.Fun.(type) {
	case *ast.SelectorExpr:
		at = map[string]int{"fail": 0, "warn": 0, "tell": 0, "byGuard": 1}[f.Sel.Name]
		if !slices.Contains([]string{"fail", "warn", "tell", "byGuard"}, f.Sel.Name) {
			return ""
		}
	case *ast.Ident:
		if f.Name != "say" {
			return ""
		}
	default:
		return ""
	}
	if at >= len(call.Args) {
		return ""
	}
	text, ok := call.Args[at].(*ast.BasicLit)
	if !ok {
		return ""
	}
	name, _ := strconv.Unquote(text.Value)
	return name
}
