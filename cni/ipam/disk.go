package ipam

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/moby/sys/atomicwriter"
	"golang.org/x/sys/unix"
)

const (
	lockName = "lock"
	// tmpPrefix is how atomicwriter names a file that is being written.
	tmpPrefix = ".tmp-"
	// lockRetry is the pause between two attempts to take the lock, which is
	// held for well under a millisecond.
	lockRetry = 500 * time.Microsecond
)

// Disk is a Store of files in one directory, which is made when first needed.
type Disk struct{ dir string }

// NewDisk returns the store in dir. It belongs to one network.
func NewDisk(dir string) *Disk { return &Disk{dir: dir} }

// Lock implements Store with flock on a file that is never removed: the kernel
// releases it when its holder dies.
func (d *Disk) Lock(ctx context.Context) (func(), error) {
	path := filepath.Join(d.dir, lockName)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if errors.Is(err, fs.ErrNotExist) {
		if err := os.MkdirAll(d.dir, 0o700); err != nil {
			return nil, fmt.Errorf("create the lease directory: %w", err)
		}
		f, err = os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	}
	if err != nil {
		return nil, fmt.Errorf("open the lock of the leases: %w", err)
	}
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, fmt.Errorf("wait for the lock %s, held by another process (see fuser): %w", path, context.Cause(ctx))
		case <-time.After(lockRetry):
		}
	}
}

// Read implements Store.
func (d *Disk) Read(name string) ([]byte, error) {
	return os.ReadFile(filepath.Join(d.dir, name))
}

// Write implements Store.
func (d *Disk) Write(name string, data []byte) error {
	path := filepath.Join(d.dir, name)
	err := atomicwriter.WriteFile(path, data, 0o600)
	if errors.Is(err, fs.ErrNotExist) {
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return err
		}
		err = atomicwriter.WriteFile(path, data, 0o600)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

// Remove implements Store.
func (d *Disk) Remove(name string) error {
	if err := os.Remove(filepath.Join(d.dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// List implements Store.
func (d *Disk) List(dir string) ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(d.dir, dir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		switch {
		case e.IsDir() || e.Name() == lockName:
		case strings.HasPrefix(e.Name(), tmpPrefix):
			if err := d.Remove(filepath.Join(dir, e.Name())); err != nil {
				return nil, err
			}
		default:
			names = append(names, e.Name())
		}
	}
	return names, nil
}
