package podinit

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// setNoCapabilities empties the sets of every thread: capset(2) is about the
// calling thread alone.
func setNoCapabilities() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	_, _, errno := syscall.AllThreadsSyscall(unix.SYS_CAPSET,
		uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&data[0])), 0)
	if errno != 0 {
		return errno
	}
	return nil
}
