package server

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	crierrors "k8s.io/cri-api/pkg/errors"

	"github.com/berth-io/berth/cri/image"
	"github.com/berth-io/berth/cri/rootfs"
	"github.com/berth-io/berth/cri/store"
)

// Image volumes: an image or an artifact mounted read-only into a container.
// Each container has its own mounts, CONTAINER/images/N of the mount with index
// N in its request, and holds the layers as it holds those of its root. So they
// live and end with it, and are found again from its ID.

// imageVolume is one of them.
type imageVolume struct {
	index int // in the request's mounts
	image image.Image
}

// imageVolumesOf finds the images that a request mounts. They must be on the
// node; the kubelet pulls them before.
func (s *Server) imageVolumesOf(config *runtimeapi.ContainerConfig) ([]imageVolume, error) {
	var volumes []imageVolume
	for i, m := range config.GetMounts() {
		ref := m.GetImage().GetImage()
		if ref == "" {
			continue
		}
		img, ok := s.images.Get(ref)
		if !ok {
			return nil, imageVolumeError(codes.NotFound, "image %q for %s is not on this node: pull it first", ref, m.GetContainerPath())
		}
		m.Image.ImageRef = imageRef(img) // for ContainerStatus (KEP-5365); the request is this container's alone
		volumes = append(volumes, imageVolume{index: i, image: img})
	}
	return volumes, nil
}

// imageVolumeError begins with the word by which a kubelet knows that an image
// volume is what kept a container from being created.
func imageVolumeError(code codes.Code, format string, args ...any) error {
	return status.Errorf(code, "%v: %s", crierrors.ErrImageVolumeMountFailed, fmt.Sprintf(format, args...))
}

func chainsOf(volumes []imageVolume) []string {
	var chains []string
	for _, v := range volumes {
		chains = append(chains, v.image.ChainID)
	}
	return chains
}

// mountImages mounts the images of a request and returns the sources of their
// bind mounts, by the mounts' index.
func (s *Server) mountImages(sb store.Sandbox, c store.Container, volumes []imageVolume) (map[int]string, error) {
	sources := map[int]string{}
	for _, v := range volumes {
		m := c.Config.GetMounts()[v.index]
		if err := s.images.Retain(v.image.ChainID, c.ID); err != nil {
			return nil, imageVolumeError(codes.NotFound, "image %q for %s: %v", m.GetImage().GetImage(), m.GetContainerPath(), err)
		}
		target := filepath.Join(s.imagesDir(c.ID), strconv.Itoa(v.index))
		userNS := ""
		if len(m.GetUidMappings()) > 0 {
			userNS = s.userNS(sb)
		}
		if err := rootfs.MountImage(v.image.Layers, target, userNS, c.SELinux.File); err != nil {
			return nil, imageVolumeError(codes.Internal, "%v", err)
		}
		source, err := imageSubPath(target, m.GetImageSubPath())
		if err != nil {
			return nil, imageVolumeError(codes.InvalidArgument, "image_sub_path %q of image %q: %v", m.GetImageSubPath(), m.GetImage().GetImage(), err)
		}
		sources[v.index] = source
	}
	return sources, nil
}

// imageSubPath is the directory at a path inside a mounted image. A symbolic
// link on the way that leaves the image is an error. Like other runtimes it
// takes directories only (KEP-4639, non-goals).
func imageSubPath(root, sub string) (string, error) {
	if sub == "" {
		return root, nil
	}
	f, err := os.OpenInRoot(root, sub)
	if errors.Is(err, fs.ErrNotExist) {
		return "", errors.New("the image has no such directory")
	}
	var wrapped *fs.PathError
	if errors.As(err, &wrapped) {
		err = wrapped.Err
	}
	if err != nil {
		return "", err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return "", err
	}
	if !info.IsDir() {
		return "", errors.New("it is not a directory")
	}
	return filepath.Join(root, sub), nil
}

func (s *Server) imagesDir(containerID string) string {
	return filepath.Join(s.containers.Dir(containerID), "images")
}

// unmountImages takes a container's image volumes away. It is idempotent.
func (s *Server) unmountImages(containerID string) error {
	dir := s.imagesDir(containerID)
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look for image volumes: %w", err)
	}
	for _, e := range entries {
		if err := rootfs.Unmount(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return rootfs.RemoveTree(dir)
}
