// Package dirsize says what a directory takes on its file system. It keeps
// nothing: how often it may walk a directory is for its callers to decide, who
// are agent/usage, for eviction, and agent/stats, for the summary.
package dirsize

import (
	"context"
	"errors"
	"io/fs"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Size is what something takes: allocated bytes, and inodes.
type Size struct{ Bytes, Inodes uint64 }

// sector is the unit of st_blocks.
const sector = 512

// Of adds up a file or what is below a directory, itself included, as the
// kubelet's pkg/volume/util/fs DiskUsage: a file with several names counts once,
// links are not followed, other file systems do not count, nor does what
// disappears meanwhile. With ctx's error it returns what was counted by then. One
// that is not there is fs.ErrNotExist.
func Of(ctx context.Context, path string) (Size, error) {
	var top unix.Stat_t
	if err := unix.Lstat(path, &top); err != nil {
		return Size{}, &fs.PathError{Op: "lstat", Path: path, Err: err}
	}
	var total Size
	seen := map[uint64]bool{} // inodes with several names
	err := filepath.WalkDir(path, func(at string, entry fs.DirEntry, err error) error {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			return unlessGone(err)
		}
		var st unix.Stat_t
		if err := unix.Lstat(at, &st); err != nil {
			return unlessGone(&fs.PathError{Op: "lstat", Path: at, Err: err})
		}
		if st.Dev != top.Dev {
			if entry.IsDir() {
				return filepath.SkipDir
			}
			return nil
		}
		if st.Nlink > 1 && !entry.IsDir() {
			if seen[st.Ino] {
				return nil
			}
			seen[st.Ino] = true
		}
		total.Bytes += uint64(st.Blocks) * sector
		total.Inodes++
		return nil
	})
	return total, err
}

func unlessGone(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
