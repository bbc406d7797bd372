package rootfs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrNoIDMap means that the kernel or a file system cannot map the IDs of a
// mount.
var ErrNoIDMap = errors.New("its file system cannot have ID-mapped mounts (ext4, xfs, btrfs and tmpfs can on a current kernel)")

// lower is where the image's layers are mounted with their IDs mapped, for as
// long as it takes to mount the overlay over them.
func (l Layer) lower() string { return filepath.Join(l.Dir, "lower") }

// mapLowers mounts the directory that holds all layers once more, at a place of
// its own, and returns the layers in there. One mount does for all of them.
//
// An overlay itself cannot be ID-mapped, its layers can be (Linux 5.19).
func mapLowers(at string, lowers []string, userNS string) ([]string, error) {
	root := commonParent(lowers)
	holder, err := mountID(root)
	if err != nil {
		return nil, err
	}
	for _, dir := range lowers {
		id, err := mountID(dir)
		if err != nil {
			return nil, err
		}
		if id != holder {
			return nil, fmt.Errorf("map the IDs of the image: its layer %s is on another mount than %s", dir, root)
		}
	}
	if err := os.MkdirAll(at, 0o700); err != nil {
		return nil, fmt.Errorf("create a place for the ID-mapped image layers: %w", err)
	}
	tree, err := mapped(root, userNS)
	if err != nil {
		return nil, err
	}
	defer unix.Close(tree)
	if err := unix.MoveMount(tree, "", unix.AT_FDCWD, at, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return nil, fmt.Errorf("mount the ID-mapped image layers on %s: %w", at, err)
	}
	inside := make([]string, len(lowers))
	for i, dir := range lowers {
		inside[i] = filepath.Join(at, strings.TrimPrefix(dir, root))
	}
	return inside, nil
}

// CheckIDMap tells whether a mount of path can have its IDs mapped; the error
// has ErrNoIDMap in its chain where it cannot.
func CheckIDMap(path, userNS string) error {
	tree, err := mapped(path, userNS)
	if err != nil {
		return err
	}
	return unix.Close(tree)
}

// mapped clones the mount at path, what is mounted below it excepted, and maps
// its IDs. The clone is nowhere yet, and gone when its descriptor is closed.
func mapped(path, userNS string) (int, error) {
	ns, err := unix.Open(userNS, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open the user namespace %s: %w", userNS, err)
	}
	defer unix.Close(ns)
	tree, err := unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("clone the mount of %s: %w", path, err)
	}
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(ns), Propagation: unix.MS_PRIVATE}
	err = unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &attr)
	if err == nil {
		return tree, nil
	}
	_ = unix.Close(tree)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EPERM) {
		err = fmt.Errorf("%w: %w", ErrNoIDMap, err)
	}
	return -1, fmt.Errorf("map the IDs of %s: %w", path, err)
}

// commonParent is the deepest directory that holds all of dirs.
func commonParent(dirs []string) string {
	parent := filepath.Dir(dirs[0])
	for _, dir := range dirs[1:] {
		for parent != "/" && !strings.HasPrefix(dir, parent+"/") {
			parent = filepath.Dir(parent)
		}
	}
	return parent
}

func mountID(path string) (uint64, error) {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, path, unix.AT_NO_AUTOMOUNT, unix.STATX_MNT_ID, &st); err != nil {
		return 0, fmt.Errorf("look at the image layer %s: %w", path, err)
	}
	return st.Mnt_id, nil
}
