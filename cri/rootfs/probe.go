package rootfs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containerd/containerd/v2/core/mount"
	"golang.org/x/sys/unix"
)

// probeID is user 0 of the user namespace that ProbeIDMap makes.
const probeID = 65536

// ProbeIDMap tries whether containers can have a user namespace: it makes a
// root file system as theirs, from a layer in the directory images and with a
// writable layer in the directory state. The error says what cannot.
func ProbeIDMap(images, state string) (err error) {
	image := filepath.Join(images, "idmap-probe")
	layer := Layer{Dir: filepath.Join(state, "idmap-probe"), Mount: filepath.Join(state, "idmap-probe-root")}
	clean := func() error { return errors.Join(layer.Remove(), RemoveTree(image)) }
	if err := clean(); err != nil { // of a daemon that was killed here
		return err
	}
	defer func() { err = errors.Join(err, clean()) }()
	lower := filepath.Join(image, "fs")
	if err := os.MkdirAll(lower, 0o755); err != nil {
		return fmt.Errorf("make a layer to try user namespaces with: %w", err)
	}
	maps := fmt.Sprintf("0:%d:%d", probeID, probeID)
	userNS, err := mount.GetUsernsFD(maps, maps)
	if err != nil {
		return fmt.Errorf("make a user namespace: %w", err)
	}
	defer userNS.Close()
	if err := layer.Create([]string{lower}, fmt.Sprintf("/proc/self/fd/%d", userNS.Fd())); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Stat(layer.Mount, &st); err != nil {
		return fmt.Errorf("look at %s: %w", layer.Mount, err)
	}
	if st.Uid != probeID {
		return fmt.Errorf("the kernel does not map the IDs of an overlay's layers (Linux 5.19 does)")
	}
	return nil
}
