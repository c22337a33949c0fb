package extproc

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
)

// A stream that is let go ends with OK. What comes behind that is answered no more, and the policy
// knows of it no more.
func TestWhoIsLetGo(t *testing.T) {
	s, reading := serve(t, 40*mib, nil)
	chat := []string{"content-type", "application/grpc"}
	var all []*client
	for range 400 {
		c := s.dial(t)
		c.say(request(false, chat...))
		require.NotNil(t, c.heard().GetRequestHeaders())
		c.say(requestBody(200, false))
		require.NotNil(t, c.heard().GetRequestBody())
		c.say(response(false, chat...))
		require.NotNil(t, c.heard().GetResponseHeaders())
		c.say(responseBody(200, false))
		require.NotNil(t, c.heard().GetResponseBody())
		all = append(all, c)
	}
	time.Sleep(400 * time.Millisecond)
	for _, c := range all {
		ended, _, _ := c.status()
		require.False(t, ended, "memory is not half of soft")
	}
	reading.set(115 * mib)
	until(t, func() bool { return s.counts.letGo.Load() > 100 })
	gone := 0
	for _, c := range all {
		if ended, code, _ := c.status(); ended {
			require.Equal(t, codes.OK, code)
			c.say(requestBody(200, false))
			c.silent()
			gone++
		}
	}
	require.Greater(t, gone, 100)
	for _, c := range all {
		c.close()
	}
	s.drained(t)
}
