package observer

import (
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/stretchr/testify/require"
)

// What is asked once has the bounds of what is asked all the time.
func TestAdminIsAsked(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/heap_dump" {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		_, _ = w.Write([]byte("12345678"))
	}))
	defer s.Close()
	a, err := NewAdmin(s.URL)
	require.NoError(t, err)
	defer a.Close()
	_, err = a.Process()
	require.ErrorContains(t, err, "has not been reached yet")
	text, err := a.Get(t.Context(), "/heap_dump", 8)
	require.NoError(t, err)
	require.Equal(t, "12345678", string(text))
	_, err = a.Get(t.Context(), "/heap_dump", 7)
	require.ErrorContains(t, err, "has more than 7 bytes")
	_, err = a.Get(t.Context(), "/memory/tcmalloc", 8)
	require.ErrorContains(t, err, "with admin.allow_paths, the path must be among them")
	_, err = NewAdmin("localhost:9901")
	require.ErrorContains(t, err, "must be the address of Envoy's admin interface")
}
