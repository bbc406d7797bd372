package admit

import (
	"bytes"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// KernelVersion is the running kernel's, as uname -r prints it.
func KernelVersion() (string, error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "", fmt.Errorf("ask the kernel for its version: %w", err)
	}
	return unix.ByteSliceToString(u.Release[:]), nil
}

// AppArmorEnabled tells whether the host enforces AppArmor profiles. It is
// asked once, at start: the kernel does not change it.
func AppArmorEnabled() bool {
	if _, err := os.Stat("/sys/kernel/security/apparmor"); err != nil {
		return false
	}
	on, err := os.ReadFile("/sys/module/apparmor/parameters/enabled")
	return err == nil && bytes.HasPrefix(on, []byte("Y"))
}
