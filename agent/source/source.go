// Package source says which pods this node should run, from the files of a
// manifest directory: it reads and watches them, agent/manifest understands
// them, and the rest of the agent sees immutable Snapshots.
//
// It owns the directory of last good versions (Config.CacheDir) and nothing
// else. A file that becomes unreadable or invalid keeps its last good version
// in force, over a restart too, and is reported; only a file that is gone
// takes its objects along. An object belongs to the first file that defines
// it: a version of another file that defines it too waits until it is free.
//
//	source.go   Dir: the loop, what is delivered
//	file.go     one file: when to read it, what it says, what stays in force
//	cache.go    last good versions on disk
//	inotify.go  the kernel's events, without a thread that waits for them
package source

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	v1 "k8s.io/api/core/v1"

	"github.com/berth-io/berth/agent/manifest"
)

// DefaultRescan is how often the directory is compared with what is known of
// it, in case an event was lost or never sent (network file systems, the
// targets of symbolic links).
const DefaultRescan = 20 * time.Second

// removalDelay is how long a file must be gone before its objects leave.
// Editors save by moving the old file aside before the new one is there
// (vim: web.yaml to web.yaml~), which must not stop any pod.
const removalDelay = 100 * time.Millisecond

// A file that is open for writing is looked at again after 1, 2, 4 ... ms, so
// many times; then its close or the next rescan has to come. The close event
// alone is not enough: the kernel sends it before it takes the writer off.
const busyRetries = 8

// Config says where manifests are and what the node adds to them.
type Config struct {
	Dir      string // made when missing
	CacheDir string // last good versions; made when missing, mode 0700
	Rescan   time.Duration
	Options  manifest.Options // Now is not used: a file's own time is
	Logger   *slog.Logger
}

// Snapshot is what the directory asks for at one moment. It is immutable; a
// pod that did not change is the same pointer in the next snapshot.
type Snapshot struct {
	Set      manifest.Set
	Rejected []manifest.Rejection // ordered by file and line
	// Complete says that every file has been read or has its last good version
	// in force. Until then an absent pod may only be not known yet.
	Complete bool
}

// Dir is the source that reads a manifest directory.
type Dir struct {
	cfg     Config
	cache   *cache
	files   map[string]*file
	owner   map[string]string // object in force -> file
	leaving map[string]bool   // files seen gone, to be looked at after removalDelay
	removal *time.Timer
	busy    map[string]int // files open for writing -> times looked at
	retry   *time.Timer
	scanned bool  // the directory has been listed once
	dirErr  error // why it cannot be listed now
	current atomic.Pointer[Snapshot]
	changed chan struct{}
}

// NewDir prepares a source; Run reads.
func NewDir(cfg Config) *Dir {
	if cfg.Rescan == 0 {
		cfg.Rescan = DefaultRescan
	}
	d := &Dir{
		cfg:     cfg,
		cache:   newCache(cfg.CacheDir),
		files:   map[string]*file{},
		owner:   map[string]string{},
		leaving: map[string]bool{},
		busy:    map[string]int{},
		removal: stoppedTimer(),
		retry:   stoppedTimer(),
		changed: make(chan struct{}, 1),
	}
	d.current.Store(&Snapshot{})
	return d
}

// Snapshot returns the latest snapshot; before the first one it is empty and not Complete.
func (d *Dir) Snapshot() Snapshot { return *d.current.Load() }

// Changed receives after a snapshot has been replaced; several replacements
// may be reported once. It has one receiver.
func (d *Dir) Changed() <-chan struct{} { return d.changed }

// ConfigMap returns a ConfigMap of the current snapshot; nil when there is none.
func (d *Dir) ConfigMap(namespace, name string) (*v1.ConfigMap, error) {
	return d.current.Load().Set.ConfigMaps[manifest.Key{Namespace: namespace, Name: name}], nil
}

// Secret returns a Secret of the current snapshot; nil when there is none.
func (d *Dir) Secret(namespace, name string) (*v1.Secret, error) {
	return d.current.Load().Set.Secrets[manifest.Key{Namespace: namespace, Name: name}], nil
}

// Claim returns the directory a PersistentVolumeClaim is bound to; "" when there is no such claim.
func (d *Dir) Claim(namespace, name string) (hostPath string, readOnly bool, err error) {
	claim := d.current.Load().Set.Claims[manifest.Key{Namespace: namespace, Name: name}]
	return claim.HostPath, claim.ReadOnly, nil
}

// Run reads the directory and follows its changes until ctx is done. It fails
// only when the kernel gives no inotify instance or the cache directory
// cannot be made; trouble with the manifest directory is in the snapshots.
func (d *Dir) Run(ctx context.Context) error {
	if err := d.cache.prepare(); err != nil {
		return err
	}
	if err := os.MkdirAll(d.cfg.Dir, 0o755); err != nil {
		d.cfg.Logger.Warn("manifest directory cannot be made", "path", d.cfg.Dir, "error", err)
	}
	w, err := newWatcher(d.cfg.Dir)
	if err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return d.cache.run(ctx, d.cfg.Logger) })
	group.Go(func() error { return w.run(ctx) })
	group.Go(func() error { return d.loop(ctx, w) })
	return group.Wait()
}

func (d *Dir) loop(ctx context.Context, w *watcher) error {
	defer d.removal.Stop()
	defer d.retry.Stop()
	d.rescan(w)
	d.publish()
	ticker := time.NewTicker(d.cfg.Rescan)
	defer ticker.Stop()
	for {
		dirty := false
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
			dirty = d.rescan(w)
		case batch := <-w.batches:
			dirty = d.handle(w, batch)
		case <-d.removal.C:
			dirty = d.remove()
		case <-d.retry.C:
			dirty = d.lookAgain()
		}
		if dirty {
			d.publish()
		}
	}
}

// handle acts on events. Events that came while the last ones were handled are
// in one batch: a burst costs one publish a batch, and its first file does not wait.
func (d *Dir) handle(w *watcher, batch []event) bool {
	dirty, rescan := false, false
	for _, e := range batch {
		switch {
		case w.needsRescan(e):
			rescan = true
		case !w.isFile(e):
		case strings.HasPrefix(e.name, ".."):
			// A mounted ConfigMap is updated by replacing ..data, which its files link to.
			rescan = true
		case ignored(e.name):
		case e.gone():
			d.leave(e.name)
		default:
			delete(d.busy, e.name)
			dirty = d.refresh(e.name) || dirty
		}
	}
	if rescan { // last: it may find that the directory whose events these were is gone
		dirty = d.rescan(w) || dirty
	}
	return dirty
}

// tryAgain notes that a file is open for writing; false when it has been for long.
func (d *Dir) tryAgain(name string) bool {
	n := d.busy[name]
	if n == busyRetries {
		return false
	}
	d.busy[name] = n + 1
	d.retry.Reset(time.Millisecond << n)
	return true
}

// lookAgain refreshes the files that were open for writing.
func (d *Dir) lookAgain() bool {
	dirty := false
	for name, n := range d.busy {
		dirty = d.refresh(name) || dirty
		if d.busy[name] == n { // not busy any more, or for too long
			delete(d.busy, name)
		}
	}
	return dirty
}

// leave notes that a file is gone, for now.
func (d *Dir) leave(name string) {
	if d.files[name] != nil && !d.leaving[name] {
		d.leaving[name] = true
		d.removal.Reset(removalDelay)
	}
}

// remove lets go of the files that are still gone.
func (d *Dir) remove() bool {
	dirty := false
	for name := range d.leaving {
		delete(d.leaving, name)
		if _, err := os.Lstat(d.path(name)); errors.Is(err, fs.ErrNotExist) {
			dirty = d.forget(name) || dirty
		} else {
			dirty = d.refresh(name) || dirty
		}
	}
	return dirty
}

// rescan compares the directory with what is known of it and reads what
// differs. It also makes sure that the watch is on the directory of that name.
func (d *Dir) rescan(w *watcher) bool {
	err := w.watch()
	var entries []fs.DirEntry
	if err == nil {
		entries, err = os.ReadDir(d.cfg.Dir)
	}
	if err != nil {
		// Not a removal: the files may be back with the next mount.
		dirty := d.dirErr == nil || d.dirErr.Error() != err.Error()
		if dirty {
			d.cfg.Logger.Warn("manifest directory cannot be read, what is known stays in force", "path", d.cfg.Dir, "error", err)
		}
		d.dirErr = err
		return dirty
	}
	dirty := d.dirErr != nil || !d.scanned
	d.dirErr = nil
	present := make(map[string]bool, len(entries))
	for _, e := range entries {
		if name := e.Name(); !ignored(name) && !e.IsDir() {
			present[name] = true
			dirty = d.refresh(name) || dirty
		}
	}
	for name := range d.files {
		if !present[name] {
			d.leave(name)
		}
	}
	if !d.scanned {
		d.scanned = true
		d.cache.keepOnly(present)
	}
	return dirty
}

// publish puts the files together and replaces the snapshot.
func (d *Dir) publish() {
	d.admitWaiting()
	next := Snapshot{Complete: d.scanned}
	if d.dirErr != nil {
		next.Rejected = append(next.Rejected, manifest.Rejection{File: d.cfg.Dir,
			Reason: fmt.Sprintf("cannot be read, what is known stays in force: %v", reason(d.dirErr))})
	}
	var good []manifest.Set
	for _, name := range sortedNames(d.files) {
		f := d.files[name]
		if f.good != nil {
			good = append(good, *f.good)
		} else if f.unreadable {
			next.Complete = false
		}
		next.Rejected = append(next.Rejected, f.problems...)
	}
	next.Set = manifest.Merge(good)
	d.current.Store(&next)
	select {
	case d.changed <- struct{}{}:
	default: // the receiver has not taken the last one and will see this one
	}
}

func stoppedTimer() *time.Timer {
	t := time.NewTimer(0)
	t.Stop()
	return t
}

func sortedNames(files map[string]*file) []string {
	names := make([]string, 0, len(files))
	for name := range files {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// leftovers of editors and package managers, which are never manifests.
var leftovers = []string{
	"~", ".swp", ".swo", ".swx", ".tmp", ".bak", ".orig", ".rej",
	".dpkg-new", ".dpkg-old", ".dpkg-dist", ".dpkg-tmp", ".rpmnew", ".rpmsave", ".rpmorig",
}

// ignored: like the kubelet every file counts that does not start with a dot,
// apart from leftovers.
func ignored(name string) bool {
	if strings.HasPrefix(name, ".") || strings.HasPrefix(name, "#") {
		return true
	}
	return slices.ContainsFunc(leftovers, func(suffix string) bool { return strings.HasSuffix(name, suffix) })
}

// reason drops the path from an error that is reported beside the path.
func reason(err error) error {
	var pathErr *fs.PathError
	if errors.As(err, &pathErr) {
		return pathErr.Err
	}
	return err
}

func (d *Dir) path(name string) string { return filepath.Join(d.cfg.Dir, name) }
