package server

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/containerd/continuity/fs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-io/berth/cri/image"
	"github.com/berth-io/berth/cri/rootfs"
	"github.com/berth-io/berth/cri/spec"
	"github.com/berth-io/berth/cri/store"
)

// imageVolumes makes a directory for each volume that the image declares and
// the request mounts nothing on, with what the image has there. They live
// beside the writable layer, and as long: to a container with a read-only root
// they are where it may write.
func imageVolumes(layer rootfs.Layer, img image.Image, sb store.Sandbox, asked []*runtimeapi.Mount) ([]spec.Mount, error) {
	taken := map[string]bool{}
	for _, m := range asked {
		taken[path.Clean(m.GetContainerPath())] = true
	}
	var mounts []spec.Mount
	for i, volume := range slices.Sorted(maps.Keys(img.Config.Volumes)) {
		destination := path.Clean("/" + volume)
		if taken[destination] || destination == "/" {
			continue
		}
		source := filepath.Join(layer.Dir, "volumes", strconv.Itoa(i))
		if err := os.MkdirAll(source, 0o755); err != nil {
			return nil, fmt.Errorf("create the volume %s of the image: %w", destination, err)
		}
		uid, gid := hostRoot(sb)
		if err := os.Chown(source, uid, gid); err != nil {
			return nil, fmt.Errorf("create the volume %s of the image: %w", destination, err)
		}
		if err := seedVolume(layer.Mount, destination, source); err != nil {
			return nil, fmt.Errorf("fill the volume %s of the image: %w", destination, err)
		}
		mounts = append(mounts, spec.Mount{Source: source, Destination: destination})
	}
	return mounts, nil
}

// seedVolume copies what the image has at the volume's place, with owners and
// modes. A symbolic link there leads nowhere outside the image.
func seedVolume(root, destination, into string) error {
	from, err := fs.RootPath(root, destination)
	if err != nil {
		return err
	}
	info, err := os.Stat(from)
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		return err
	}
	if !info.IsDir() {
		return errors.New("the image has a file there")
	}
	return fs.CopyDir(into, from)
}
