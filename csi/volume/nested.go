package volume

import (
	"errors"
	"os"
	"path"
	"path/filepath"
	"strings"

	v1 "k8s.io/api/core/v1"
)

// makeNested makes the directories where containers mount other volumes inside
// this one: it is read-only for them and their runtime. Names that the volume
// itself shows are left alone.
func makeNested(dir, volume string, pod *v1.Pod, shown map[string]bool) error {
	for _, list := range [][]v1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			for _, rel := range nestedPaths(volume, list[i].VolumeMounts) {
				first, _, _ := strings.Cut(rel, "/")
				if shown[first] || strings.HasPrefix(first, "..") {
					continue
				}
				if err := makeDirs(filepath.Join(dir, rel)); err != nil {
					return err
				}
			}
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
