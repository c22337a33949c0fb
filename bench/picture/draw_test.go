package main

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
func TestDraw(t *testing.T) {
	c := curve{name: "no <guard> & nothing", answered: 0.5}
	for i := range 500 {
		c.at, c.inUse = append(c.at, time.Duration(i)*sampleEvery), append(c.inUse, 100*mib)
	}
	c.inUse[251] = 400 * mib // of one sample among several in its column
	for name, theme := range themes {
		image := string(draw(theme, []curve{c}, 200*mib, 10*time.Second))
		decoder := xml.NewDecoder(strings.NewReader(image))
		for {
			_, err := decoder.Token()
			if errors.Is(err, io.EOF) {
				break
			}
			require.NoError(t, err, name)
		}
		require.Contains(t, image, "peak 2.00 of the budget, 50 % of the small requests answered")
		require.NotContains(t, image, "<guard>")
		path := regexp.MustCompile(`d="(M[^"]*L[^"]*)"`).FindStringSubmatch(image)
		require.NotNil(t, path, name)
		highest := float64(bottom)
		for _, point := range regexp.MustCompile(`[ML]`).Split(path[1], -1)[1:] {
			px, py, _ := strings.Cut(point, " ")
			x, err := strconv.ParseFloat(px, 64)
			require.NoError(t, err)
			y, err := strconv.ParseFloat(py, 64)
			require.NoError(t, err)
			require.True(t, x >= left && x <= right && y >= top && y <= bottom, "%s is out of the frame", point)
			highest = min(highest, y)
		}
		require.InDelta(t, bottom-(bottom-top)/1.08, highest, 0.1, "the peak is not drawn")
	}
}
