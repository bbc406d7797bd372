package host

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// notForContainers are places below /dev that a container has of its own.
var notForContainers = map[string]bool{
	"/dev/pts": true, "/dev/shm": true, "/dev/fd": true, "/dev/mqueue": true,
	"/dev/console": true, "/dev/ptmx": true, "/dev/.udev": true, "/dev/hugepages": true,
}

// Devices lists all devices of the host, for privileged containers.
func Devices() ([]specs.LinuxDevice, error) {
	return below("/dev", "/dev")
}

// Asked lists the devices that a request names, and the rules that allow them.
// A directory means every device below it.
func Asked(asked []*runtimeapi.Device) ([]specs.LinuxDevice, []specs.LinuxDeviceCgroup, error) {
	var devices []specs.LinuxDevice
	var rules []specs.LinuxDeviceCgroup
	for _, a := range asked {
		path, err := Resolve(a.GetHostPath())
		if err != nil {
			return nil, nil, err
		}
		found, err := below(path, a.GetContainerPath())
		if err != nil {
			return nil, nil, err
		}
		if len(found) == 0 {
			return nil, nil, fmt.Errorf("%s is neither a device nor a directory of devices", a.GetHostPath())
		}
		access := a.GetPermissions()
		if access == "" {
			access = "rwm"
		}
		for _, d := range found {
			major, minor := d.Major, d.Minor
			rules = append(rules, specs.LinuxDeviceCgroup{Allow: true, Type: d.Type, Major: &major, Minor: &minor, Access: access})
		}
		devices = append(devices, found...)
	}
	return devices, rules, nil
}

// below lists the device at path, or those below it, as they are to be called
// inside the container.
func below(path, name string) ([]specs.LinuxDevice, error) {
	var list []specs.LinuxDevice
	err := filepath.WalkDir(path, func(p string, entry fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil // devices come and go
		case err != nil:
			return err
		case path == "/dev" && notForContainers[p] && entry.IsDir():
			return fs.SkipDir
		case path == "/dev" && notForContainers[p]:
			return nil
		case entry.Type()&os.ModeDevice == 0:
			return nil
		}
		d, err := device(p)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		d.Path = filepath.Join(name, strings.TrimPrefix(p, path))
		list = append(list, d)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list the devices in %s: %w", path, err)
	}
	return list, nil
}

func device(path string) (specs.LinuxDevice, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return specs.LinuxDevice{}, fmt.Errorf("look at the device %s: %w", path, err)
	}
	kind := "c"
	if st.Mode&unix.S_IFMT == unix.S_IFBLK {
		kind = "b"
	}
	mode := os.FileMode(st.Mode & 0o7777)
	uid, gid := st.Uid, st.Gid
	return specs.LinuxDevice{
		Type: kind, Major: int64(unix.Major(st.Rdev)), Minor: int64(unix.Minor(st.Rdev)),
		FileMode: &mode, UID: &uid, GID: &gid,
	}, nil
}
