package logrotate

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/klauspost/compress/gzip"
	"golang.org/x/sys/unix"

	"github.com/berth-io/berth/internal/failpoint"
)

// pack replaces a rotated log by its archive. There is the one or the other at
// any time, on the disk too. What is not a file is left alone.
func pack(ctx context.Context, path string) error {
	in, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s is not a file", path)
	}
	if err := write(ctx, path+unfinished, in, info.Mode().Perm()); err != nil {
		return errors.Join(err, removeAny(path+unfinished))
	}
	failpoint.Hit("agent/log-compressed")
	if err := os.Rename(path+unfinished, path+archive); err != nil {
		return errors.Join(err, removeAny(path+unfinished))
	}
	failpoint.Hit("agent/log-archived")
	return removeAny(path)
}

// write compresses in to a new file.
func write(ctx context.Context, path string, in io.Reader, mode fs.FileMode) (err error) {
	out, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW, mode)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	failpoint.Hit("agent/log-compressing")
	z := gzip.NewWriter(out)
	if _, err := io.Copy(z, &reader{ctx, in}); err != nil {
		return err
	}
	if err := z.Close(); err != nil {
		return err
	}
	return out.Sync()
}

// reader reads until ctx ends.
type reader struct {
	ctx context.Context
	in  io.Reader
}

func (r *reader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.in.Read(p)
}
