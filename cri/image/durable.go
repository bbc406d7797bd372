package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/atomicwriter"
	"golang.org/x/sys/unix"
)

// Blobs and databases are durable when they are committed; the files of an
// unpacked chain are not, as syncing each would cost more than unpacking it.
// They are written out once, before the image is recorded. A chain that no
// record names may have lost files in a power failure, and must not be
// believed after one: the pulls' leases that hold such chains end with the
// boot in which they began.

// syncFS writes out the file system that holds dir.
func syncFS(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Syncfs(int(f.Fd())); err != nil {
		return fmt.Errorf("sync %s: %w", dir, err)
	}
	return nil
}

// endLeasesOfOtherBoots deletes the leases of pulls that a reboot ended.
func (s *Store) endLeasesOfOtherBoots(ctx context.Context) error {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return fmt.Errorf("boot ID: %w", err)
	}
	name := filepath.Join(s.config.Root, "boot")
	last, err := os.ReadFile(name)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("boot ID of the last opening: %w", err)
	}
	if bytes.Equal(last, boot) {
		return nil
	}
	held, err := s.leases.List(ctx)
	if err != nil {
		return fmt.Errorf("list leases: %w", err)
	}
	for _, lease := range held {
		if _, pull := lease.Labels[leasePull]; !pull {
			continue
		}
		if err := s.leases.Delete(ctx, lease); err != nil && !errdefs.IsNotFound(err) {
			return fmt.Errorf("delete lease %s: %w", lease.ID, err)
		}
	}
	if err := s.garbageCollect(ctx); err != nil {
		return err
	}
	err = atomicwriter.WriteFile(name, boot, 0o600)
	if errors.Is(err, unix.ENOSPC) {
		s.log.Warn("the disk is full: pulls that are interrupted start anew after the next start", "dir", s.config.Root, "err", err)
		return nil
	}
	if err != nil {
		return fmt.Errorf("write boot ID: %w", err)
	}
	return nil
}
