package source

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/moby/sys/atomicwriter"

	"github.com/berth-io/berth/internal/failpoint"
)

// cache keeps the last good version of every manifest file, one file each of
// the same name and modification time. Manifests may hold Secrets: it is for
// root's eyes only.
//
// Writing is not on the way of a new pod: put and remove note what to do and
// run does it. A crash in between leaves the version before, which matters
// only if the manifest has become invalid when the daemon is back.
type cache struct {
	dir     string
	mu      sync.Mutex
	pending map[string]*version // nil: remove
	wake    chan struct{}
}

type version struct {
	data []byte
	at   time.Time
}

func newCache(dir string) *cache {
	return &cache{dir: dir, pending: map[string]*version{}, wake: make(chan struct{}, 1)}
}

func (c *cache) prepare() error {
	if err := os.MkdirAll(c.dir, 0o700); err != nil {
		return fmt.Errorf("make directory for last good manifests: %w", err)
	}
	return nil
}

func (c *cache) path(name string) string { return filepath.Join(c.dir, name) }

// get returns the last good version that is on disk and its time.
func (c *cache) get(name string) ([]byte, time.Time, error) {
	data, err := os.ReadFile(c.path(name))
	if err != nil {
		return nil, time.Time{}, err
	}
	info, err := os.Stat(c.path(name))
	if err != nil {
		return nil, time.Time{}, err
	}
	return data, info.ModTime(), nil
}

func (c *cache) put(name string, data []byte, at time.Time) {
	c.note(name, &version{data, at})
}

func (c *cache) remove(name string) { c.note(name, nil) }

func (c *cache) note(name string, v *version) {
	c.mu.Lock()
	c.pending[name] = v
	c.mu.Unlock()
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// keepOnly removes the versions of files that went while the daemon was down.
func (c *cache) keepOnly(present map[string]bool) {
	entries, err := os.ReadDir(c.dir)
	if err != nil {
		return // a version too many is only ever used for a file of its name
	}
	for _, e := range entries {
		if !present[e.Name()] {
			c.remove(e.Name())
		}
	}
}

// run writes what put and remove have noted, all of it before it returns.
func (c *cache) run(ctx context.Context, log *slog.Logger) error {
	for {
		select {
		case <-c.wake:
			c.flush(log)
		case <-ctx.Done():
			c.flush(log)
			return nil
		}
	}
}

func (c *cache) flush(log *slog.Logger) {
	c.mu.Lock()
	pending := c.pending
	c.pending = map[string]*version{}
	c.mu.Unlock()
	for name, v := range pending {
		if err := c.store(name, v); err != nil {
			log.Warn("last good version of a manifest cannot be kept", "file", name, "error", err)
		}
	}
}

func (c *cache) store(name string, v *version) error {
	if v == nil {
		if err := os.Remove(c.path(name)); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	}
	if old, at, err := c.get(name); err == nil && at.Equal(v.at) && string(old) == string(v.data) {
		return nil // as after every restart
	}
	failpoint.Hit("agent/manifest-accepted")
	if err := atomicwriter.WriteFile(c.path(name), v.data, 0o600); err != nil {
		return err
	}
	return os.Chtimes(c.path(name), v.at, v.at)
}
