package rootfs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// option of a mount; an empty value is a flag.
type option struct{ key, value string }

// contextOption gives all files of a mount one SELinux context.
const contextOption = "context"

// String is the option in a list of options. A context has commas of its own,
// and is quoted for them.
func (o option) String() string {
	switch {
	case o.value == "":
		return o.key
	case o.key == contextOption:
		return fmt.Sprintf("%s=%q", o.key, o.value)
	}
	return o.key + "=" + o.value
}

// Context is the mount option that gives all files of a mount an SELinux
// context, behind a comma; empty where there is none.
func Context(context string) string {
	if context == "" {
		return ""
	}
	return "," + option{contextOption, context}.String()
}

// mountOverlay mounts lower directories, topmost first, on target. The old call
// is used where all fits in the page that it takes its options in, so that
// people can read it in /proc/mounts as ever; the long chains of many-layered
// images go by the new one, a layer at a time.
func mountOverlay(target string, flags uintptr, lowers []string, options []option) error {
	text := "lowerdir=" + strings.Join(lowers, ":")
	for _, o := range options {
		text += "," + o.String()
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
// directory, which it makes, with the IDs mapped as userNS says, the path of a
// user namespace, unless it is empty, and with one SELinux context for all its
// files, unless that is empty. What it makes is in the directory of target.
// When it fails, call Unmount.
func MountImage(layers []string, target, userNS, context string) error {
	if err := os.MkdirAll(target, 0o755); err != nil {
		return fmt.Errorf("create the mount point: %w", err)
	}
	switch {
	case userNS == "":
	case len(layers) == 1 && context == "":
		return mountMapped(layers[0], target, userNS)
	default:
		// The overlay goes on top of its layers, and comes off with them.
		var err error
		if layers, err = mapLowers(layers, target, userNS); err != nil {
			return err
		}
	}
	var options []option
	if context != "" {
		options = []option{{contextOption, context}}
		if len(layers) == 1 {
			// Only a file system of its own can have a context, and an overlay
			// that cannot be written to needs two layers.
			empty := filepath.Join(filepath.Dir(target), "empty")
			if err := os.MkdirAll(empty, 0o755); err != nil {
				return fmt.Errorf("create a second layer for the image: %w", err)
			}
			layers = append(slices.Clone(layers), empty)
		}
	}
	if len(layers) == 1 {
		// An overlay of one layer and nothing to write to is none.
		err := unix.Mount(layers[0], target, "", unix.MS_BIND, "")
		if err == nil {
			err = unix.Mount("", target, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, "")
		}
		if err != nil {
			return fmt.Errorf("mount the image on %s: %w", target, err)
		}
		return nil
	}
	if err := mountOverlay(target, unix.MS_RDONLY, layers, options); err != nil {
		return fmt.Errorf("mount the image on %s: %w", target, err)
	}
	return nil
}
