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

// giveTo gives a directory and all in it to a group. It walks by descriptors,
// never follows a symlink and leaves alone what is mounted below. With the policy
// OnRootMismatch it does nothing when the directory itself is the group's; that
// one is changed last, so an interrupted walk is seen.
func giveTo(ctx context.Context, dir *os.File, path string, group int64, policy v1.PodFSGroupChangePolicy, at *step) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(dir.Fd()), &st); err != nil {
		return fmt.Errorf("stat %s: %w", path, err)
	}
	if policy == v1.FSGroupChangeOnRootMismatch && int64(st.Gid) == group && st.Mode&groupDirMode == groupDirMode {
		return nil
	}
	at.set("give %s to group %d", path, group)
	return giveDir(ctx, dir, path, group)
}

func giveDir(ctx context.Context, dir *os.File, path string, group int64) error {
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return fmt.Errorf("list %s: %w", path, err)
	}
	for _, name := range names {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		full := filepath.Join(path, name)
		fd, err := unix.Openat2(int(dir.Fd()), name, &unix.OpenHow{
			Flags:   unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC,
			Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_XDEV,
		})
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EXDEV) {
			continue // gone meanwhile, or a mount
		}
		if err != nil {
			return fmt.Errorf("open %s: %w", full, err)
		}
		err = giveEntry(ctx, dir, fd, name, full, group)
		unix.Close(fd)
		if err != nil {
			return err
		}
	}
	return give(int(dir.Fd()), path, group)
}

func giveEntry(ctx context.Context, parent *os.File, fd int, name, full string, group int64) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("stat %s: %w", full, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return give(fd, full, group)
	}
	sub, err := openDir(int(parent.Fd()), name)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENOTDIR) {
		return nil // replaced meanwhile, by the pod that uses the volume too
	}
	if err != nil {
		return fmt.Errorf("open %s: %w", full, err)
	}
	defer sub.Close()
	return giveDir(ctx, sub, full, group)
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
