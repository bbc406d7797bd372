package volume

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-io/berth/internal/failpoint"
)

// A volume with content that is replaced as a whole has the kubelet's layout:
//
//	KEY     -> ..data/KEY            one link for each first element of a path
//	..data  -> ..2006_01_02_15_04_05.123456789
//	..2006_01_02_15_04_05.123456789/KEY
//
// Renaming ..data replaces all files at once. The version before is kept until
// the next set-up: who has read the link ..data but not yet opened what it leads
// to still finds it.
const (
	dataLink    = "..data"
	newDataLink = "..data_tmp"
	versionName = "..2006_01_02_15_04_05.000000000"
)

// payload is the files of a volume by clean relative path.
type payload map[string]payloadFile

type payloadFile struct {
	data  []byte // not to be changed: it may be the object's own
	mode  int32
	owner *int64 // user that the file belongs to; nil: root
}

func (f payload) add(name string, file payloadFile) error {
	clean, err := cleanPath(name)
	if err != nil {
		return err
	}
	f[clean] = file
	return nil
}

// cleanPath refuses what leads out of a volume or into its versions.
func cleanPath(name string) (string, error) {
	clean := path.Clean(name)
	switch {
	case name == "" || clean == ".":
		return "", errors.New("the file's path is empty")
	case path.IsAbs(name):
		return "", fmt.Errorf("path %q must be relative", name)
	case strings.HasPrefix(clean, ".."):
		return "", fmt.Errorf("path %q must not start with '..'", name)
	case strings.ContainsRune(name, 0):
		return "", fmt.Errorf("path %q has a NUL byte", name)
	case len(name) >= unix.PathMax:
		return "", fmt.Errorf("path is longer than %d bytes", unix.PathMax-1)
	}
	const longest = 255 // NAME_MAX
	for element := range strings.SplitSeq(name, "/") {
		if element == ".." {
			return "", fmt.Errorf("path %q must not contain '..'", name)
		}
		if len(element) > longest {
			return "", fmt.Errorf("path %q has an element longer than %d bytes", name, longest)
		}
	}
	return clean, nil
}

// check refuses a file that another file needs as its directory.
func (f payload) check() error {
	for name := range f {
		for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
			if _, found := f[dir]; found {
				return fmt.Errorf("path %q needs %q as a directory, but that is a file", name, dir)
			}
		}
	}
	return nil
}

// top is the names that the volume's directory shows.
func (f payload) top() map[string]bool {
	names := make(map[string]bool, len(f))
	for name := range f {
		names[firstElement(name)] = true
	}
	return names
}

type storage int

const (
	onDisk storage = iota
	inMemory
)

// write makes the volume at r.dir hold exactly these files.
func (r request) write(ctx context.Context, files payload, where storage) (Mounted, error) {
	if err := files.check(); err != nil {
		return Mounted{}, err
	}
	var err error
	if where == inMemory {
		err = r.tmpfs(memorySize(r.pod, nil))
	} else {
		err = makeDir(r.dir, r.pod.fsGroup())
	}
	if err != nil {
		return Mounted{}, err
	}
	r.at.set("write %s", r.dir)
	w := writer{dir: r.dir, group: r.pod.fsGroup(), mountPoints: nested(r.spec.Name, r.pod.Pod)}
	if err := w.write(ctx, files); err != nil {
		return Mounted{}, err
	}
	if err := makeMountPoints(r.dir, w.mountPoints, files.top()); err != nil {
		return Mounted{}, err
	}
	return Mounted{HostPath: r.dir, ReadOnly: true}, nil
}

// writer keeps the content of one volume.
type writer struct {
	dir   string
	group *int64
	// mountPoints are the paths in it where containers mount other volumes.
	mountPoints []string
}

func (w writer) write(ctx context.Context, files payload) error {
	current, err := w.current()
	if err != nil {
		return err
	}
	keep := current // the version that readers may be entering
	if current == "" || !files.sameAs(filepath.Join(w.dir, current)) {
		// Leftovers go first: a crash or an earlier update left them, and a
		// volume in memory has no room for three versions.
		if err := w.sweep(ctx, current, current, nil); err != nil {
			return err
		}
		if current, err = w.replace(files); err != nil {
			return fmt.Errorf("write files to %s: %w", w.dir, err)
		}
	}
	top := files.top()
	for name := range top {
		if err := w.link(name); err != nil {
			return fmt.Errorf("link %s: %w", filepath.Join(w.dir, name), err)
		}
	}
	failpoint.Hit("volume/linked")
	return w.sweep(ctx, current, keep, top)
}

// current is the version that ..data leads to; empty when there is none yet.
func (w writer) current() (string, error) {
	name, err := os.Readlink(filepath.Join(w.dir, dataLink))
	if errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	if strings.Contains(name, "/") || !strings.HasPrefix(name, "..") || len(name) < 3 {
		return "", nil // not of ours: replaced
	}
	return name, nil
}

// sameAs tells whether dir holds these files and no others. What cannot be
// read is not the same.
func (f payload) sameAs(dir string) bool {
	found := 0
	var walk func(rel string) bool
	walk = func(rel string) bool {
		entries, err := os.ReadDir(filepath.Join(dir, rel))
		if err != nil {
			return false
		}
		for _, entry := range entries {
			name := path.Join(rel, entry.Name())
			if entry.IsDir() {
				if !walk(name) {
					return false
				}
				continue
			}
			file, wanted := f[name]
			if !wanted || !entry.Type().IsRegular() {
				return false
			}
			data, err := os.ReadFile(filepath.Join(dir, name))
			if err != nil || !bytes.Equal(data, file.data) {
				return false
			}
			found++
		}
		return true
	}
	return walk("") && found == len(f)
}

// replace writes a new version and makes ..data lead to it.
func (w writer) replace(files payload) (version string, err error) {
	version = time.Now().UTC().Format(versionName)
	dir := filepath.Join(w.dir, version)
	if err := w.mkdir(dir); err != nil {
		return "", err
	}
	failpoint.Hit("volume/version-made")
	made := map[string]bool{".": true}
	for name, file := range files {
		if err := w.mkdirs(dir, path.Dir(name), made); err != nil {
			return "", err
		}
		if err := w.writeFile(filepath.Join(dir, name), file); err != nil {
			return "", err
		}
	}
	failpoint.Hit("volume/version-written")
	staged := filepath.Join(w.dir, newDataLink)
	if err := os.Remove(staged); err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", err
	}
	if err := os.Symlink(version, staged); err != nil {
		return "", err
	}
	failpoint.Hit("volume/version-staged")
	if err := os.Rename(staged, filepath.Join(w.dir, dataLink)); err != nil {
		return "", err
	}
	failpoint.Hit("volume/version-swapped")
	return version, nil
}

func (w writer) mkdirs(root, rel string, made map[string]bool) error {
	if made[rel] {
		return nil
	}
	if err := w.mkdirs(root, path.Dir(rel), made); err != nil {
		return err
	}
	made[rel] = true
	return w.mkdir(filepath.Join(root, rel))
}

func (w writer) mkdir(dir string) error {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	mode := uint32(0o755)
	if w.group != nil {
		if err := os.Lchown(dir, -1, int(*w.group)); err != nil {
			return err
		}
		mode |= groupReadDirMode
	}
	return chmod(dir, mode)
}

func (w writer) writeFile(name string, file payloadFile) error {
	fd, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer fd.Close()
	if _, err := fd.Write(file.data); err != nil {
		return err
	}
	mode := uint32(file.mode) & 0o777
	owner, group := -1, -1
	if file.owner != nil {
		owner = int(*file.owner)
	}
	if w.group != nil {
		group = int(*w.group)
		mode |= groupReadFileMode
	}
	if owner >= 0 || group >= 0 {
		if err := fd.Chown(owner, group); err != nil {
			return err
		}
	}
	if err := unix.Fchmod(int(fd.Fd()), mode); err != nil {
		return &os.PathError{Op: "chmod", Path: name, Err: err}
	}
	return fd.Close()
}

// link makes name lead into ..data.
func (w writer) link(name string) error {
	at, to := filepath.Join(w.dir, name), dataLink+"/"+name
	if is, err := os.Readlink(at); err == nil && is == to {
		return nil
	}
	err := os.Symlink(to, at)
	if !errors.Is(err, os.ErrExist) {
		return err
	}
	// Removing the mount point of a running container would unmount it there.
	if slices.ContainsFunc(w.mountPoints, func(rel string) bool { return firstElement(rel) == name }) {
		return nil
	}
	// An empty directory is here when a container was given this subPath before
	// the file existed.
	if rmErr := os.Remove(at); rmErr != nil && !errors.Is(rmErr, os.ErrNotExist) {
		return rmErr
	}
	return os.Symlink(to, at)
}

// sweep removes versions other than the two named, and links to files that are
// no longer there: those that lead into ..data and are not in top. A nil top
// leaves links alone.
func (w writer) sweep(ctx context.Context, current, previous string, top map[string]bool) error {
	entries, err := os.ReadDir(w.dir)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		name := entry.Name()
		switch {
		case name == dataLink || name == current || name == previous || top[name]:
			continue
		case !strings.HasPrefix(name, ".."):
			if to, err := os.Readlink(filepath.Join(w.dir, name)); top == nil || err != nil || to != dataLink+"/"+name {
				continue
			}
		}
		if err := removeTree(ctx, filepath.Join(w.dir, name)); err != nil {
			return err
		}
		failpoint.Hit("volume/swept")
	}
	return nil
}
