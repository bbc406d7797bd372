package fakecri

import (
	"context"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// HasImages puts images on the machine.
func (r *Runtime) HasImages(refs ...string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, ref := range refs {
		r.images[ref] = image(ref)
	}
}

// Offers makes images that can be pulled.
func (r *Runtime) Offers(refs ...string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, ref := range refs {
		r.registry[ref] = true
	}
}

func image(ref string) *runtimeapi.Image {
	return &runtimeapi.Image{Id: "sha256:" + ref, RepoTags: []string{ref}, Size: 1 << 20, Spec: &runtimeapi.ImageSpec{Image: ref}}
}

// find takes a reference or an ID.
func (r *Runtime) find(ref string) *runtimeapi.Image {
	for _, i := range r.images {
		if i.GetId() == ref || i.GetSpec().GetImage() == ref {
			return i
		}
	}
	return nil
}

func (r *Runtime) has(ref string) bool { return r.find(ref) != nil }

// ImageStatus answers without an image when there is none.
func (r *Runtime) ImageStatus(ctx context.Context, req *runtimeapi.ImageStatusRequest, _ ...grpc.CallOption) (*runtimeapi.ImageStatusResponse, error) {
	return do(ctx, r, "ImageStatus", req, func() (*runtimeapi.ImageStatusResponse, error) {
		r.mu.Lock()
		defer r.mu.Unlock()
		return &runtimeapi.ImageStatusResponse{Image: r.find(req.GetImage().GetImage())}, nil
	})
}

// PullImage gets what Offers offers.
func (r *Runtime) PullImage(ctx context.Context, req *runtimeapi.PullImageRequest, _ ...grpc.CallOption) (*runtimeapi.PullImageResponse, error) {
	return do(ctx, r, "PullImage", req, func() (*runtimeapi.PullImageResponse, error) {
		r.mu.Lock()
		defer r.mu.Unlock()
		ref := req.GetImage().GetImage()
		r.log("PullImage %s", ref)
		if !r.registry[ref] {
			return nil, status.Errorf(codes.NotFound, "%s: not found", ref)
		}
		r.images[ref] = image(ref)
		return &runtimeapi.PullImageResponse{ImageRef: r.images[ref].GetId()}, nil
	})
}

// ListImages lists what is there.
func (r *Runtime) ListImages(ctx context.Context, req *runtimeapi.ListImagesRequest, _ ...grpc.CallOption) (*runtimeapi.ListImagesResponse, error) {
	return do(ctx, r, "ListImages", req, func() (*runtimeapi.ListImagesResponse, error) {
		r.mu.Lock()
		defer r.mu.Unlock()
		resp := &runtimeapi.ListImagesResponse{}
		for _, i := range r.images {
			resp.Images = append(resp.Images, i)
		}
		return resp, nil
	})
}

// RemoveImage may be repeated.
func (r *Runtime) RemoveImage(ctx context.Context, req *runtimeapi.RemoveImageRequest, _ ...grpc.CallOption) (*runtimeapi.RemoveImageResponse, error) {
	return do(ctx, r, "RemoveImage", req, func() (*runtimeapi.RemoveImageResponse, error) {
		r.mu.Lock()
		defer r.mu.Unlock()
		if i := r.find(req.GetImage().GetImage()); i != nil {
			delete(r.images, i.GetSpec().GetImage())
		}
		return &runtimeapi.RemoveImageResponse{}, nil
	})
}

// ImageFsInfo says that images use what their sizes say.
func (r *Runtime) ImageFsInfo(ctx context.Context, req *runtimeapi.ImageFsInfoRequest, _ ...grpc.CallOption) (*runtimeapi.ImageFsInfoResponse, error) {
	return do(ctx, r, "ImageFsInfo", req, func() (*runtimeapi.ImageFsInfoResponse, error) {
		r.mu.Lock()
		defer r.mu.Unlock()
		var used uint64
		for _, i := range r.images {
			used += i.GetSize()
		}
		return &runtimeapi.ImageFsInfoResponse{ImageFilesystems: []*runtimeapi.FilesystemUsage{{
			Timestamp: time.Now().UnixNano(), FsId: &runtimeapi.FilesystemIdentifier{Mountpoint: "/"},
			UsedBytes: &runtimeapi.UInt64Value{Value: used},
		}}}, nil
	})
}
