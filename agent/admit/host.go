package admit

import (
	"bytes"
	"os"
)

// AppArmorEnabled tells whether the host enforces AppArmor profiles. It is
// asked once, at start: the kernel does not change it.
func AppArmorEnabled() bool {
	if _, err := os.Stat("/sys/kernel/security/apparmor"); err != nil {
		return false
	}
	on, err := os.ReadFile("/sys/module/apparmor/parameters/enabled")
	return err == nil && bytes.HasPrefix(on, []byte("Y"))
}
