package volume

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/berth-io/berth/internal/failpoint"
)

// SubPath finds a file or directory in a volume, makes it a directory when
// missing, and pins it: it is bind mounted below volume-subpaths, and the path
// of that mount is returned. index is the mount's place in the container's
// volumeMounts. Symlinks in the volume are followed only as far as they stay in
// it, and what is pinned is what was looked at, whatever a container does to
// the volume meanwhile. CleanSubPaths releases it.
func (m *Manager) SubPath(ctx context.Context, pod Pod, container string, index int, vol Mounted, subPath string, readOnly bool) (string, error) {
	for _, name := range []string{container, vol.Name} {
		if err := checkName(name); err != nil {
			return "", err
		}
	}
	clean, err := cleanSubPath(subPath)
	if err != nil {
		return "", fmt.Errorf("volume %q: %w", vol.Name, err)
	}
	uid := string(pod.UID)
	target := filepath.Join(m.podDir(uid), subPathsDir, vol.Name, container, strconv.Itoa(index))
	return serialized(ctx, m, uid, func(at *step) (string, error) {
		at.set("open subPath %q of volume %q", subPath, vol.Name)
		if err := m.pin(m.podDir(uid), target, vol.HostPath, clean, readOnly || vol.ReadOnly, at); err != nil {
			return "", fmt.Errorf("volume %q: subPath %q: %w", vol.Name, subPath, err)
		}
		return target, nil
	})
}

func cleanSubPath(subPath string) (string, error) {
	switch {
	case subPath == "":
		return "", errors.New("subPath is empty")
	case path.IsAbs(subPath):
		return "", fmt.Errorf("subPath %q must be relative", subPath)
	case strings.ContainsRune(subPath, 0):
		return "", fmt.Errorf("subPath %q has a NUL byte", subPath)
	}
	for element := range strings.SplitSeq(subPath, "/") {
		if element == ".." {
			return "", fmt.Errorf("subPath %q must not contain '..'", subPath)
		}
	}
	return path.Clean(subPath), nil
}

func (m *Manager) pin(podDir, target, volume, subPath string, readOnly bool, at *step) error {
	root, err := unix.Open(volume, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open the volume %s: %w", volume, err)
	}
	defer unix.Close(root)
	fd, err := openBeneath(root, subPath)
	if errors.Is(err, unix.ENOENT) {
		fd, err = makeBeneath(root, subPath)
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	failpoint.Hit("volume/subpath-open")
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if done, err := m.pinned(podDir, target, &st, at); done || err != nil {
		return err
	}
	if err := makeTarget(target, st.Mode&unix.S_IFMT == unix.S_IFDIR); err != nil {
		return err
	}
	return m.mounts.make(podDir, target, filepath.Join(volume, subPath), at, func() error {
		return bind(fd, target, readOnly)
	})
}

// pinned tells whether what st describes is mounted at target. Something else
// that is mounted there, from an earlier run of the container, is unmounted.
func (m *Manager) pinned(podDir, target string, st *unix.Stat_t, at *step) (bool, error) {
	there, err := isMount(target)
	if err != nil || !there {
		return false, err
	}
	var is unix.Stat_t
	if err := unix.Lstat(target, &is); err == nil && is.Dev == st.Dev && is.Ino == st.Ino {
		return true, record(podDir, target, target)
	}
	return false, m.mounts.undo(podDir, target, at)
}

func makeTarget(target string, isDir bool) error {
	st, err := os.Lstat(target)
	if err == nil && st.IsDir() != isDir {
		err = os.Remove(target) // empty: nothing is mounted there
		if err == nil {
			err = os.ErrNotExist
		}
	}
	if !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if isDir {
		return os.MkdirAll(target, dirMode)
	}
	if err := os.MkdirAll(filepath.Dir(target), dirMode); err != nil {
		return err
	}
	f, err := os.OpenFile(target, os.O_CREATE|os.O_RDONLY|unix.O_NOFOLLOW, 0o640)
	if err != nil {
		return err
	}
	return f.Close()
}

// openBeneath opens a path in a volume with O_PATH. The kernel refuses every
// step out of it.
func openBeneath(root int, subPath string) (int, error) {
	how := &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS,
	}
	const tries = 128 // the kernel's EAGAIN: something was renamed while ".." was followed
	for range tries {
		fd, err := unix.Openat2(root, subPath, how)
		switch {
		case err == nil:
			return fd, nil
		case errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EXDEV):
			return -1, errors.New("a symlink leads out of the volume")
		case errors.Is(err, unix.ELOOP):
			return -1, errors.New("symlinks lead in a circle, or out of the volume")
		}
		return -1, err
	}
	return -1, errors.New("directories of the volume are being renamed all the time")
}

// makeBeneath makes the missing directories of subPath, each with the mode of
// the volume's own directory as the kubelet does, and opens the last.
func makeBeneath(root int, subPath string) (int, error) {
	var st unix.Stat_t
	if err := unix.Fstat(root, &st); err != nil {
		return -1, err
	}
	mode := st.Mode & 0o7777
	parent, err := openBeneath(root, ".")
	if err != nil {
		return -1, err
	}
	elements := strings.Split(subPath, "/")
	for i := range elements {
		rel := path.Join(elements[:i+1]...)
		fd, err := openBeneath(root, rel)
		if errors.Is(err, unix.ENOENT) {
			if err = makeIn(parent, elements[i], mode); err == nil {
				fd, err = openBeneath(root, rel)
			}
		}
		unix.Close(parent)
		if err != nil {
			return -1, fmt.Errorf("make %s: %w", rel, err)
		}
		parent = fd
	}
	return parent, nil
}

// makeIn makes a directory that appears with its final mode. One that a
// container, or another pod with the same volume, made first is as good.
func makeIn(parent int, name string, mode uint32) error {
	staged := "..new-" + name
	err := unix.Mkdirat(parent, staged, 0o700)
	if errors.Is(err, unix.EROFS) {
		return errors.New("does not exist, and the volume is read-only")
	}
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	fd, err := unix.Openat2(parent, staged, &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
	})
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Fchmod(fd, mode); err != nil {
		return err
	}
	failpoint.Hit("volume/subpath-staged")
	return publish(parent, staged, name)
}
