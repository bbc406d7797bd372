package rootfs

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/containerd/continuity/fs"
	"golang.org/x/sys/unix"
)

// WriteChanges writes what the container has changed in its root file system,
// as a layer of an image has it: a tar with whiteouts for what is gone. The
// container may go on changing it meanwhile.
func (l Layer) WriteChanges(w io.Writer) error {
	upper := filepath.Join(l.Dir, "upper")
	cw := archive.NewChangeWriter(w, upper)
	err := filepath.Walk(upper, func(path string, info os.FileInfo, err error) error {
		if errors.Is(err, os.ErrNotExist) {
			return nil // meanwhile
		}
		if err != nil || path == upper {
			return err
		}
		return writeChange(cw, upper, path, info)
	})
	if err == nil {
		err = cw.Close()
	}
	if err != nil {
		return fmt.Errorf("write the changes in the root file system: %w", err)
	}
	return nil
}

// writeChange knows how overlay keeps what is removed: a file as a character
// device 0:0 in its place, the old content of a new directory by a mark on it
// (Documentation/filesystems/overlayfs.rst of Linux).
func writeChange(cw *archive.ChangeWriter, upper, path string, info os.FileInfo) error {
	name := "/" + filepath.ToSlash(path[len(upper)+1:])
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0 {
		return cw.HandleChange(fs.ChangeKindDelete, name, nil, nil)
	}
	if err := cw.HandleChange(fs.ChangeKindAdd, name, info, nil); err != nil || !info.IsDir() {
		return err
	}
	mark := make([]byte, 1)
	if n, err := unix.Lgetxattr(path, "trusted.overlay.opaque", mark); err == nil && n == 1 && mark[0] == 'y' {
		return cw.HandleChange(fs.ChangeKindDelete, filepath.Join(name, ".wh..opq"), nil, nil)
	}
	return nil
}
