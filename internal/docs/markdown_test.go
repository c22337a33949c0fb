// Package docs tests the documents of this repository: how they are written, that their links
// resolve, and that the commands of the tutorial work.
package docs

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"unicode"

	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/envoybin"
)

// line is a line of a document, with what it is part of.
type line struct {
	n    int // from 1
	text string
	kind kind
	lang string // of code
}

type kind int

const (
	prose kind = iota
	code       // fenced or indented, the fences included
	table
	heading
)

// document is a Markdown file.
type document struct {
	path  string // from the root, with slashes
	lines []line
}

// root is the directory of the module.
func root(t *testing.T) string {
	t.Helper()
	dir, err := envoybin.ModuleRoot()
	require.NoError(t, err)
	return dir
}

// documents are all Markdown files that are, or would be, in the repository.
func documents(t *testing.T) []document {
	t.Helper()
	list := exec.Command("git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", "*.md")
	list.Dir = root(t)
	out, err := list.Output()
	require.NoError(t, err)
	var all []document
	for path := range strings.SplitSeq(strings.Trim(string(out), "\x00"), "\x00") {
		text, err := os.ReadFile(filepath.Join(root(t), path))
		if os.IsNotExist(err) { // it was removed, and that is not committed yet
			continue
		}
		require.NoError(t, err)
		all = append(all, document{path, split(string(text))})
	}
	require.NotEmpty(t, all)
	return all
}

var fence = regexp.MustCompile("^ *(```+)([a-z]*)$")

// split says of each line what it is part of. Code is fenced, or indented by four and more behind
// an empty line; within a list it has to be fenced, else it is held to the rules of prose.
func split(text string) []line {
	var lines []line
	inFence, lang, list := "", "", false
	last := prose
	for i, text := range strings.Split(strings.TrimSuffix(text, "\n"), "\n") {
		l := line{n: i + 1, text: text}
		m := fence.FindStringSubmatch(text)
		trimmed := strings.TrimSpace(text)
		before := i == 0 || strings.TrimSpace(lines[i-1].text) == ""
		switch {
		case inFence != "":
			l.kind, l.lang = code, lang
			if m != nil && m[1] == inFence && m[2] == "" {
				inFence = ""
			}
		case m != nil:
			inFence, lang = m[1], m[2]
			l.kind, l.lang = code, lang
		case strings.HasPrefix(trimmed, "|"):
			l.kind = table
		case strings.HasPrefix(text, "#"):
			l.kind, list = heading, false
		case strings.HasPrefix(text, "    ") && !list && (before || last == code):
			l.kind = code
		case trimmed != "" && !strings.HasPrefix(text, " "):
			list = bullet.MatchString(text)
		}
		last = l.kind
		lines = append(lines, l)
	}
	return lines
}

var bullet = regexp.MustCompile(`^ *([-*]|[0-9]+\.) `)

// sentence is one of a document's, with its line.
type sentence struct {
	n    int
	text string
}

var (
	codeSpan   = regexp.MustCompile("`[^`]*`")
	image      = regexp.MustCompile(`!\[[^\]]*\]\([^)]*\)`)
	link       = regexp.MustCompile(`\[([^\]]*)\]\(([^)]*)\)`)
	element    = regexp.MustCompile(`<[^>]*>`)
	endOfOne   = regexp.MustCompile(`[.!?][)"*_]*(\s+|$)`)
	footnote   = regexp.MustCompile(`^\[[^\]]+\]: `)
	hasLetters = regexp.MustCompile(`[\pL\pN]`)
)

// sentences are those of the prose. An entry of a list, and a paragraph, end one too.
func (d document) sentences() []sentence {
	var all []sentence
	var text strings.Builder
	begin := 0
	flush := func() {
		rest := text.String()
		text.Reset()
		rest = image.ReplaceAllString(rest, "")
		rest = link.ReplaceAllString(rest, "$1")
		rest = element.ReplaceAllString(rest, "")
		for rest = strings.TrimSpace(rest); rest != ""; {
			end := len(rest)
			if at := endOfOne.FindStringIndex(rest); at != nil {
				end = at[1]
			}
			all = append(all, sentence{begin, strings.TrimSpace(rest[:end])})
			rest = rest[end:]
		}
	}
	for _, l := range d.lines {
		if l.kind != prose || strings.TrimSpace(l.text) == "" || bullet.MatchString(l.text) || footnote.MatchString(l.text) {
			flush()
		}
		if l.kind != prose || footnote.MatchString(l.text) {
			continue
		}
		if text.Len() == 0 {
			begin = l.n
		}
		text.WriteString(codeSpan.ReplaceAllString(strings.TrimSpace(bullet.ReplaceAllString(l.text, "")), "code"))
		text.WriteByte(' ')
	}
	flush()
	return all
}

// words counts what is separated by spaces and has a letter or a digit.
func (s sentence) words() int {
	n := 0
	for _, w := range strings.Fields(s.text) {
		if hasLetters.MatchString(w) {
			n++
		}
	}
	return n
}

// withoutCode is the text of all lines that are no code: links and code spans may go over the end
// of a line.
func (d document) withoutCode() string {
	var text strings.Builder
	for _, l := range d.lines {
		if l.kind != code {
			text.WriteString(l.text + "\n")
		}
	}
	return text.String()
}

// anchors are what the headings of a document are called in a link, as GitHub makes them.
func (d document) anchors() map[string]bool {
	all := map[string]bool{}
	for _, l := range d.lines {
		if l.kind != heading {
			continue
		}
		text := strings.ToLower(strings.TrimSpace(strings.TrimLeft(l.text, "#")))
		text = link.ReplaceAllString(text, "$1")
		all[strings.Map(func(r rune) rune {
			switch {
			case r == ' ':
				return '-'
			case unicode.IsLetter(r), unicode.IsDigit(r), r == '-', r == '_':
				return r
			}
			return -1
		}, text)] = true
	}
	return all
}
