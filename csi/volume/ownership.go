package volume

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
)

// What a pod's group may do in its volumes, as the kubelet has it: read and
// write files, and enter directories whose new files get the group too.
const (
	groupFileMode = 0o660
	groupDirMode  = 0o770 | unix.S_ISGID
	// In volumes that are written here and nowhere else the group may only read.
	groupReadFileMode = 0o440
	groupReadDirMode  = 0o550 | unix.S_ISGID
)

// giveTo gives a directory and all in it to a group. It never follows a symlink
// and leaves alone what is mounted below. With the policy OnRootMismatch it does
// nothing when the directory itself is the group's; that one is changed last,
// so an interrupted walk is seen.
func giveTo(ctx context.Context, root *os.File, path string, group int64, policy v1.PodFSGroupChangePolicy, at *step) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(root.Fd()), &st); err != nil {
		return fmt.Errorf("stat %s: %w", path, err)
	}
	if policy == v1.FSGroupChangeOnRootMismatch && int64(st.Gid) == group && st.Mode&groupDirMode == groupDirMode {
		return nil
	}
	at.set("give %s to group %d", path, group)
	// Each directory is opened from the root, so the walk holds two descriptors
	// however deep a container has nested its directories.
	for todo := []string{"."}; len(todo) > 0; {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		dir := todo[len(todo)-1]
		below, err := giveEntries(root, dir, path, group)
		if err != nil {
			return err
		}
		todo = append(todo[:len(todo)-1], below...)
	}
	return give(int(root.Fd()), path, group)
}

// giveEntries changes what is in one directory and returns the directories in it.
func giveEntries(root *os.File, rel, path string, group int64) (below []string, err error) {
	dir, err := openDir(int(root.Fd()), rel)
	if replaced(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", filepath.Join(path, rel), err)
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", filepath.Join(path, rel), err)
	}
	for _, name := range names {
		isDir, err := giveEntry(dir, name, filepath.Join(path, rel, name), group)
		if err != nil {
			return nil, err
		}
		if isDir {
			below = append(below, filepath.Join(rel, name))
		}
	}
	return below, nil
}

func giveEntry(dir *os.File, name, full string, group int64) (isDir bool, err error) {
	fd, err := unix.Openat2(int(dir.Fd()), name, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_XDEV,
	})
	if replaced(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("open %s: %w", full, err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return false, fmt.Errorf("stat %s: %w", full, err)
	}
	return st.Mode&unix.S_IFMT == unix.S_IFDIR, give(fd, full, group)
}

// replaced tells an entry that another pod with this volume removed or replaced
// meanwhile, and one that something is mounted on.
func replaced(err error) bool {
	for _, known := range []error{unix.ENOENT, unix.ENOTDIR, unix.ELOOP, unix.EXDEV} {
		if errors.Is(err, known) {
			return true
		}
	}
	return false
}

// give changes the file that fd is open on, which may be with O_PATH.
func give(fd int, path string, group int64) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("stat %s: %w", path, err)
	}
	given := int64(st.Gid) != group
	if given {
		if err := unix.Fchownat(fd, "", -1, int(group), unix.AT_EMPTY_PATH); err != nil {
			return fmt.Errorf("give %s to group %d: %w", path, group, err)
		}
	}
	add := uint32(groupFileMode)
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFLNK:
		return nil
	case unix.S_IFDIR:
		add = groupDirMode
	}
	cleared := given && st.Mode&(unix.S_ISUID|unix.S_ISGID) != 0 // by chown, given back as the kubelet does
	if st.Mode&add == add && !cleared {
		return nil
	}
	// fchmod refuses a descriptor opened with O_PATH.
	if err := unix.Chmod("/proc/self/fd/"+strconv.Itoa(fd), (st.Mode|add)&0o7777); err != nil {
		return fmt.Errorf("chmod %s: %w", path, err)
	}
	return nil
}
