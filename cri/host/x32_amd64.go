package host

import (
	"os"
	"regexp"

	"golang.org/x/sys/unix"
)

// x32 marks the number of a system call by the x32 ABI, as in the kernel's
// arch/x86/include/uapi/asm/unistd.h.
const x32 = 1 << 30

var unfiltered = regexp.MustCompile(`(?m)^Seccomp:\t0$`)

// noX32 asks for a process ID in a way that only kernels with the x32 ABI know.
// Most are built without it. A daemon that is itself filtered does not ask: it
// might be killed for it.
func noX32() bool {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil || !unfiltered.Match(status) {
		return false
	}
	_, _, errno := unix.RawSyscall(x32|unix.SYS_GETPID, 0, 0, 0)
	return errno == unix.ENOSYS
}
