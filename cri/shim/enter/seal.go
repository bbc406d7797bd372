package enter

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// Seal copies a program into memory, where nobody can change it. The file is
// the caller's to close.
func Seal(path string) (*os.File, error) {
	from, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("seal a program: %w", err)
	}
	defer from.Close()
	const flags = unix.MFD_CLOEXEC | unix.MFD_ALLOW_SEALING
	fd, err := unix.MemfdCreate("berth-shim", flags|unix.MFD_EXEC)
	if errors.Is(err, unix.EINVAL) { // Linux before 6.3
		fd, err = unix.MemfdCreate("berth-shim", flags)
	}
	if err != nil {
		return nil, fmt.Errorf("seal %s: make a file in memory: %w", path, err)
	}
	to := os.NewFile(uintptr(fd), path+" (sealed)")
	if _, err = io.Copy(to, from); err == nil {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SEAL|unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_WRITE)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("seal %s: %w", path, err), to.Close())
	}
	return to, nil
}
