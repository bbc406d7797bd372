package volume

import (
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"

	v1 "k8s.io/api/core/v1"
)

// nested lists the paths in a volume where containers of the pod mount other
// volumes.
func nested(volume string, pod *v1.Pod) []string {
	var rels []string
	for _, list := range [][]v1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			rels = append(rels, nestedPaths(volume, list[i].VolumeMounts)...)
		}
	}
	return rels
}

func firstElement(rel string) string {
	first, _, _ := strings.Cut(rel, "/")
	return first
}

// makeMountPoints makes directories for nested mounts: the volume is read-only
// for the containers' runtime. Names that the volume itself shows are left alone.
func makeMountPoints(dir string, rels []string, shown map[string]bool) error {
	for _, rel := range rels {
		if first := firstElement(rel); shown[first] || strings.HasPrefix(first, "..") {
			continue
		}
		if err := makeDirs(filepath.Join(dir, rel)); err != nil {
			return fmt.Errorf("make a mount point for another volume: %w", err)
		}
	}
	return nil
}

// nestedPaths are the mount points of a container below those of a volume,
// relative to it. A mount point below another of them is that one's matter.
func nestedPaths(volume string, mounts []v1.VolumeMount) []string {
	var rels []string
	for i := range mounts {
		if mounts[i].Name != volume || mounts[i].SubPath != "" || mounts[i].SubPathExpr != "" {
			continue
		}
		base := path.Clean(mounts[i].MountPath) + "/"
		for j := range mounts {
			rel, below := strings.CutPrefix(path.Clean(mounts[j].MountPath), base)
			if below && rel != "" && !covered(base, rel, mounts) {
				rels = append(rels, rel)
			}
		}
	}
	return rels
}

// covered tells whether a mount point lies between base and base+rel.
func covered(base, rel string, mounts []v1.VolumeMount) bool {
	for i := range mounts {
		between, below := strings.CutPrefix(path.Clean(mounts[i].MountPath), base)
		if below && between != "" && strings.HasPrefix(rel, between+"/") {
			return true
		}
	}
	return false
}

func makeDirs(dir string) error {
	if _, err := os.Lstat(dir); err == nil || !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return os.MkdirAll(dir, 0o755)
}
