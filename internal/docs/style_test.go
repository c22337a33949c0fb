package docs

import (
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
)

const (
	maxWords   = 30  // of a sentence
	maxColumns = 120 // of a line that is no table
	maxReadme  = 130 // lines
	maxAnswer  = 8   // lines of an answer in RATIONALE.md
	maxAnswerC = 100 // and their columns
)

// forbidden are words that have a plainer one, or another name here, with what to write. See
// docs/explanation/glossary.md.
var forbidden = []struct{ word, write string }{
	{`waiting line`, "queue"},
	{`(waits?|waited|waiting|stands?|stood|those|time|who is|many) in line`, "in the queue"},
	{`turned away`, "rejected"},
	{`hogs?`, "clients, uploads or readers"},
	{`well again`, "recovered"},
	{`e\.g\.`, "for example, or such as"},
	{`i\.e\.`, "that is"},
	{`etc\.`, "name them, or and so on"},
	{`whose each`, "each of whose"},
	{`anew`, "again"},
	{`of late`, "recently"},
	{`lest`, "so that not"},
	{`thereof|therein|whereby|hence`, "plainer words"},
	{`leverages?|utili[sz]es?|seamless(ly)?|robust(ly)?|blazing(ly)?`, "what it does"},
	{`simply|obviously|of course|easily`, "nothing"},
	{`amongst|whilst`, "among, while"},
}

// Sentences are short enough to be understood at first reading.
func TestSentencesAreShort(t *testing.T) {
	for _, d := range documents(t) {
		for _, s := range d.sentences() {
			if n := s.words(); n > maxWords {
				t.Errorf("%s:%d: a sentence of %d words, at most %d: %s", d.path, s.n, n, maxWords, s.text)
			}
		}
	}
}

// One notion has one name, and a plain one.
func TestWords(t *testing.T) {
	var words []string
	for _, f := range forbidden {
		words = append(words, f.word)
	}
	forbid := alone(strings.Join(words, "|"))
	check := func(at, text string) {
		if !forbid.MatchString(text) {
			return
		}
		for _, f := range forbidden {
			if m := alone(f.word).FindStringSubmatch(text); m != nil {
				t.Errorf("%s: %q: write %s: %s", at, m[2], f.write, text)
			}
		}
	}
	for _, d := range documents(t) {
		for _, s := range d.sentences() {
			check(fmt.Sprintf("%s:%d", d.path, s.n), s.text)
		}
		for _, l := range d.lines {
			if l.kind == table || l.kind == heading {
				check(fmt.Sprintf("%s:%d", d.path, l.n), codeSpan.ReplaceAllString(l.text, ""))
			}
		}
	}
}

// alone matches words that are no part of another, as the second group.
func alone(words string) *regexp.Regexp {
	return regexp.MustCompile(`(?i)(^|[^\pL])(` + words + `)($|[^\pL])`)
}

// Lines fit a window.
func TestLinesAreShort(t *testing.T) {
	for _, d := range documents(t) {
		for _, l := range d.lines {
			shown := link.ReplaceAllString(l.text, "$1") // where a link leads is not read
			if n := utf8.RuneCountInString(shown); n > maxColumns && l.kind != table {
				t.Errorf("%s:%d: a line of %d columns, at most %d", d.path, l.n, n, maxColumns)
			}
		}
	}
}

// What a link within the repository names is there, and so is the heading.
func TestLinksResolve(t *testing.T) {
	all := map[string]document{}
	for _, d := range documents(t) {
		all[d.path] = d
	}
	links := 0
	for _, d := range all {
		for _, target := range targets(d.withoutCode()) {
			u, err := url.Parse(target)
			if err != nil {
				t.Errorf("%s: %s: %v", d.path, target, err)
				continue
			}
			if u.Scheme != "" {
				continue
			}
			links++
			file := d.path
			if u.Path != "" {
				file = path.Join(path.Dir(d.path), u.Path)
			}
			if _, err := os.Stat(filepath.Join(root(t), file)); err != nil {
				t.Errorf("%s: there is no %s", d.path, file)
			} else if u.Fragment != "" && !all[file].anchors()[u.Fragment] {
				t.Errorf("%s: %s has no heading #%s", d.path, file, u.Fragment)
			}
		}
	}
	require.Greater(t, links, 20, "the links are not found")
}

var attribute = regexp.MustCompile(`(?:src|srcset|href)="([^"]*)"`)

func targets(text string) (list []string) {
	text = codeSpan.ReplaceAllString(text, "code")
	for _, m := range link.FindAllStringSubmatch(text, -1) {
		list = append(list, m[2])
	}
	for _, m := range attribute.FindAllStringSubmatch(text, -1) {
		list = append(list, m[1])
	}
	return list
}

// README leads to the documents and stops.
func TestReadmeIsShort(t *testing.T) {
	for _, d := range documents(t) {
		if d.path == "README.md" {
			require.LessOrEqual(t, len(d.lines), maxReadme)
			return
		}
	}
	t.Fatal("there is no README.md")
}

// An answer of RATIONALE.md is short, and its question is in the table of contents.
func TestAnswersAreShort(t *testing.T) {
	for _, d := range documents(t) {
		if d.path != "RATIONALE.md" {
			continue
		}
		listed := map[string]bool{}
		for _, l := range d.lines {
			for _, target := range targets(l.text) {
				listed[strings.TrimPrefix(target, "#")] = true
			}
		}
		question, answer, answers := "", 0, 0
		for _, l := range d.lines {
			switch {
			case l.kind == heading && strings.HasPrefix(l.text, "### "):
				question, answer = l.text, 0
				answers++
				for anchor := range (document{lines: []line{l}}).anchors() {
					if !listed[anchor] {
						t.Errorf("%s:%d: not in the table of contents: %s", d.path, l.n, l.text)
					}
				}
			case l.kind == heading:
				question = ""
			case question != "" && strings.TrimSpace(l.text) != "":
				if answer++; answer == maxAnswer+1 {
					t.Errorf("%s:%d: more than %d lines: %s", d.path, l.n, maxAnswer, question)
				}
				if n := utf8.RuneCountInString(l.text); n > maxAnswerC {
					t.Errorf("%s:%d: a line of %d columns, at most %d", d.path, l.n, n, maxAnswerC)
				}
			}
		}
		require.Greater(t, answers, 40, "the answers are not found")
		notesAreLast(t, d)
		return
	}
	t.Fatal("there is no RATIONALE.md")
}

// notesAreLast: what was tried and dropped is the last paragraph of the answer that it belongs to,
// and no question of its own.
func notesAreLast(t *testing.T, d document) {
	t.Helper()
	notes, open := 0, false
	for i, l := range d.lines {
		switch {
		case l.kind == heading:
			if open = false; alone("tried|dropped").MatchString(l.text) {
				t.Errorf("%s:%d: what was tried belongs to an answer: %s", d.path, l.n, l.text)
			}
		case strings.HasPrefix(l.text, "Tried and dropped") && d.lines[i-1].text == "":
			notes, open = notes+1, true
		case strings.Contains(l.text, "Tried: ") || strings.Contains(l.text, "Tried and dropped") || strings.Contains(l.text, "Dropped: "):
			t.Errorf("%s:%d: what was tried is a paragraph of its own, and begins with Tried and dropped: %s", d.path, l.n, l.text)
		case open && strings.TrimSpace(l.text) != "" && d.lines[i-1].text == "":
			t.Errorf("%s:%d: behind what was tried nothing comes: %s", d.path, l.n, l.text)
		}
	}
	require.Greater(t, notes, 10, "what was tried is not found")
}

// The log lines of the page on troubleshooting are in the code, or Envoy's own. In them … stands
// for a verb of fmt.
func TestLogLinesAreReal(t *testing.T) {
	var source strings.Builder
	list := exec.Command("git", "ls-files", "-z", "*.go")
	list.Dir = root(t)
	out, err := list.Output()
	require.NoError(t, err)
	for file := range strings.SplitSeq(strings.Trim(string(out), "\x00"), "\x00") {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		text, err := os.ReadFile(filepath.Join(root(t), file))
		if err == nil {
			source.Write(text)
		}
	}
	checked := 0
	for _, d := range documents(t) {
		if d.path != "docs/how-to/troubleshooting.md" {
			continue
		}
		logLines := false
		for i, l := range d.lines {
			switch {
			case l.kind != table:
				logLines = false
			case i > 0 && d.lines[i-1].kind != table:
				logLines = strings.HasPrefix(l.text, "| log line")
			case logLines && strings.HasPrefix(l.text, "| `"):
				text, _, _ := strings.Cut(strings.TrimPrefix(l.text, "| `"), "`")
				ours := text != "in-VM backtrace" && !strings.HasPrefix(text, "highwater_")
				said := regexp.MustCompile(strings.ReplaceAll(regexp.QuoteMeta(text), "…", "%[a-z]"))
				if checked++; ours && !said.MatchString(source.String()) {
					t.Errorf("%s:%d: nothing logs %q", d.path, l.n, text)
				}
			}
		}
	}
	require.Greater(t, checked, 20, "the log lines are not found")
}
