package docs

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const sample = "# A heading, `code` & more\n" +
	"Prose that goes on\nin a second line. And [a link](to/there.md#x) in `some code. More` code! 2.5 MiB, e.g. here.\n" +
	"\n    indented code. Not prose.\n\n" +
	"- an entry\n  of two lines\n- another\n\n      code in an entry? no: prose\n\n" +
	"| a | table. |\n|---|---|\n\n" +
	"```sh\nfenced code. Not prose.\n```\nEnd\n"

// What the other tests see of a document: the linter can't pass what it does not see.
func TestSplit(t *testing.T) {
	d := document{"x.md", split(sample)}
	var kinds []string
	for _, l := range d.lines {
		kinds = append(kinds, [...]string{prose: "p", code: "c", table: "t", heading: "h"}[l.kind])
	}
	require.Equal(t, "hpppcpppppppttpcccp", strings.Join(kinds, ""))
	var sentences []string
	for _, s := range d.sentences() {
		sentences = append(sentences, s.text)
	}
	require.Equal(t, []string{
		"Prose that goes on in a second line.", "And a link in code code!", "2.5 MiB, e.g.", "here.",
		"an entry of two lines", "another", "code in an entry?", "no: prose", "End",
	}, sentences)
	require.Equal(t, 7, sentence{text: "seven words, of – which 2.5 are two"}.words())
	require.Equal(t, map[string]bool{"a-heading-code--more": true}, d.anchors())
	require.Equal(t, []string{"to/there.md#x"}, targets(d.lines[2].text))
}
