package join

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
)

// unit is the kubelet's, which kubeadm restarts by that name.
const unit = "kubelet.service"

// Systemd is the service manager, where it runs.
type Systemd struct{}

// SystemdRuns tells whether this host was booted with systemd (sd_booted(3)).
func SystemdRuns() bool {
	info, err := os.Stat("/run/systemd/system")
	return err == nil && info.IsDir()
}

// Start enables and starts the unit. One that runs already serves the runtime
// of a host without a cluster.
func (Systemd) Start(ctx context.Context) error {
	if err := systemctl(ctx, "daemon-reload"); err != nil {
		return err
	}
	if err := systemctl(ctx, "enable", unit); err != nil {
		return err
	}
	return systemctl(ctx, "restart", unit)
}

// Stop disables and stops it.
func (Systemd) Stop(ctx context.Context) error { return systemctl(ctx, "disable", "--now", unit) }

func systemctl(ctx context.Context, args ...string) error {
	out, err := exec.CommandContext(ctx, "systemctl", args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("systemctl %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}
