package volume

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/berth-io/berth/internal/failpoint"
)

// ErrMounted is why a directory was not removed: something is mounted in it
// that this package did not mount.
var ErrMounted = errors.New("something is mounted here that is not in the journal of mounts; unmount it first")

// maxDepth bounds the descriptors that removal holds. What lies deeper is
// moved up and removed from there, because a container can nest directories
// deeper than any process can open.
const maxDepth = 64

// removeTree removes the directory or file at path. It walks by descriptors
// and never follows a symlink or enters a mount, even of the same file system:
// what it meets is removed from the file system that path's parent is on, or not
// at all. A path that does not exist is no error.
func removeTree(ctx context.Context, path string) error {
	parent, name := split(path)
	dir, err := openDir(unix.AT_FDCWD, parent)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open %s: %w", parent, err)
	}
	defer dir.Close()
	r := remover{ctx: ctx, top: dir, topPath: parent}
	return r.remove(dir, parent, name, 0)
}

type remover struct {
	ctx     context.Context
	top     *os.File // the parent of what is removed
	topPath string
	moved   int
}

// remove removes name, an entry of dir, whose path is for messages only.
func (r *remover) remove(dir *os.File, path, name string, depth int) error {
	full := filepath.Join(path, name)
	err := unix.Unlinkat(int(dir.Fd()), name, 0)
	switch {
	case err == nil || errors.Is(err, unix.ENOENT):
		return nil
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("remove %s: %w", full, ErrMounted)
	case !errors.Is(err, unix.EISDIR) && !errors.Is(err, unix.EPERM):
		return fmt.Errorf("remove %s: %w", full, err)
	}
	if depth == maxDepth {
		return r.removeDeep(dir, full, name)
	}
	if err := r.removeContent(dir, full, name, depth); err != nil {
		return err
	}
	return rmdir(dir, full, name)
}

func (r *remover) removeContent(dir *os.File, full, name string, depth int) error {
	sub, err := openDir(int(dir.Fd()), name)
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil
	case errors.Is(err, unix.EXDEV):
		return fmt.Errorf("remove %s: %w", full, ErrMounted)
	case errors.Is(err, unix.ENOTDIR):
		return fmt.Errorf("remove %s: %w", full, unix.EPERM) // of the unlink: an immutable file
	case err != nil:
		return fmt.Errorf("open %s: %w", full, err)
	}
	defer sub.Close()
	names, err := sub.Readdirnames(-1)
	if err != nil {
		return fmt.Errorf("list %s: %w", full, err)
	}
	var errs []error
	for _, child := range names {
		if r.ctx.Err() != nil {
			return errors.Join(append(errs, context.Cause(r.ctx))...)
		}
		if err := r.remove(sub, full, child, depth+1); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func (r *remover) removeDeep(dir *os.File, full, name string) error {
	r.moved++
	up := "..deep-" + strconv.Itoa(r.moved)
	if err := unix.Renameat(int(dir.Fd()), name, int(r.top.Fd()), up); err != nil {
		if errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("remove %s: %w", full, ErrMounted)
		}
		return fmt.Errorf("move %s up to remove it: %w", full, err)
	}
	return r.remove(r.top, r.topPath, up, 0)
}

func rmdir(dir *os.File, full, name string) error {
	err := unix.Unlinkat(int(dir.Fd()), name, unix.AT_REMOVEDIR)
	if errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("remove %s: %w", full, ErrMounted)
	}
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("remove %s: %w", full, err)
	}
	failpoint.Hit("volume/removed")
	return nil
}

// openDir opens a directory. Below another one it refuses symlinks and mount
// points (EXDEV).
func openDir(dirfd int, name string) (*os.File, error) {
	how := &unix.OpenHow{Flags: unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC | unix.O_NOFOLLOW}
	if dirfd != unix.AT_FDCWD {
		how.Resolve = unix.RESOLVE_NO_XDEV | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_BENEATH
	}
	fd, err := unix.Openat2(dirfd, name, how)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}
