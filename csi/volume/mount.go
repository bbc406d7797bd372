package volume

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"sync/atomic"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/berth-io/berth/internal/failpoint"
)

// isMount tells whether something is mounted at path itself. It asks the kernel
// for what it already knows, so a file server that does not answer does not
// make it hang.
func isMount(path string) (bool, error) {
	var st unix.Statx_t
	flags := unix.AT_SYMLINK_NOFOLLOW | unix.AT_NO_AUTOMOUNT | unix.AT_STATX_DONT_SYNC
	if err := unix.Statx(unix.AT_FDCWD, path, flags, 0, &st); err != nil {
		if errors.Is(err, unix.ENOENT) {
			return false, nil
		}
		return false, fmt.Errorf("see whether %s is a mount point: %w", path, err)
	}
	return st.Attributes_mask&st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0, nil
}

// mounts makes and undoes mounts below pod directories, each with its entry in
// the pod's journal.
type mounts struct {
	noNoswap atomic.Bool // this kernel's tmpfs does not know noswap (before 6.4)
}

// make mounts at target unless something is mounted there already. what
// describes the mount in the journal.
func (m *mounts) make(podDir, target, what string, at *step, mount func() error) error {
	at.set("mount %s at %s", what, target)
	// The entry comes first even where the mount is there: it may be older than
	// the journal.
	if err := record(podDir, target, what); err != nil {
		return err
	}
	failpoint.Hit("volume/journalled")
	mounted, err := isMount(target)
	if err != nil || mounted {
		return err
	}
	if err := mount(); err != nil {
		return fmt.Errorf("mount %s at %s: %w", what, target, err)
	}
	failpoint.Hit("volume/mounted")
	return nil
}

// undo unmounts target, verifies it and removes the journal entry. What is not
// mounted is only struck off the journal.
func (m *mounts) undo(podDir, target string, at *step) error {
	at.set("unmount %s", target)
	const most = 8 // mounts on top of each other
	for range most {
		mounted, err := isMount(target)
		if err != nil {
			return err
		}
		if !mounted {
			failpoint.Hit("volume/unmounted")
			return strike(podDir, target)
		}
		if err := unix.Unmount(target, unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) {
			if errors.Is(err, unix.EBUSY) {
				return fmt.Errorf("unmount %s: %w: %s", target, err, whyBusy(target))
			}
			return fmt.Errorf("unmount %s: %w", target, err)
		}
	}
	return fmt.Errorf("unmount %s: something is mounted there again after %d unmounts", target, most)
}

// whyBusy names the mounts below target, the reason that can be seen.
func whyBusy(target string) string {
	below, err := mountinfo.GetMounts(func(info *mountinfo.Info) (skip, stop bool) {
		return !strings.HasPrefix(info.Mountpoint, target+"/"), false
	})
	if err != nil || len(below) == 0 {
		return "a process of this mount namespace has a file open or its working directory there"
	}
	var paths []string
	for _, info := range below {
		paths = append(paths, info.Mountpoint)
	}
	return "mounted below it: " + strings.Join(paths, ", ")
}

// tmpfs mounts a tmpfs that does not go to swap where the kernel can do that.
func (m *mounts) tmpfs(target string, options []string) error {
	if !m.noNoswap.Load() {
		err := unix.Mount("tmpfs", target, "tmpfs", 0, strings.Join(append(options[:len(options):len(options)], "noswap"), ","))
		if !errors.Is(err, unix.EINVAL) {
			return err
		}
	}
	err := unix.Mount("tmpfs", target, "tmpfs", 0, strings.Join(options, ","))
	if err == nil {
		m.noNoswap.Store(true)
	}
	return err
}

// bind mounts the file or directory that fd is open on, whatever its path
// means by now. fd may be opened with O_PATH.
func bind(fd int, target string, readOnly bool) error {
	tree, err := unix.OpenTree(fd, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
	if err != nil {
		return fmt.Errorf("open_tree: %w", err)
	}
	defer unix.Close(tree)
	if readOnly {
		attr := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
		// Before Linux 5.12 only the container's own mount is read-only.
		if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, attr); err != nil && !errors.Is(err, unix.ENOSYS) {
			return fmt.Errorf("mount_setattr: %w", err)
		}
	}
	if err := unix.MoveMount(tree, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("move_mount: %w", err)
	}
	return nil
}

// makeDir makes a volume's directory with mode 0777, or 2777 and the group of
// the pod's volumes. It appears with its final owner and mode, so finding it
// means that it is done, and what a container does to it later is left alone.
func makeDir(dir string, fsGroup *int64) error {
	if st, err := os.Lstat(dir); err == nil {
		if !st.IsDir() {
			return fmt.Errorf("%s is not a directory", dir)
		}
		return nil
	} else if !errors.Is(err, os.ErrNotExist) {
		return err
	}
	parent, name := split(dir)
	if err := os.MkdirAll(parent, dirMode); err != nil {
		return err
	}
	staged := parent + "/..new-" + name
	if err := os.Mkdir(staged, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	mode := uint32(0o777)
	if fsGroup != nil {
		if err := os.Lchown(staged, -1, int(*fsGroup)); err != nil {
			return err
		}
		mode |= unix.S_ISGID
	}
	if err := chmod(staged, mode); err != nil {
		return err
	}
	failpoint.Hit("volume/staged")
	return publish(unix.AT_FDCWD, staged, dir)
}

// publish gives a staged directory its name. A directory that has the name
// already, from another pod that shares the volume above, is as good and stays.
func publish(dirfd int, staged, name string) error {
	err := unix.Renameat2(dirfd, staged, dirfd, name, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EINVAL) { // NFS does not know NOREPLACE
		err = unix.Renameat(dirfd, staged, dirfd, name)
	}
	if errors.Is(err, unix.EEXIST) {
		err = unix.Unlinkat(dirfd, staged, unix.AT_REMOVEDIR)
	}
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("make directory %s: %w", name, err)
	}
	return nil
}

// chmod sets a mode with the kernel's bits, whatever the umask.
func chmod(path string, mode uint32) error {
	if err := unix.Chmod(path, mode); err != nil {
		return &os.PathError{Op: "chmod", Path: path, Err: err}
	}
	return nil
}
