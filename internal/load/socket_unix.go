//go:build unix

package load

import "syscall"

// receiveBufferOf sets SO_RCVBUF before the socket connects, when it still bounds the window that
// is offered.
func receiveBufferOf(bytes int) func(network, address string, c syscall.RawConn) error {
	if bytes <= 0 {
		return nil
	}
	return func(_, _ string, c syscall.RawConn) error {
		var failed error
		err := c.Control(func(fd uintptr) {
			failed = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, bytes)
		})
		if err != nil {
			return err
		}
		return failed
	}
}
