// Package store owns what the CRI runtime remembers of its sandboxes and
// containers: in memory for reading, and in one small JSON file per record for
// the time after a crash. A file is replaced atomically and before memory is,
// so a restarted daemon never knows less than a caller was told.
//
// Records are values. A record that was handed out never changes: an update
// works on a copy, and what the copy points to (configurations, maps) must be
// replaced, not modified.
package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/moby/sys/atomicwriter"
)

var (
	// ErrNotFound means that no record has this ID, or that none starts with it.
	ErrNotFound = errors.New("not found")
	// ErrAmbiguous means that several IDs start with the given prefix.
	ErrAmbiguous = errors.New("several IDs start with this prefix")
)

// Record is a sandbox or a container. Key is its ID, which is also the name of
// its directory; Label is its reserved name, unique in its table.
type Record interface {
	Key() string
	Label() string
	validate() error
}

// Table holds the records of one kind. Each lives in DIR/ID/FILE; the
// directory is shared with other state of the same ID, which the table leaves
// alone.
type Table[T Record] struct {
	dir, file string

	mu    sync.RWMutex
	byID  map[string]T
	names map[string]string // reserved name -> ID
	// writing serialises the writers, so that file and memory change in the
	// same order; readers are never held up by a slow disk.
	writing sync.Mutex
}

// Bad is a record that could not be loaded. Its file was moved aside.
type Bad struct {
	ID    string
	Moved string // where the file is now
	Err   error
}

// Open loads every record below dir. An unreadable record is moved to
// DIR/../corrupt/ID-FILE, so that it is reported once and kept for whoever
// wants to know; its directory becomes an orphan, for the caller to clean up.
func Open[T Record](dir, file string) (*Table[T], []Bad, error) {
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return nil, nil, fmt.Errorf("create the record directory: %w", err)
	}
	// An OCI runtime that has entered a user namespace goes through it.
	if err := os.Chmod(dir, 0o711); err != nil {
		return nil, nil, fmt.Errorf("open the record directory to who knows an ID: %w", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, nil, fmt.Errorf("read the record directory: %w", err)
	}
	t := &Table[T]{dir: dir, file: file, byID: map[string]T{}, names: map[string]string{}}
	var bad []Bad
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		path := t.path(e.Name())
		r, err := load[T](path, e.Name())
		if errors.Is(err, os.ErrNotExist) {
			continue // a directory without a record: Orphans finds it
		}
		if err == nil && t.names[r.Label()] != "" {
			err = fmt.Errorf("the name %s is also that of %s", r.Label(), t.names[r.Label()])
		}
		if err != nil {
			aside, moveErr := moveAside(dir, path, e.Name()+"-"+file)
			if moveErr != nil {
				return nil, nil, moveErr
			}
			bad = append(bad, Bad{ID: e.Name(), Moved: aside, Err: err})
			continue
		}
		t.byID[r.Key()] = r
		t.names[r.Label()] = r.Key()
	}
	return t, bad, nil
}

func moveAside(dir, path, name string) (string, error) {
	aside := filepath.Join(filepath.Dir(filepath.Clean(dir)), "corrupt", name)
	if err := os.MkdirAll(filepath.Dir(aside), 0o700); err != nil {
		return "", fmt.Errorf("create the directory for unreadable records: %w", err)
	}
	if err := os.Rename(path, aside); err != nil {
		return "", fmt.Errorf("move the unreadable record %s aside: %w", path, err)
	}
	return aside, nil
}

func load[T Record](path, id string) (T, error) {
	var r T
	data, err := os.ReadFile(path)
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal(data, &r); err != nil {
		return r, fmt.Errorf("parse %s: %w", path, err)
	}
	if err := r.validate(); err != nil {
		return r, fmt.Errorf("check %s: %w", path, err)
	}
	if r.Key() != id {
		return r, fmt.Errorf("check %s: it is the record of %q", path, r.Key())
	}
	return r, nil
}

func (t *Table[T]) path(id string) string { return filepath.Join(t.dir, id, t.file) }

// Dir returns the directory of one ID.
func (t *Table[T]) Dir(id string) string { return filepath.Join(t.dir, id) }

// Orphans lists the directories that have no record: left by a crash before
// the first write or after the last removal, or by a record moved aside.
func (t *Table[T]) Orphans() ([]string, error) {
	entries, err := os.ReadDir(t.dir)
	if err != nil {
		return nil, fmt.Errorf("read the record directory: %w", err)
	}
	t.mu.RLock()
	defer t.mu.RUnlock()
	var ids []string
	for _, e := range entries {
		if _, known := t.byID[e.Name()]; e.IsDir() && !known {
			ids = append(ids, e.Name())
		}
	}
	return ids, nil
}

// Get returns the record with exactly this ID.
func (t *Table[T]) Get(id string) (T, bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	r, ok := t.byID[id]
	return r, ok
}

// Find returns the record with this ID, or the only one whose ID starts with
// it, as crictl users type them. The error is ErrNotFound or ErrAmbiguous.
func (t *Table[T]) Find(prefix string) (T, error) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	var found T
	if r, ok := t.byID[prefix]; ok {
		return r, nil
	}
	if prefix == "" {
		return found, ErrNotFound
	}
	n := 0
	for id, r := range t.byID {
		if strings.HasPrefix(id, prefix) {
			found = r
			n++
		}
	}
	switch n {
	case 0:
		return found, ErrNotFound
	case 1:
		return found, nil
	default:
		var none T
		return none, ErrAmbiguous
	}
}

// Named returns the record that holds a reserved name.
func (t *Table[T]) Named(label string) (T, bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	r, ok := t.byID[t.names[label]]
	return r, ok
}

// List returns all records, ordered by ID.
func (t *Table[T]) List() []T {
	t.mu.RLock()
	list := slices.AppendSeq(make([]T, 0, len(t.byID)), maps.Values(t.byID))
	t.mu.RUnlock()
	return sorted(list)
}

// Where returns the records that want holds for, ordered by ID. Want is called
// with the table locked.
func (t *Table[T]) Where(want func(T) bool) []T {
	var list []T
	t.mu.RLock()
	for _, r := range t.byID {
		if want(r) {
			list = append(list, r)
		}
	}
	t.mu.RUnlock()
	return sorted(list)
}

func sorted[T Record](list []T) []T {
	slices.SortFunc(list, func(a, b T) int { return strings.Compare(a.Key(), b.Key()) })
	return list
}

// Add reserves the record's name, makes its directory and writes it.
func (t *Table[T]) Add(r T) error {
	t.writing.Lock()
	defer t.writing.Unlock()
	if err := r.validate(); err != nil {
		return err
	}
	if holder, taken := t.Named(r.Label()); taken {
		return fmt.Errorf("name %s is reserved for %s", r.Label(), holder.Key())
	}
	if _, taken := t.Get(r.Key()); taken {
		return fmt.Errorf("ID %s is taken", r.Key())
	}
	if err := os.MkdirAll(t.Dir(r.Key()), 0o700); err != nil {
		return fmt.Errorf("create the directory of %s: %w", r.Key(), err)
	}
	if err := t.write(r); err != nil {
		return err
	}
	t.mu.Lock()
	t.byID[r.Key()] = r
	t.names[r.Label()] = r.Key()
	t.mu.Unlock()
	return nil
}

// Update changes one record through a function, which gets a copy and may
// refuse with an error; then nothing changes. It returns the record as it is
// after the call.
func (t *Table[T]) Update(id string, change func(*T) error) (T, error) {
	t.writing.Lock()
	defer t.writing.Unlock()
	before, ok := t.Get(id)
	if !ok {
		return before, fmt.Errorf("update %s: %w", id, ErrNotFound)
	}
	after := before
	if err := change(&after); err != nil {
		return before, err
	}
	if err := t.write(after); err != nil {
		return before, err
	}
	t.mu.Lock()
	t.byID[id] = after
	t.mu.Unlock()
	return after, nil
}

// Delete removes a record and frees its name. The rest of its directory must
// be gone already, so that a crash never leaves state that no record names.
func (t *Table[T]) Delete(id string) error {
	t.writing.Lock()
	defer t.writing.Unlock()
	r, ok := t.Get(id)
	if !ok {
		return nil
	}
	if err := os.Remove(t.path(id)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove the record of %s: %w", id, err)
	}
	// What a write that was cut short left behind.
	unfinished, err := filepath.Glob(filepath.Join(t.Dir(id), ".tmp-*"))
	if err != nil {
		return fmt.Errorf("look for unfinished writes: %w", err)
	}
	for _, path := range unfinished {
		if err := os.Remove(path); err != nil {
			return fmt.Errorf("remove an unfinished write: %w", err)
		}
	}
	if err := os.Remove(t.Dir(id)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove the directory of %s: %w", id, err)
	}
	t.mu.Lock()
	delete(t.byID, id)
	delete(t.names, r.Label())
	t.mu.Unlock()
	return nil
}

func (t *Table[T]) write(r T) error {
	data, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encode the record of %s: %w", r.Key(), err)
	}
	if err := atomicwriter.WriteFile(t.path(r.Key()), data, 0o600); err != nil {
		return fmt.Errorf("write the record of %s: %w", r.Key(), err)
	}
	return nil
}
