package server

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/containerd/errdefs/pkg/errgrpc"

	"github.com/berth-io/berth/cri/image"
)

// PullImage pulls an image; the answer is its ID.
func (s *Server) PullImage(ctx context.Context, req *runtimeapi.PullImageRequest) (*runtimeapi.PullImageResponse, error) {
	ref := req.GetImage().GetImage()
	if ref == "" {
		return nil, status.Error(codes.InvalidArgument, "image.image: it is empty")
	}
	// Images are the same for all handlers.
	if _, err := s.newHandler(req.GetImage().GetRuntimeHandler()); err != nil {
		return nil, err
	}
	a := req.GetAuth()
	img, err := s.images.Pull(ctx, ref, image.Auth{
		Username: a.GetUsername(), Password: a.GetPassword(), Auth: a.GetAuth(),
		ServerAddress: a.GetServerAddress(), IdentityToken: a.GetIdentityToken(), RegistryToken: a.GetRegistryToken(),
	}, nil)
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	return &runtimeapi.PullImageResponse{ImageRef: img.ID}, nil
}

// ListImages lists the images, or the one that the filter names.
func (s *Server) ListImages(_ context.Context, req *runtimeapi.ListImagesRequest) (*runtimeapi.ListImagesResponse, error) {
	resp := &runtimeapi.ListImagesResponse{}
	if ref := req.GetFilter().GetImage().GetImage(); ref != "" {
		if img, ok := s.images.Get(ref); ok {
			resp.Images = append(resp.Images, criImage(img))
		}
		return resp, nil
	}
	for _, img := range s.images.List() {
		resp.Images = append(resp.Images, criImage(img))
	}
	return resp, nil
}

// ImageStatus has no image in its answer when there is none. Verbose, it has
// what the image's configuration and manifest say, the configuration under the
// name that containerd has for it.
func (s *Server) ImageStatus(ctx context.Context, req *runtimeapi.ImageStatusRequest) (*runtimeapi.ImageStatusResponse, error) {
	img, ok := s.images.Get(req.GetImage().GetImage())
	if !ok {
		return &runtimeapi.ImageStatusResponse{}, nil
	}
	resp := &runtimeapi.ImageStatusResponse{Image: criImage(img)}
	if req.GetVerbose() {
		described, err := s.images.Describe(ctx, img.ID)
		if err != nil {
			return nil, errgrpc.ToGRPC(fmt.Errorf("read image %s: %w", img.ID, err))
		}
		data, err := json.Marshal(map[string]any{
			"chainID": img.ChainID, "imageSpec": described.Config, "manifest": described.Manifest, "artifact": img.Artifact,
		})
		if err != nil {
			return nil, fmt.Errorf("encode the information: %w", err)
		}
		resp.Info = map[string]string{"info": string(data)}
	}
	return resp, nil
}

// RemoveImage removes an image with all its names. Containers that stand on it
// keep its layers.
func (s *Server) RemoveImage(ctx context.Context, req *runtimeapi.RemoveImageRequest) (*runtimeapi.RemoveImageResponse, error) {
	ref := req.GetImage().GetImage()
	if err := s.images.Remove(ctx, ref); err != nil {
		return nil, errgrpc.ToGRPC(fmt.Errorf("remove image %s: %w", ref, err))
	}
	return &runtimeapi.RemoveImageResponse{}, nil
}

// ImageFsInfo tells how much room the images take.
func (s *Server) ImageFsInfo(ctx context.Context, _ *runtimeapi.ImageFsInfoRequest) (*runtimeapi.ImageFsInfoResponse, error) {
	u, err := s.images.Usage(ctx)
	if err != nil {
		return nil, fmt.Errorf("measure the image file system: %w", err)
	}
	fs := []*runtimeapi.FilesystemUsage{{
		// As true now as when it was measured. The kubelet makes room once for
		// each observation: with the same one it would not try again.
		Timestamp:  time.Now().UnixNano(),
		FsId:       &runtimeapi.FilesystemIdentifier{Mountpoint: u.Path},
		UsedBytes:  &runtimeapi.UInt64Value{Value: u.Bytes},
		InodesUsed: &runtimeapi.UInt64Value{Value: u.Inodes},
	}}
	return &runtimeapi.ImageFsInfoResponse{ImageFilesystems: fs, ContainerFilesystems: fs}, nil
}

func criImage(img image.Image) *runtimeapi.Image {
	i := &runtimeapi.Image{
		Id: img.ID, RepoTags: img.RepoTags, RepoDigests: img.RepoDigests,
		Size: uint64(img.Size), Pinned: img.Pinned,
		Spec: &runtimeapi.ImageSpec{Image: img.ID},
	}
	user, _, _ := strings.Cut(img.User, ":")
	if uid, err := strconv.ParseInt(user, 10, 64); err == nil {
		i.Uid = &runtimeapi.Int64Value{Value: uid}
	} else {
		i.Username = user
	}
	return i
}
