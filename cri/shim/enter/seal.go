package enter

import (
	"errors"
	"fmt"
	"io"

	"golang.org/x/sys/unix"
)

// self is the program that runs.
const self = "/proc/self/exe"

// Seal copies the running program into memory, where nobody can change it. The
// descriptor is the caller's to close, and each process is to have a copy of its
// own: who gets hold of the file in a container can hinder others from executing
// it, with a lease (F_SETLEASE), by changing its mode or by opening it for
// writing.
func Seal() (fd int, err error) { return seal(self) }

func seal(path string) (fd int, err error) {
	from, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("seal a program: open %s: %w", path, err)
	}
	defer unix.Close(from)
	const flags = unix.MFD_CLOEXEC | unix.MFD_ALLOW_SEALING
	fd, err = unix.MemfdCreate("berth-shim", flags|unix.MFD_EXEC)
	if errors.Is(err, unix.EINVAL) { // Linux before 6.3
		fd, err = unix.MemfdCreate("berth-shim", flags)
	}
	if err != nil {
		return -1, fmt.Errorf("seal a program: make a file in memory: %w", err)
	}
	if err = copyAll(fd, from); err == nil {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SEAL|unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_WRITE)
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("seal a program: %w", err)
	}
	return fd, nil
}

// copyAll has the kernel copy: a buffer would be the shim's to keep.
func copyAll(to, from int) error {
	var st unix.Stat_t
	if err := unix.Fstat(from, &st); err != nil {
		return err
	}
	for left := st.Size; left > 0; {
		n, err := unix.Sendfile(to, from, nil, int(left))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		if n == 0 {
			return io.ErrUnexpectedEOF
		}
		left -= int64(n)
	}
	return nil
}
