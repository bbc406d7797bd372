package logrotate

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-io/berth/internal/failpoint"
)

// rotate gives a log another name and has the runtime open a new one. What the
// container writes in between is in the renamed file.
func (r *Rotator) rotate(ctx context.Context, c container) error {
	list, err := list(c.log)
	if err != nil {
		return err
	}
	rotated := c.log + "." + next(list, time.Now())
	err = renameNew(c.log, rotated)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // removed since it was looked at
	}
	if err != nil {
		return fmt.Errorf("rename the log: %w", err)
	}
	failpoint.Hit("agent/log-renamed")
	if err := r.reopen(ctx, c.id); err != nil {
		// Where it was opened after all, there is a new log, and all is well.
		if back := renameNew(rotated, c.log); back != nil && !errors.Is(back, fs.ErrExist) {
			return errors.Join(err, fmt.Errorf("rename the log back: %w", back))
		}
		return err
	}
	failpoint.Hit("agent/log-reopened")
	return r.tidy(ctx, c.log)
}

// mend completes what was interrupted when the agent ended.
func (r *Rotator) mend(ctx context.Context, c container) error {
	var missing error
	if _, err := os.Lstat(c.log); errors.Is(err, fs.ErrNotExist) {
		missing = r.replace(ctx, c)
	}
	return errors.Join(missing, r.tidy(ctx, c.log))
}

// replace sees to a log that is missing. Where its container cannot open a new
// one, a rotation that got no further than the name is taken back.
func (r *Rotator) replace(ctx context.Context, c container) error {
	var failed error
	if c.running {
		if failed = r.reopen(ctx, c.id); failed == nil {
			return nil
		}
	}
	list, err := list(c.log)
	if err != nil {
		return errors.Join(failed, err)
	}
	last, found := interrupted(list)
	if !found {
		return failed
	}
	if err := renameNew(c.log+"."+last, c.log); err != nil && !errors.Is(err, fs.ErrExist) {
		return errors.Join(failed, fmt.Errorf("rename the log back: %w", err))
	}
	return failed
}

func (r *Rotator) reopen(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, reopenTimeout, fmt.Errorf("the runtime did not answer within %s", reopenTimeout))
	defer cancel()
	_, err := r.runtime.ReopenContainerLog(ctx, &runtimeapi.ReopenContainerLogRequest{ContainerId: id})
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		return fmt.Errorf("reopen the log: %w", err)
	}
	return nil
}

// tidy removes and compresses what is due beside a log. A file that cannot be
// dealt with does not keep the others.
func (r *Rotator) tidy(ctx context.Context, log string) error {
	list, err := list(log)
	if err != nil {
		return err
	}
	remove, compress := tidy(list, r.config.MaxFiles)
	var errs []error
	for _, suffix := range remove {
		if err := removeAny(log + "." + suffix); err != nil {
			errs = append(errs, fmt.Errorf("remove an old log: %w", err))
		}
		failpoint.Hit("agent/log-old-removed")
	}
	for _, suffix := range compress {
		if err := pack(ctx, log+"."+suffix); err != nil {
			errs = append(errs, fmt.Errorf("compress an old log: %w", err))
		}
	}
	return errors.Join(errs...)
}

// remove removes a log last: until then somebody knows that there is something
// to remove.
func remove(log string) error {
	entries, err := os.ReadDir(filepath.Dir(log))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look for rotated logs: %w", err)
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), filepath.Base(log)+".") || e.IsDir() {
			continue
		}
		if err := removeAny(filepath.Join(filepath.Dir(log), e.Name())); err != nil {
			return fmt.Errorf("remove a rotated log: %w", err)
		}
		failpoint.Hit("agent/log-rotated-removed")
	}
	if err := removeAny(log); err != nil {
		return fmt.Errorf("remove a log: %w", err)
	}
	return nil
}

// removeAny removes a file if there is one.
func removeAny(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// list are the rotated files of a log.
func list(log string) ([]file, error) {
	entries, err := os.ReadDir(filepath.Dir(log))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("look for rotated logs: %w", err)
	}
	var names []string
	for _, e := range entries {
		if e.Type().IsRegular() {
			names = append(names, e.Name())
		}
	}
	return files(filepath.Base(log), names), nil
}

// renameNew renames a file unless there is one of the new name: its error is
// fs.ErrExist then.
func renameNew(from, to string) error {
	err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE)
	if !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOSYS) {
		if err != nil {
			return &os.LinkError{Op: "rename", Old: from, New: to, Err: err}
		}
		return nil
	}
	// A file system over the network: looking first has to do.
	if _, err := os.Lstat(to); !errors.Is(err, fs.ErrNotExist) {
		return &os.LinkError{Op: "rename", Old: from, New: to, Err: unix.EEXIST}
	}
	return os.Rename(from, to)
}
