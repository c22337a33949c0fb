package main

import (
	"bytes"
	"context"
	"encoding/xml"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"
	"unicode/utf8"
)

// The live view as an image, for the documents.
const (
	shotColumns      = 100
	cellWidth        = 8.4
	cellHeight       = 20
	shotMargin       = 16
	shotBackground   = "#0d1117"
	shotForeground   = "#e6edf3"
	shotDim          = "#7d8590"
	shotFontSize     = 14
	shotLooks        = 200 * time.Millisecond
	maxProfile       = 64 << 20
	profileOfHighest = "/highwater/pprof?peak=highest" // without it, it is of this moment
)

// shotColours are those that the view uses, by their escape sequences.
var shotColours = map[string]string{red: "#f85149", green: "#3fb950", yellow: "#d29922", orange: "#f0883e", cyan: "#39c5cf", blue: "#58a6ff", dim: shotDim}

// shades are the glyphs of the bar, and how much of the colour they let through. They are drawn as
// rectangles, because no two fonts have them as wide as a letter.
var shades = map[rune]float64{'█': 1, '▓': 0.75, '▒': 0.5, '░': 0.25}

// shoot looks at the view until ctx is done, and returns the one with the highest estimate.
func shoot(ctx context.Context, w *watch) (lines []string) {
	highest := -1.0
	for ctx.Err() == nil {
		pause(ctx, shotLooks)
		if estimate, ok := w.metric("estimate_bytes"); ok && estimate > highest && ctx.Err() == nil {
			highest, lines = estimate, w.view(shotColumns, true)
		}
	}
	return lines
}

// image draws lines with escape sequences.
func image(lines []string) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %.0f %d" font-family="ui-monospace,Menlo,Consolas,'DejaVu Sans Mono',monospace" font-size="%d">`+"\n",
		2*shotMargin+shotColumns*cellWidth, 2*shotMargin+cellHeight*len(lines), shotFontSize)
	fmt.Fprintf(&b, `<rect width="100%%" height="100%%" rx="8" fill="%s"/>`+"\n", shotBackground)
	for row, text := range lines {
		column, colour, weight := 0, shotForeground, "normal"
		for text != "" {
			if text[0] == '\x1b' {
				end := strings.IndexByte(text, 'm')
				if end < 0 {
					break
				}
				switch code := text[:end+1]; code {
				case reset:
					colour, weight = shotForeground, "normal"
				case bold:
					weight = "bold"
				default:
					colour = shotColours[code]
				}
				text = text[end+1:]
				continue
			}
			plain, rest := text, ""
			if i := strings.IndexByte(text, '\x1b'); i >= 0 {
				plain, rest = text[:i], text[i:]
			}
			text = rest
			x, n := shotMargin+float64(column)*cellWidth, utf8.RuneCountInString(plain)
			column += n
			if first, _ := utf8.DecodeRuneInString(plain); shades[first] > 0 {
				fmt.Fprintf(&b, `<rect x="%.1f" y="%d" width="%.1f" height="%d" fill="%s" fill-opacity="%.2f"/>`+"\n",
					x, shotMargin+cellHeight*row+2, float64(n)*cellWidth, cellHeight-4, colour, shades[first])
				continue
			}
			if strings.TrimSpace(plain) == "" {
				continue
			}
			fmt.Fprintf(&b, `<text xml:space="preserve" x="%.1f" y="%d" textLength="%.1f" fill="%s" font-weight="%s">`,
				x, shotMargin+cellHeight*row+15, float64(n)*cellWidth, colour, weight)
			_ = xml.EscapeText(&b, []byte(plain)) // a buffer takes everything
			b.WriteString("</text>\n")
		}
	}
	b.WriteString("</svg>\n")
	return b.Bytes()
}

// saveProfile writes the profile of the highest peak, as the debug listener tells it.
func saveProfile(ctx context.Context, listener, file string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+listener+profileOfHighest, nil)
	if err != nil {
		return err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, maxProfile))
	if err != nil {
		return err
	}
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s: %s", profileOfHighest, res.Status, body)
	}
	return os.WriteFile(file, body, 0o644)
}
