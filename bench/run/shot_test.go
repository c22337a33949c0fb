package main

import (
	"encoding/xml"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// A frame becomes an image: text keeps its place and colour, and the bar is drawn.
func TestImage(t *testing.T) {
	shot := string(image([]string{"plain <" + red + "hot" + reset + "> 10", green + "████" + reset + dim + "░░" + reset, ""}))
	for decoder := xml.NewDecoder(strings.NewReader(shot)); ; {
		_, err := decoder.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		require.NoError(t, err)
	}
	require.Contains(t, shot, `x="16.0" y="31" textLength="58.8" fill="#e6edf3" font-weight="normal">plain &lt;<`)
	require.Contains(t, shot, `x="74.8" y="31" textLength="25.2" fill="#f85149" font-weight="normal">hot<`)
	require.Contains(t, shot, `<rect x="16.0" y="38" width="33.6" height="16" fill="#3fb950" fill-opacity="1.00"/>`)
	require.Contains(t, shot, `<rect x="49.6" y="38" width="16.8" height="16" fill="#7d8590" fill-opacity="0.25"/>`)
}

// The profile is of the highest peak: when it is saved the load has ended, and this moment is
// empty.
func TestSaveProfile(t *testing.T) {
	listener := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, r.URL.String())
	}))
	defer listener.Close()
	file := filepath.Join(t.TempDir(), "peak.pb.gz")
	require.NoError(t, saveProfile(t.Context(), strings.TrimPrefix(listener.URL, "http://"), file))
	saved, err := os.ReadFile(file)
	require.NoError(t, err)
	require.Equal(t, "/highwater/pprof?peak=highest", string(saved))
}
