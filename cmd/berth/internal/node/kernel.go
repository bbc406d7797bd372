package node

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
)

// kernelSettings are what the kubelet wants of the kernel (pkg/kubelet/cm,
// setupKernelTunables): overcommitted memory, the OOM killer in place of a panic,
// a reboot after one, and enough keys for the pods' sessions.
var kernelSettings = []struct{ name, value string }{
	{"vm/overcommit_memory", "1"},
	{"vm/panic_on_oom", "0"},
	{"kernel/panic", "10"},
	{"kernel/panic_on_oops", "1"},
	{"kernel/keys/root_maxkeys", "1000000"},
	{"kernel/keys/root_maxbytes", "25000000"},
}

// setKernel brings the settings below dir (/proc/sys) to what they are to be.
// With protect (protectKernelDefaults) it changes none, and one that differs is
// an error.
func setKernel(dir string, protect bool, log *slog.Logger) error {
	var errs []error
	for _, s := range kernelSettings {
		path := filepath.Join(dir, s.name)
		data, err := os.ReadFile(path)
		if err != nil {
			errs = append(errs, fmt.Errorf("read a setting of the kernel: %w", err))
			continue
		}
		now := strings.TrimSpace(string(data))
		switch {
		case now == s.value:
		case protect:
			errs = append(errs, fmt.Errorf("%s is %s and must be %s: set it (sysctl -w %s=%s), or set protectKernelDefaults to false",
				path, now, s.value, strings.ReplaceAll(s.name, "/", "."), s.value))
		default:
			log.Info("changing a setting of the kernel", "setting", path, "from", now, "to", s.value)
			if err := os.WriteFile(path, []byte(s.value), 0); err != nil {
				errs = append(errs, fmt.Errorf("change a setting of the kernel: %w", err))
			}
		}
	}
	return errors.Join(errs...)
}
