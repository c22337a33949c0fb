package observer

import (
	"io/fs"
	"net"
	"net/http"
)

// Process finds the Envoy whose admin interface answered at an address, and says what it is known
// by. root is the root of the machine's file system, with proc in it.
func Process(root fs.FS, at net.Addr) (pid int, how string, err error) {
	var f finder
	return f.find(root, at)
}

// Client returns a client for the address of an admin interface, such as http://127.0.0.1:9901 or
// unix:/run/envoy/admin.sock, and what paths are put behind.
func Client(address string) (client *http.Client, base string, err error) { return newClient(address) }
