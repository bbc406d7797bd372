package act

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	v1 "k8s.io/api/core/v1"
)

// link makes the name by which log shippers find a container's log. It is a
// convenience for others: a container is not held up for it.
func (a *Actor) link(pod *v1.Pod, container, id, log string) {
	path := a.linkPath(pod, container, id)
	if path == "" {
		return
	}
	if err := os.Symlink(log, path); err != nil && !errors.Is(err, fs.ErrExist) {
		a.config.Log.Warn("a container's log has no link for log shippers", "pod", pod.Namespace+"/"+pod.Name, "container", container, "err", err)
	}
}

func (a *Actor) linkPath(pod *v1.Pod, container, id string) string {
	if a.config.ContainerLogsDir == "" {
		return ""
	}
	return filepath.Join(a.config.ContainerLogsDir, fmt.Sprintf("%s_%s_%s-%s.log", pod.Name, pod.Namespace, container, id))
}

// removeLinks removes the links into a pod's log directory, those included of
// containers that the runtime has lost, after a reboot say.
func (a *Actor) removeLinks(logDir string) error {
	return a.eachLink(func(path string) error {
		if target, err := os.Readlink(path); err != nil || !strings.HasPrefix(target, logDir+"/") {
			return nil // gone meanwhile, or another pod's
		}
		return os.Remove(path)
	})
}

// SweepLinks removes links to logs that are gone: what a crash between the two
// leaves.
func (a *Actor) SweepLinks() error {
	return a.eachLink(func(path string) error {
		if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return os.Remove(path)
	})
}

func (a *Actor) eachLink(do func(path string) error) error {
	if a.config.ContainerLogsDir == "" {
		return nil
	}
	entries, err := os.ReadDir(a.config.ContainerLogsDir)
	if err != nil {
		return fmt.Errorf("look for links to removed logs: %w", err)
	}
	for _, e := range entries {
		if e.Type()&fs.ModeSymlink == 0 {
			continue
		}
		if err := do(filepath.Join(a.config.ContainerLogsDir, e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove a link to a removed log: %w", err)
		}
	}
	return nil
}
