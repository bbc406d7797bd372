// Package checkpoint owns the archive of a checkpointed container: a tar file
// in the form that CRI-O and containerd write and that checkpointctl reads. It
// knows files, and nothing of containers.
//
//	config.dump       which container and image it was
//	spec.dump         its OCI specification
//	status.dump       its status, as the CRI has it
//	status            the same in short, as containerd has it
//	checkpoint/       its processes, by criu
//	rootfs-diff.tar   what it changed in its root file system, a tar with OCI whiteouts
//	deleted.files     CRI-O's list of what it removed, in the place of whiteouts
//	container.log     its log
//	dump.log, stats-dump   criu's own
//
// Only cri/server calls it.
package checkpoint

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/containerd/containerd/v2/pkg/archive/compression"
	"golang.org/x/sys/unix"
)

// Names in an archive.
const (
	ConfigFile  = "config.dump"
	SpecFile    = "spec.dump"
	StatusDump  = "status.dump"
	StatusFile  = "status"
	ImagesDir   = "checkpoint"
	RootfsFile  = "rootfs-diff.tar"
	DeletedFile = "deleted.files"
	LogFile     = "container.log"
)

// maxMetadata bounds the JSON files of an archive.
const maxMetadata = 4 << 20

// Config is the content of config.dump.
type Config struct {
	ID              string    `json:"id"`
	Name            string    `json:"name"`
	RootfsImage     string    `json:"rootfsImage,omitempty"`
	RootfsImageRef  string    `json:"rootfsImageRef,omitempty"`  // with a digest
	RootfsImageName string    `json:"rootfsImageName,omitempty"` // as the user wrote it
	Runtime         string    `json:"runtime,omitempty"`
	CreatedAt       time.Time `json:"createdTime"`
	CheckpointedAt  time.Time `json:"checkpointedTime"`
	RestoredAt      time.Time `json:"restoredTime"`
	Restored        bool      `json:"restored"`
}

// Status is the content of status; times in nanoseconds since 1970.
type Status struct {
	CreatedAt, StartedAt, FinishedAt int64
	ExitCode                         int32
	Pid                              uint32
	Reason, Message                  string
}

// WriteJSON writes one of the JSON files.
func WriteJSON(dir, name string, content any) error {
	data, err := json.Marshal(content)
	if err != nil {
		return fmt.Errorf("encode %s of the checkpoint: %w", name, err)
	}
	if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
		return fmt.Errorf("write %s of the checkpoint: %w", name, err)
	}
	return nil
}

// Pack writes the files in dir as an archive, which takes its place at path
// when it is complete; until then it is path.partial.
func Pack(ctx context.Context, dir, path string) error {
	partial := path + ".partial"
	f, err := os.OpenFile(partial, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("write the checkpoint: %w", err)
	}
	err = archive.WriteDiff(ctx, f, "", dir)
	if err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(partial, path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("write the checkpoint %s: %w", path, err), os.Remove(partial))
	}
	return nil
}

// Unpack extracts an archive into a directory that exists.
func Unpack(ctx context.Context, path, dir string) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("open the checkpoint: %w", err)
	}
	defer f.Close()
	if _, err := extract(ctx, f, dir); err != nil {
		return fmt.Errorf("unpack the checkpoint %s: %w", path, err)
	}
	return nil
}

// Peek reads what an archive says of itself without unpacking it.
func Peek(path string) (Config, error) {
	var c Config
	f, err := os.Open(path)
	if err != nil {
		return c, fmt.Errorf("open the checkpoint: %w", err)
	}
	defer f.Close()
	plain, err := compression.DecompressStream(f)
	if err != nil {
		return c, fmt.Errorf("read the checkpoint %s: %w", path, err)
	}
	defer plain.Close()
	for r := tar.NewReader(plain); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return c, fmt.Errorf("%s is no checkpoint: %s is missing", path, ConfigFile)
		}
		if err != nil {
			return c, fmt.Errorf("read the checkpoint %s: %w", path, err)
		}
		if filepath.Clean("/"+h.Name) != "/"+ConfigFile || h.Typeflag != tar.TypeReg {
			continue
		}
		if h.Size > maxMetadata {
			return c, fmt.Errorf("%s of the checkpoint is larger than %d bytes", ConfigFile, maxMetadata)
		}
		data, err := io.ReadAll(r)
		if err != nil {
			return c, fmt.Errorf("read the checkpoint %s: %w", path, err)
		}
		return parse(data)
	}
}

func parse(data []byte) (Config, error) {
	var c Config
	if err := json.Unmarshal(data, &c); err != nil {
		return c, fmt.Errorf("parse %s of the checkpoint: %w", ConfigFile, err)
	}
	if c.RootfsImageRef == "" && c.RootfsImageName == "" && c.RootfsImage == "" {
		return c, fmt.Errorf("%s of the checkpoint names no image", ConfigFile)
	}
	return c, nil
}

// extract applies a tar, compressed or not, inside of dir: links in it lead
// nowhere else.
func extract(ctx context.Context, r io.Reader, dir string) (int64, error) {
	plain, err := compression.DecompressStream(r)
	if err != nil {
		return 0, err
	}
	defer plain.Close()
	return archive.Apply(ctx, dir, plain)
}

// Is tells whether a directory has the content of a checkpoint.
func Is(dir string) bool {
	for _, name := range []string{ConfigFile, SpecFile} {
		if st, err := os.Lstat(filepath.Join(dir, name)); err != nil || !st.Mode().IsRegular() {
			return false
		}
	}
	st, err := os.Lstat(filepath.Join(dir, ImagesDir))
	return err == nil && st.IsDir()
}

// Read checks an unpacked checkpoint and returns what it says of itself. It
// comes from outside: nothing but plain files is accepted.
func Read(dir string) (Config, error) {
	if !Is(dir) {
		return Config{}, fmt.Errorf("it is no checkpoint: %s, %s or %s is missing", ConfigFile, SpecFile, ImagesDir)
	}
	data, err := readPlain(filepath.Join(dir, ConfigFile))
	if err != nil {
		return Config{}, err
	}
	c, err := parse(data)
	if err != nil {
		return c, err
	}
	err = filepath.WalkDir(filepath.Join(dir, ImagesDir), func(path string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() && !e.Type().IsRegular() {
			err = fmt.Errorf("%s of the checkpoint is not a plain file", filepath.Base(path))
		}
		return err
	})
	return c, err
}

func readPlain(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s of the checkpoint: %w", filepath.Base(path), err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxMetadata+1))
	if err == nil && len(data) > maxMetadata {
		err = fmt.Errorf("it is larger than %d bytes", maxMetadata)
	}
	if err != nil {
		return nil, fmt.Errorf("read %s of the checkpoint: %w", filepath.Base(path), err)
	}
	return data, nil
}

// ApplyRootfs repeats, in a root file system, what the container had changed.
func ApplyRootfs(ctx context.Context, dir, root string) error {
	deleted, err := readPlain(filepath.Join(dir, DeletedFile))
	if err == nil {
		err = remove(root, deleted)
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(filepath.Join(dir, RootfsFile), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil // it changed nothing
	}
	if err != nil {
		return fmt.Errorf("open %s of the checkpoint: %w", RootfsFile, err)
	}
	defer f.Close()
	if _, err := extract(ctx, f, root); err != nil {
		return fmt.Errorf("apply %s of the checkpoint: %w", RootfsFile, err)
	}
	return nil
}

// remove deletes paths inside of root, whatever links there are.
func remove(root string, list []byte) error {
	var paths []string
	if err := json.Unmarshal(list, &paths); err != nil {
		return fmt.Errorf("parse %s of the checkpoint: %w", DeletedFile, err)
	}
	inside, err := os.OpenRoot(root)
	if err != nil {
		return fmt.Errorf("open the root file system: %w", err)
	}
	defer inside.Close()
	for _, p := range paths {
		if err := inside.RemoveAll(strings.TrimPrefix(filepath.Clean("/"+p), "/")); err != nil {
			return fmt.Errorf("remove %s, as the checkpoint has it: %w", p, err)
		}
	}
	return nil
}
