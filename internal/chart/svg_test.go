package chart

import (
	"encoding/xml"
	"errors"
	"io"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// The image is well-formed, its curves stay in the frame, and the highest sample is in them.
func TestSVG(t *testing.T) {
	c := Curve{Name: "no <guard> & nothing"}
	for i := range 500 {
		c.At, c.Bytes = append(c.At, time.Duration(i)*20*time.Millisecond), append(c.Bytes, 100*mib)
	}
	c.Bytes[251] = 400 * mib // of one sample among several in its column
	m := Image{Caption: "of \"one\"", Curves: []Curve{c}, Limits: []Limit{{"budget, 200 MiB", 200 * mib}}, Span: 10 * time.Second}
	for name, theme := range map[string]Theme{"light": Light, "dark": Dark} {
		image := string(m.SVG(theme))
		wellFormed(t, image)
		require.Contains(t, image, "budget, 200 MiB")
		require.NotContains(t, image, "<guard>")
		path := regexp.MustCompile(`d="(M[^"]*L[^"]*)"`).FindStringSubmatch(image)
		require.NotNil(t, path, name)
		top := float64(legendTop + legendStep + 6)
		bottom := top + tall
		highest := bottom
		for _, point := range regexp.MustCompile(`[ML]`).Split(path[1], -1)[1:] {
			px, py, _ := strings.Cut(point, " ")
			x, err := strconv.ParseFloat(px, 64)
			require.NoError(t, err)
			y, err := strconv.ParseFloat(py, 64)
			require.NoError(t, err)
			require.True(t, x >= left && x <= right && y >= top && y <= bottom, "%s is out of the frame", point)
			highest = min(highest, y)
		}
		require.InDelta(t, bottom-tall/1.08, highest, 0.1, "the peak is not drawn")
	}
}

// The grid has a bounded number of lines, whatever is drawn.
func TestSVGOfAnySize(t *testing.T) {
	for _, bytes := range []int64{0, 1, mib, 90 * mib, 5 << 30, 1 << 50} {
		for _, span := range []time.Duration{0, time.Millisecond, time.Minute, 31 * 24 * time.Hour} {
			image := string(Image{Curves: []Curve{{At: []time.Duration{0}, Bytes: []int64{bytes}}}, Span: span}.SVG(Light))
			wellFormed(t, image)
			require.Less(t, strings.Count(image, "<text"), 130, "%d bytes, %v", bytes, span)
		}
	}
}

func wellFormed(t *testing.T, image string) {
	t.Helper()
	decoder := xml.NewDecoder(strings.NewReader(image))
	for {
		_, err := decoder.Token()
		if errors.Is(err, io.EOF) {
			return
		}
		require.NoError(t, err)
	}
}
