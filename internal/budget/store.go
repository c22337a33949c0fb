package budget

import (
	"errors"
	"sync"
)

// Store keeps the table where all workers of a process reach it: Envoy's shared data, or memory.
type Store interface {
	// Load returns the value and the version that Swap wants. A value that was never stored is
	// empty and no error. The caller may read the value until its next call.
	Load() (value []byte, version uint32, err error)
	// Swap stores the value if the version is still that of the last Load, else it returns
	// ErrConflict.
	Swap(value []byte, version uint32) error
	// Put stores a value of the worker's own, which all can read and only it writes.
	Put(worker uint32, value []byte) error
	// Get returns what a worker has put last, nothing if it has not. The caller may read the value
	// until its next call.
	Get(worker uint32) ([]byte, error)
	// Keep stores one of several values of the worker's own, by slot, as Put does its one.
	Keep(worker uint32, slot int, value []byte) error
	// Kept returns what a worker keeps in a slot, as Get does.
	Kept(worker uint32, slot int) ([]byte, error)
	// NextID returns an id that no other caller has had. Clocks and random seeds of two virtual
	// machines collide, a counter does not.
	NextID() (uint32, error)
}

// ErrConflict says that somebody else was first: load again.
var ErrConflict = errors.New("the table has changed since it was loaded")

// Memory is a Store within one process. The zero value is empty and ready.
type Memory struct {
	mu struct {
		sync.Mutex
		value   []byte
		version uint32
		ids     uint32
		own     map[uint32][]byte
		kept    map[place][]byte
	}
}

type place struct {
	worker uint32
	slot   int
}

var _ Store = (*Memory)(nil)

// Load implements Store.
func (m *Memory) Load() ([]byte, uint32, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	// A copy: the next Swap of another worker writes into the array while this one still reads.
	return append([]byte(nil), m.mu.value...), m.mu.version, nil
}

// Swap implements Store.
func (m *Memory) Swap(value []byte, version uint32) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.mu.version != version {
		return ErrConflict
	}
	m.mu.value = append(m.mu.value[:0], value...)
	m.mu.version++
	return nil
}

// Put implements Store.
func (m *Memory) Put(worker uint32, value []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.mu.own == nil {
		m.mu.own = map[uint32][]byte{}
	}
	m.mu.own[worker] = append([]byte(nil), value...) // a new one: others may still read the last
	return nil
}

// Get implements Store.
func (m *Memory) Get(worker uint32) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.mu.own[worker], nil
}

// Keep implements Store.
func (m *Memory) Keep(worker uint32, slot int, value []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.mu.kept == nil {
		m.mu.kept = map[place][]byte{}
	}
	m.mu.kept[place{worker, slot}] = append([]byte(nil), value...) // a new one: others may still read the last
	return nil
}

// Kept implements Store.
func (m *Memory) Kept(worker uint32, slot int) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.mu.kept[place{worker, slot}], nil
}

// NextID implements Store.
func (m *Memory) NextID() (uint32, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.mu.ids++
	return m.mu.ids, nil
}
