package volume

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// maxRead bounds ReadFile, in bytes: what it is for are lists of variables.
const maxRead = 1 << 20

// ReadFile reads a file that the pod has written into one of its volumes.
// Symlinks are followed only as far as they stay in the volume, and only a plain
// file is read: a pipe would not end.
func ReadFile(vol Mounted, path string) ([]byte, error) {
	if vol.HostPath == "" {
		return nil, fmt.Errorf("volume %q: has no files on the host", vol.Name)
	}
	clean, err := cleanSubPath(path)
	if err != nil {
		return nil, fmt.Errorf("volume %q: %w", vol.Name, err)
	}
	content, err := readBeneath(vol.HostPath, clean)
	if err != nil {
		return nil, fmt.Errorf("volume %q: read %s: %w", vol.Name, path, err)
	}
	return content, nil
}

func readBeneath(volume, path string) ([]byte, error) {
	root, err := unix.Open(volume, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(root)
	pinned, err := openBeneath(root, path)
	if err != nil {
		return nil, err
	}
	defer unix.Close(pinned)
	var st unix.Stat_t
	if err := unix.Fstat(pinned, &st); err != nil {
		return nil, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, errors.New("not a regular file")
	}
	file, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", pinned))
	if err != nil {
		return nil, err
	}
	defer file.Close()
	content, err := io.ReadAll(io.LimitReader(file, maxRead+1))
	if len(content) > maxRead {
		return nil, fmt.Errorf("larger than %d bytes", maxRead)
	}
	return content, err
}
