package image

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	continuity "github.com/containerd/continuity/fs"
	"github.com/containerd/continuity/sysx"
	"golang.org/x/sys/unix"
)

// adopt gives the directories of a layer that it uses without describing them
// the owner, mode, times and attributes that they have in the layers below,
// topmost first. Builders leave out the entries of directories they did not
// change, and an overlay shows a directory as its topmost layer has it.
func adopt(layer string, below []string, dirs []string) error {
	for _, dir := range dirs {
		from, err := described(below, dir)
		if err != nil {
			return fmt.Errorf("look for directory %q in the layers below: %w", dir, err)
		}
		if from == "" {
			continue // nobody describes it: 0755, root
		}
		to, err := continuity.RootPath(layer, dir)
		if err == nil {
			err = copyDirectory(from, to)
		}
		if err != nil {
			return fmt.Errorf("directory %q as in the layers below: %w", dir, err)
		}
	}
	return nil
}

// described finds the topmost layer that has the directory; empty where none
// has, or where one took it away.
func described(below []string, dir string) (string, error) {
	for _, lower := range below {
		path, err := continuity.RootPath(lower, dir)
		var info os.FileInfo
		if err == nil {
			info, err = os.Lstat(path)
		}
		switch {
		case err == nil && info.IsDir():
			return path, nil
		case err == nil, errors.Is(err, syscall.ENOTDIR):
			return "", nil // a whiteout, or something else in its place or above
		case !errors.Is(err, fs.ErrNotExist):
			return "", err
		}
		if opaque, err := opaqueAbove(lower, dir); err != nil || opaque {
			return "", err
		}
	}
	return "", nil
}

// opaqueAbove reports whether a layer hides what is below it on the way to dir.
func opaqueAbove(lower, dir string) (bool, error) {
	for at := filepath.Dir(dir); at != "."; at = filepath.Dir(at) {
		path, err := continuity.RootPath(lower, at)
		if err != nil {
			return false, err
		}
		value, err := sysx.LGetxattr(path, "trusted.overlay.opaque")
		switch {
		case err == nil && string(value) == "y":
			return true, nil
		case err != nil && !errors.Is(err, unix.ENODATA) && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENOTSUP):
			return false, err
		}
	}
	return false, nil
}

func copyDirectory(from, to string) error {
	var st unix.Stat_t
	if err := unix.Lstat(from, &st); err != nil {
		return err
	}
	var old unix.Stat_t
	if err := unix.Lstat(to, &old); err != nil {
		return err
	}
	if old.Mode&unix.S_IFMT != unix.S_IFDIR {
		return nil // a later entry of the layer took its place
	}
	if err := os.Lchown(to, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	if err := unix.Chmod(to, st.Mode&0o7777); err != nil {
		return err
	}
	if err := copyXattrs(from, to); err != nil {
		return err
	}
	return unix.UtimesNanoAt(unix.AT_FDCWD, to, []unix.Timespec{st.Atim, st.Mtim}, unix.AT_SYMLINK_NOFOLLOW)
}

// copyXattrs copies all attributes but overlayfs' own, which say something of
// one layer only.
func copyXattrs(from, to string) error {
	names, err := sysx.LListxattr(from)
	if err != nil {
		return err
	}
	for _, name := range names {
		if strings.HasPrefix(name, "trusted.overlay.") {
			continue
		}
		value, err := sysx.LGetxattr(from, name)
		if err != nil {
			return fmt.Errorf("attribute %s: %w", name, err)
		}
		if err := sysx.LSetxattr(to, name, value, 0); err != nil && !errors.Is(err, unix.ENOTSUP) {
			return fmt.Errorf("attribute %s: %w", name, err)
		}
	}
	return nil
}
