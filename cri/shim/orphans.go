package shim

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-io/berth/cri/shim/internal/wire"
)

// AwaitOrphans returns once neither the shim of dir nor any command of the OCI
// runtime that it started is alive. A shim that is killed leaves its commands
// behind for a moment, and one of them may be making a container that nobody
// asks for any more: what it makes can only be removed when it has ended. All
// of them hold a lock on one file, which ends with the last of them, whoever
// killed it and whichever daemon looks.
func AwaitOrphans(ctx context.Context, dir string) error {
	path := filepath.Join(dir, wire.LockFile)
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil // no shim got as far as starting anything
	}
	if err != nil {
		return fmt.Errorf("wait for a lost shim's runtime commands: %w", err)
	}
	defer f.Close() // and with it the lock
	for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil:
			return nil
		case !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR):
			return fmt.Errorf("wait for a lost shim's runtime commands: lock %s: %w", path, err)
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return fmt.Errorf("a shim that does not answer, or a runtime command of it, still holds %s (fuser tells its process): %w", path, context.Cause(ctx))
		}
	}
}
