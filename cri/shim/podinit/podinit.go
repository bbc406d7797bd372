// Package podinit is the first process of a pid namespace that the containers
// of a pod share: it reaps what they leave behind and does nothing else. When
// it ends, the kernel ends every process of the namespace.
package podinit

import (
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"

	"golang.org/x/sys/unix"
)

// Argument makes berth-shim be an init process; cgroup directories to join
// follow it.
const Argument = "init"

// Run is the process. It returns on SIGTERM.
func Run(cgroupDirs []string) error {
	runtime.GOMAXPROCS(1)
	debug.SetGCPercent(10)
	for _, dir := range cgroupDirs {
		// 0 is the writer itself: its own pid is another in the host's namespace.
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte("0"), 0); err != nil {
			return fmt.Errorf("join the pod's cgroup: %w", err)
		}
	}
	signals := make(chan os.Signal, 32)
	signal.Notify(signals, unix.SIGCHLD, unix.SIGTERM)
	signal.Ignore(unix.SIGINT, unix.SIGHUP)
	debug.FreeOSMemory()
	for sig := range signals {
		if sig == unix.SIGTERM {
			return nil
		}
		reap()
	}
	return nil
}

func reap() {
	for {
		pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil || pid <= 0 {
			return
		}
	}
}
