package gc

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/moby/sys/mountinfo"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// removeLogs removes the logs of pods that nobody has, and links of dead
// containers that lead nowhere.
func (c *Collector) removeLogs(list []*runtimeapi.Container) error {
	return errors.Join(c.removeLogDirs(), c.removeLinks(list))
}

func (c *Collector) removeLogDirs() error {
	entries, err := os.ReadDir(c.config.PodLogsDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("look for logs without a pod: %w", err)
	}
	var errs []error
	for _, e := range entries {
		uid, isPods := logOwner(e.Name())
		if !isPods || !e.IsDir() || c.owner(uid) != Nobody {
			continue
		}
		if err := removeUnmounted(filepath.Join(c.config.PodLogsDir, e.Name())); err != nil {
			errs = append(errs, fmt.Errorf("remove logs without a pod: %w", err))
		}
	}
	return errors.Join(errs...)
}

// logOwner reads the UID from the name of a directory, NAMESPACE_NAME_UID. No
// part of it has an underscore.
func logOwner(name string) (uid string, found bool) {
	parts := strings.Split(name, "_")
	if len(parts) != 3 || parts[0] == "" || parts[1] == "" || parts[2] == "" {
		return "", false
	}
	return parts[2], true
}

// removeUnmounted leaves a directory alone below which something is mounted:
// it is not a log.
func removeUnmounted(dir string) error {
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	if err != nil {
		return fmt.Errorf("look for mounts below %s: %w", dir, err)
	}
	if len(mounts) > 0 {
		return fmt.Errorf("%s is mounted: unmount it, then the removal goes on", mounts[0].Mountpoint)
	}
	return os.RemoveAll(dir)
}

// removeLinks spares a container that is not dead: while its log is rotated
// there is none for a moment.
func (c *Collector) removeLinks(list []*runtimeapi.Container) error {
	if c.config.ContainerLogsDir == "" {
		return nil
	}
	alive := map[string]bool{}
	for _, x := range list {
		alive[x.GetId()] = x.GetState() != runtimeapi.ContainerState_CONTAINER_EXITED
	}
	entries, err := os.ReadDir(c.config.ContainerLogsDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("look for links to removed logs: %w", err)
	}
	var errs []error
	for _, e := range entries {
		path := filepath.Join(c.config.ContainerLogsDir, e.Name())
		if e.Type()&fs.ModeSymlink == 0 || !strings.HasSuffix(e.Name(), ".log") || alive[linkOwner(e.Name())] {
			continue
		}
		if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("remove a link to a removed log: %w", err))
		}
	}
	return errors.Join(errs...)
}

// linkOwner reads the container's ID from POD_NAMESPACE_CONTAINER-ID.log.
func linkOwner(name string) string {
	name = strings.TrimSuffix(name, ".log")
	return name[strings.LastIndex(name, "-")+1:]
}
