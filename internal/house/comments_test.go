package house

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// maxComment is how many columns a line of comment has at most.
const maxComment = 100

// Lines that are comments alone fit. What stands behind code is as long as that makes it, and
// directives are for tools.
func TestCommentsAreShort(t *testing.T) {
	root := filepath.Join("..", "..")
	list := exec.Command("git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", "*.go")
	list.Dir = root
	out, err := list.Output()
	require.NoError(t, err)
	checked := 0
	for path := range strings.SplitSeq(strings.Trim(string(out), "\x00"), "\x00") {
		text, err := os.ReadFile(filepath.Join(root, path))
		if os.IsNotExist(err) { // it was removed, and that is not committed yet
			continue
		}
		require.NoError(t, err)
		for n, line := range comments(t, path, text) {
			checked++
			if has := columns(line); has > maxComment && !strings.Contains(line, "://") {
				t.Errorf("%s:%d: a comment of %d columns, at most %d", path, n, has, maxComment)
			}
		}
	}
	require.Greater(t, checked, 5000, "the comments are not found")
}

// comments are the lines of a file, by their number from 1, that are comments alone.
func comments(t *testing.T, path string, text []byte) map[int]string {
	t.Helper()
	set := token.NewFileSet()
	file, err := parser.ParseFile(set, path, text, parser.ParseComments|parser.SkipObjectResolution)
	require.NoError(t, err)
	if ast.IsGenerated(file) {
		return nil
	}
	lines, all := strings.Split(string(text), "\n"), map[int]string{}
	for _, group := range file.Comments {
		for _, c := range group.List {
			n := set.PositionFor(c.Pos(), false).Line
			line := lines[n-1]
			of, isLine := strings.CutPrefix(strings.TrimLeft(line, " \t"), "//")
			if directive := of != "" && of[0] != ' ' && of[0] != '\t'; isLine && !directive {
				all[n] = line
			}
		}
	}
	return all
}

// columns is how far a line goes, with a tab stop at each fourth.
func columns(line string) (n int) {
	for _, r := range line {
		if n++; r == '\t' {
			n = (n + 3) / 4 * 4
		}
	}
	return n
}

func TestComments(t *testing.T) {
	text := "//go:build x\n\n// a\npackage a\n\nfunc b() { // behind code\n\t// c\n\t//nolint:x // why\n}\n\nconst d = `\n// text\n`\n"
	require.Equal(t, map[int]string{3: "// a", 7: "\t// c"}, comments(t, "a.go", []byte(text)))
	require.Equal(t, 8, columns("\t// ä"))
	require.Equal(t, 5, columns("//\ta"))
}
