// Package rootfs owns the writable layer of a container and the overlay mount
// that makes it a root file system. It keeps no state: a layer's place and its
// mount point follow from the container's ID, so that whatever a crash leaves
// is found again.
package rootfs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/berth-io/berth/internal/failpoint"
)

// Layer is the writable layer of one container and where it is mounted.
type Layer struct {
	Dir   string // on disk: upper and work
	Mount string // mount point
	// Context is the SELinux context of all its files; empty: each its own.
	Context string
}

// Upper is the directory of what the container wrote.
func (l Layer) Upper() string { return filepath.Join(l.Dir, "upper") }

// Create makes the writable layer and mounts it over the lower directories,
// topmost first. The mount is volatile: the layer does not outlive a boot, so
// nothing is gained by syncing it, while an unmount that syncs would hold up
// the removal of a pod for as long as the disk is busy.
//
// With userNS, the path of a user namespace, what is the image's user 0 is the
// namespace's, and so on. The writable layer has the IDs of the host: what the
// container writes must not be the host's root's for anybody who gets at it.
//
// When it fails, call Remove.
func (l Layer) Create(lowers []string, userNS string) (err error) {
	if len(lowers) == 0 {
		return errors.New("create a root file system: the image has no layers")
	}
	for _, dir := range []string{l.Upper(), filepath.Join(l.Dir, "work"), l.Mount} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("create the writable layer: %w", err)
		}
	}
	failpoint.Hit("cri/layer-created")
	if userNS != "" {
		if lowers, err = mapLowers(lowers, l.lower(), userNS); err != nil {
			return err
		}
		failpoint.Hit("cri/lowers-mapped")
		// The overlay holds on to what it stands on.
		defer func() { err = errors.Join(err, Unmount(l.lower())) }()
	}
	// The root directory of the container has the mode and owner of the image's.
	if err := copyOwner(lowers[0], l.Upper()); err != nil {
		return err
	}
	if err := l.mount(lowers); err != nil {
		return fmt.Errorf("mount the root file system on %s: %w", l.Mount, err)
	}
	return nil
}

func copyOwner(from, to string) error {
	var st unix.Stat_t
	if err := unix.Stat(from, &st); err != nil {
		return fmt.Errorf("look at the image layer %s: %w", from, err)
	}
	if err := os.Chown(to, int(st.Uid), int(st.Gid)); err != nil {
		return fmt.Errorf("set the owner of the writable layer: %w", err)
	}
	// os.Chmod has its own bits for setuid and sticky; the kernel's are at hand.
	if err := unix.Chmod(to, st.Mode&0o7777); err != nil {
		return fmt.Errorf("set the mode of the writable layer: %w", err)
	}
	return nil
}

func (l Layer) mount(lowers []string) error {
	options := []option{
		{"upperdir", l.Upper()}, {"workdir", filepath.Join(l.Dir, "work")},
		{"index", "off"}, {"volatile", ""},
	}
	if l.Context != "" {
		options = append(options, option{contextOption, l.Context})
	}
	return mountOverlay(l.Mount, 0, lowers, options)
}

// Unmount takes the root file system away; processes that still use it keep
// it until they end. It is idempotent.
func (l Layer) Unmount() error {
	return Unmount(l.Mount)
}

// Remove unmounts the root file system and removes the layer and the mount
// point. It is idempotent.
func (l Layer) Remove() error {
	if err := l.Unmount(); err != nil {
		return err
	}
	failpoint.Hit("cri/rootfs-unmounted")
	// Whoever came too late to find the root file system has written below it.
	if err := RemoveTree(l.Mount); err != nil {
		return fmt.Errorf("remove the mount point: %w", err)
	}
	return RemoveDir(l.Dir)
}

// RemoveDir removes what a layer has on disk. It is idempotent.
func RemoveDir(dir string) error {
	if err := Unmount(Layer{Dir: dir}.lower()); err != nil {
		return err
	}
	return RemoveTree(dir)
}

// Unmount detaches whatever is mounted on path, however often. It is
// idempotent, also for a path that does not exist.
func Unmount(path string) error {
	for {
		err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		switch {
		case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT):
			return nil
		case err != nil:
			return fmt.Errorf("unmount %s: %w", path, err)
		}
	}
}

// Mounted tells whether path is a mount point.
func Mounted(path string) (bool, error) {
	var here, parent unix.Statx_t
	const flags = unix.AT_SYMLINK_NOFOLLOW | unix.AT_NO_AUTOMOUNT
	if err := unix.Statx(unix.AT_FDCWD, path, flags, unix.STATX_MNT_ID, &here); err != nil {
		if errors.Is(err, unix.ENOENT) {
			return false, nil
		}
		return false, fmt.Errorf("look at %s: %w", path, err)
	}
	if here.Attributes_mask&unix.STATX_ATTR_MOUNT_ROOT != 0 {
		return here.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0, nil
	}
	if err := unix.Statx(unix.AT_FDCWD, filepath.Dir(path), flags, unix.STATX_MNT_ID, &parent); err != nil {
		return false, fmt.Errorf("look at %s: %w", filepath.Dir(path), err)
	}
	return here.Mnt_id != parent.Mnt_id, nil
}

// RemoveTree removes a directory and what is in it, but never anything on
// another file system: a mount that was forgotten below it is an error and
// stays whole, with all that leads to it. It is idempotent.
func RemoveTree(path string) error {
	parent, name := filepath.Split(filepath.Clean(path))
	dir, err := os.Open(parent)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove %s: %w", path, err)
	}
	defer dir.Close()
	var st unix.Statx_t
	if err := unix.Statx(int(dir.Fd()), name, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_MNT_ID, &st); err != nil {
		if errors.Is(err, unix.ENOENT) {
			return nil
		}
		return fmt.Errorf("remove %s: %w", path, err)
	}
	if err := removeAt(int(dir.Fd()), name, st.Mnt_id, path); err != nil {
		return fmt.Errorf("remove %s: %w", path, err)
	}
	return nil
}

// removeAt works on descriptors only, so that nobody can swap a directory for
// a symbolic link on its way down.
func removeAt(parent int, name string, mount uint64, path string) error {
	err := unix.Unlinkat(parent, name, 0)
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	if !errors.Is(err, unix.EISDIR) && !errors.Is(err, unix.EPERM) {
		if errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("%s is still mounted", path)
		}
		return fmt.Errorf("unlink %s: %w", path, err)
	}
	fd, err := unix.Openat(parent, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", path, err)
	}
	dir := os.NewFile(uintptr(fd), path)
	defer dir.Close()
	var st unix.Statx_t
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_MNT_ID, &st); err != nil {
		return fmt.Errorf("look at %s: %w", path, err)
	}
	if st.Mnt_id != mount {
		return fmt.Errorf("%s is still mounted", path)
	}
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	for _, n := range names {
		if err := removeAt(fd, n, mount, filepath.Join(path, n)); err != nil {
			return err
		}
	}
	if err := unix.Unlinkat(parent, name, unix.AT_REMOVEDIR); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("remove the directory %s: %w", path, err)
	}
	return nil
}
