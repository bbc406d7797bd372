package volume

import (
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
)

// journalDir holds one file for each mount of a pod. The file's name is the
// escaped path of the mount below the pod's directory and says all that
// clean-up needs, so a file cut short by a crash is as good as a whole one. Its
// content is for people.
const journalDir = "berth-mounts"

func entryFile(podDir, target string) (string, error) {
	rel, found := strings.CutPrefix(target, podDir+"/")
	if !found {
		return "", fmt.Errorf("mount point %s is not below %s", target, podDir)
	}
	return filepath.Join(podDir, journalDir, url.PathEscape(rel)), nil
}

func record(podDir, target, what string) error {
	file, err := entryFile(podDir, target)
	if err != nil {
		return err
	}
	_, err = os.Lstat(file)
	if err == nil {
		return nil
	}
	if errors.Is(err, os.ErrNotExist) {
		err = os.WriteFile(file, []byte(what+"\n"), 0o600)
	}
	if errors.Is(err, os.ErrNotExist) {
		if err = os.MkdirAll(filepath.Dir(file), dirMode); err == nil {
			err = os.WriteFile(file, []byte(what+"\n"), 0o600)
		}
	}
	if err != nil {
		return fmt.Errorf("journal the mount of %s: %w", target, err)
	}
	return nil
}

func strike(podDir, target string) error {
	file, err := entryFile(podDir, target)
	if err != nil {
		return err
	}
	if err := os.Remove(file); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("strike the mount of %s off the journal: %w", target, err)
	}
	return nil
}

// journalled lists the mount points in a pod's journal, subPaths first, since
// they pin what is in the volumes.
func journalled(podDir string) ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(podDir, journalDir))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("read the journal of mounts: %w", err)
	}
	var subPaths, volumes []string
	for _, entry := range entries {
		rel, err := url.PathUnescape(entry.Name())
		if err != nil || !filepath.IsLocal(rel) {
			return nil, fmt.Errorf("journal of mounts %s: %q is no path below the pod: remove that file", filepath.Join(podDir, journalDir), entry.Name())
		}
		target := filepath.Join(podDir, rel)
		if strings.HasPrefix(rel, subPathsDir+"/") {
			subPaths = append(subPaths, target)
		} else {
			volumes = append(volumes, target)
		}
	}
	return append(subPaths, volumes...), nil
}

func split(path string) (parent, name string) {
	return filepath.Dir(path), filepath.Base(path)
}
