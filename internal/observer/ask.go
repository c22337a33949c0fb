package observer

import (
	"context"
	"os"
	"time"
)

// Admin asks an Envoy's admin interface for what people want to see once, beside what an Observer
// asks for all the time. It is not safe for concurrent use.
type Admin struct {
	admin  admin
	finder finder
}

// NewAdmin returns one for the address of an admin interface, such as http://127.0.0.1:9901 or
// unix:/run/envoy/admin.sock.
func NewAdmin(address string) (*Admin, error) {
	client, base, err := newClient(address)
	if err != nil {
		return nil, err
	}
	return &Admin{admin: admin{client: client, base: base, longest: time.Second}}, nil
}

// Admin returns one for the Envoy that is observed.
func (o *Observer) Admin() (*Admin, error) { return NewAdmin(o.options.URL) }

// Get returns the answer for a path, at most so many bytes. Envoy makes it on its main thread.
func (a *Admin) Get(ctx context.Context, path string, most int64) ([]byte, error) {
	text, err := a.admin.get(ctx, path, most)
	return text, brief(err)
}

// Process finds the process that has answered on this machine.
func (a *Admin) Process() (pid int, err error) {
	pid, _, err = a.finder.find(os.DirFS("/"), a.admin.at)
	return pid, err
}

// Close ends its connections.
func (a *Admin) Close() { a.admin.client.CloseIdleConnections() }
