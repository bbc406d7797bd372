package ipam

import (
	"context"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
)

// Fake is a Store in memory, for tests. It passes the same contract tests as
// Disk.
type Fake struct {
	turn    chan struct{}
	records map[string][]byte
}

// NewFake returns an empty store.
func NewFake() *Fake {
	return &Fake{turn: make(chan struct{}, 1), records: map[string][]byte{}}
}

// Lock implements Store.
func (f *Fake) Lock(ctx context.Context) (func(), error) {
	select {
	case f.turn <- struct{}{}:
		return func() { <-f.turn }, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// Read implements Store.
func (f *Fake) Read(name string) ([]byte, error) {
	data, ok := f.records[name]
	if !ok {
		return nil, fmt.Errorf("read %s: %w", name, fs.ErrNotExist)
	}
	return data, nil
}

// Write implements Store.
func (f *Fake) Write(name string, data []byte) error {
	f.records[name] = slices.Clone(data)
	return nil
}

// Remove implements Store.
func (f *Fake) Remove(name string) error {
	delete(f.records, name)
	return nil
}

// List implements Store.
func (f *Fake) List(dir string) ([]string, error) {
	var names []string
	for name := range f.records {
		if d, base := path.Split(name); strings.TrimSuffix(d, "/") == dir {
			names = append(names, base)
		}
	}
	slices.Sort(names)
	return names, nil
}
