package rootfs

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// option of a mount; an empty value is a flag.
type option struct{ key, value string }

// mountOverlay mounts lower directories, topmost first, on target. The old call
// is used where all fits in the page that it takes its options in, so that
// people can read it in /proc/mounts as ever; the long chains of many-layered
// images go by the new one, a layer at a time.
func mountOverlay(target string, flags uintptr, lowers []string, options []option) error {
	text := "lowerdir=" + strings.Join(lowers, ":")
	for _, o := range options {
		text += "," + o.key
		if o.value != "" {
			text += "=" + o.value
		}
	}
	if len(text) < os.Getpagesize() {
		return unix.Mount("overlay", target, "overlay", flags, text)
	}
	return mountLongOverlay(target, flags, lowers, options)
}

// mountLongOverlay needs a kernel that takes layers one by one (Linux 6.8).
func mountLongOverlay(target string, flags uintptr, lowers []string, options []option) (err error) {
	fs, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return fmt.Errorf("fsopen: %w", err)
	}
	defer unix.Close(fs)
	for _, dir := range lowers {
		err := unix.FsconfigSetString(fs, "lowerdir+", dir)
		if errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("%d layers are more than one mount call takes, and adding %s alone is refused: %w (Linux 6.8 can)", len(lowers), dir, err)
		}
		if err != nil {
			return fmt.Errorf("add layer %s: %w", dir, err)
		}
	}
	for _, o := range options {
		if o.value == "" {
			err = unix.FsconfigSetFlag(fs, o.key)
		} else {
			err = unix.FsconfigSetString(fs, o.key, o.value)
		}
		if err != nil {
			return fmt.Errorf("option %s: %w", o.key, err)
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return fmt.Errorf("create the overlay: %w", err)
	}
	attributes := 0
	if flags&unix.MS_RDONLY != 0 {
		attributes |= unix.MOUNT_ATTR_RDONLY
	}
	mount, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, attributes)
	if err != nil {
		return fmt.Errorf("fsmount: %w", err)
	}
	defer unix.Close(mount)
	return unix.MoveMount(mount, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH)
}

// MountImage mounts the layers of an image, topmost first, read-only on a
// directory, which it makes; with userNS, the path of a user namespace, with its
// IDs mapped to that. Beside target, TARGET.lower is made and unmounted again.
// When it fails, call Unmount for both.
func MountImage(layers []string, target, userNS string) (err error) {
	if err := os.MkdirAll(target, 0o755); err != nil {
		return fmt.Errorf("create the mount point: %w", err)
	}
	if userNS != "" {
		lower := target + ".lower"
		if layers, err = mapLowers(lower, layers, userNS); err != nil {
			return err
		}
		// What is mounted of it below holds on to it.
		defer func() { err = errors.Join(err, Unmount(lower)) }()
	}
	if len(layers) == 1 {
		// An overlay of one layer and nothing to write to is none.
		err = unix.Mount(layers[0], target, "", unix.MS_BIND, "")
		if err == nil {
			err = unix.Mount("", target, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, "")
		}
	} else {
		err = mountOverlay(target, unix.MS_RDONLY, layers, nil)
	}
	if err != nil {
		return fmt.Errorf("mount the image on %s: %w", target, err)
	}
	return nil
}
