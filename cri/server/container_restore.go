package server

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-io/berth/cri/checkpoint"
	"github.com/berth-io/berth/cri/image"
	"github.com/berth-io/berth/cri/store"
)

// source is what a container is made from: an image, and where it goes on from
// a checkpoint, that one's content.
type source struct {
	image image.Image
	// archive is the checkpoint's file, dir its content where an image has it
	// unpacked, as buildah and the like make images of an archive; chain are
	// that image's layers.
	archive, dir, chain string
}

func (s source) restored() bool { return s.archive != "" || s.dir != "" }

// sourceOf finds what the image of a request names: an image, an image of a
// checkpoint, or the path of a checkpoint's archive.
func (s *Server) sourceOf(ctx context.Context, config *runtimeapi.ContainerConfig) (source, error) {
	name := config.GetImage().GetImage()
	if filepath.IsAbs(name) {
		return s.archiveSource(ctx, name)
	}
	img, ok := s.images.Get(name)
	if !ok {
		return source{}, status.Errorf(codes.NotFound, "image %q is not on this node: pull it first", name)
	}
	if img.Artifact {
		return source{}, status.Errorf(codes.InvalidArgument, "image %q is an artifact: it can be mounted as an image volume, not run", name)
	}
	if len(img.Layers) == 0 || !checkpoint.Is(img.Layers[0]) {
		return source{image: img}, nil
	}
	c, err := checkpoint.Read(img.Layers[0])
	if err != nil {
		return source{}, status.Errorf(codes.InvalidArgument, "image %q: %v", name, err)
	}
	base, err := s.checkpointedImage(ctx, c)
	return source{image: base, dir: img.Layers[0], chain: img.ChainID}, err
}

func (s *Server) archiveSource(ctx context.Context, path string) (source, error) {
	st, err := os.Stat(path)
	if err != nil || !st.Mode().IsRegular() {
		return source{}, status.Errorf(codes.NotFound, "image %q: it is not the file of a checkpoint", path)
	}
	c, err := checkpoint.Peek(path)
	if err != nil {
		return source{}, status.Error(codes.InvalidArgument, err.Error())
	}
	base, err := s.checkpointedImage(ctx, c)
	return source{image: base, archive: path}, err
}

// checkpointedImage is the image that the checkpointed container stood on. One
// that is not on this node is pulled: nobody else knows its name.
func (s *Server) checkpointedImage(ctx context.Context, c checkpoint.Config) (image.Image, error) {
	if err := haveCRIU(); err != nil {
		return image.Image{}, err
	}
	for _, ref := range []string{c.RootfsImageRef, c.RootfsImageName, c.RootfsImage} {
		if img, ok := s.images.Get(ref); ok && ref != "" {
			return img, nil
		}
	}
	ref := c.RootfsImageRef
	if ref == "" {
		ref = c.RootfsImageName
	}
	img, err := s.images.Pull(ctx, ref, image.Auth{}, nil)
	if err != nil {
		return image.Image{}, status.Errorf(codes.NotFound, "the checkpointed container stood on image %q, which is not on this node: %v", ref, err)
	}
	return img, nil
}

// restoreRootfs puts what the checkpointed container had changed into the new
// root file system, and returns where criu's images are.
func (s *Server) restoreRootfs(ctx context.Context, c store.Container, src source) (string, error) {
	dir := src.dir
	if src.archive != "" {
		dir = filepath.Join(s.layer(c.ID).Dir, "checkpoint")
		if err := os.Mkdir(dir, 0o700); err != nil {
			return "", fmt.Errorf("make room for the checkpoint: %w", err)
		}
		if err := checkpoint.Unpack(ctx, src.archive, dir); err != nil {
			return "", err
		}
		if _, err := checkpoint.Read(dir); err != nil {
			return "", err
		}
	}
	if err := checkpoint.ApplyRootfs(ctx, dir, s.layer(c.ID).Mount); err != nil {
		return "", err
	}
	return filepath.Join(dir, checkpoint.ImagesDir), nil
}
