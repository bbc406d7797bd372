package volume

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// TearDown unmounts and removes everything that the pod has here, and the pod's
// directory if nothing else is in it. It may be repeated; a pod that has nothing
// is no error. What could not be unmounted or removed is named in the error with
// the reason.
func (m *Manager) TearDown(ctx context.Context, podUID string) error {
	_, err := serialized(ctx, m, podUID, func(at *step) (struct{}, error) {
		return struct{}{}, m.tearDown(ctx, podUID, at)
	})
	return err
}

func (m *Manager) tearDown(ctx context.Context, podUID string, at *step) error {
	podDir := m.podDir(podUID)
	targets, err := journalled(podDir)
	if err != nil {
		return err
	}
	var errs []error
	for _, target := range targets {
		if ctx.Err() != nil {
			return errors.Join(append(errs, context.Cause(ctx))...)
		}
		if err := m.mounts.undo(podDir, target, at); err != nil {
			errs = append(errs, err)
		}
	}
	for _, name := range []string{subPathsDir, volumesDir} {
		dir := filepath.Join(podDir, name)
		at.set("remove %s", dir)
		if err := removeTree(ctx, dir); err != nil {
			errs = append(errs, err)
		}
	}
	// The journal goes last, and only with nothing in it.
	for _, dir := range []string{filepath.Join(podDir, journalDir), podDir} {
		if err := removeIfEmpty(dir); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func removeIfEmpty(dir string) error {
	err := unix.Rmdir(dir)
	if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENOTEMPTY) {
		return fmt.Errorf("remove %s: %w", dir, err)
	}
	return nil
}

// CleanSubPaths releases a container's pinned subPaths before it starts anew or
// when it is gone. It may be repeated.
func (m *Manager) CleanSubPaths(ctx context.Context, podUID, container string) error {
	if err := checkName(container); err != nil {
		return fmt.Errorf("container: %w", err)
	}
	_, err := serialized(ctx, m, podUID, func(at *step) (struct{}, error) {
		return struct{}{}, m.cleanSubPaths(ctx, podUID, container, at)
	})
	return err
}

func (m *Manager) cleanSubPaths(ctx context.Context, podUID, container string, at *step) error {
	podDir := m.podDir(podUID)
	all := filepath.Join(podDir, subPathsDir)
	volumes, err := os.ReadDir(all)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("list pinned subPaths: %w", err)
	}
	targets, err := journalled(podDir)
	if err != nil {
		return err
	}
	var errs []error
	for _, volume := range volumes {
		dir := filepath.Join(all, volume.Name(), container)
		for _, target := range targets {
			if strings.HasPrefix(target, dir+"/") {
				if err := m.mounts.undo(podDir, target, at); err != nil {
					errs = append(errs, err)
				}
			}
		}
		errs = append(errs, removeTree(ctx, dir), removeIfEmpty(filepath.Dir(dir)))
	}
	errs = append(errs, removeIfEmpty(all))
	return errors.Join(errs...)
}
