// Package imagesvc serves what the CRI's image service has no words for: a
// pull that shows its progress, and images from an archive. It is a small gRPC
// service of well-known types on the CRI's socket:
//
//	service berth.cri.v1.Images {
//	  // Pull sends the progress of each layer, and the image at last:
//	  // {ref, digest, status, offset, total}, then {id, size}.
//	  rpc Pull(google.protobuf.StringValue) returns (stream google.protobuf.Struct);
//	  // Import takes a docker or OCI archive in pieces, and names its images:
//	  // {images: [{id, tags: []}]}.
//	  rpc Import(stream google.protobuf.BytesValue) returns (google.protobuf.Struct);
//	}
package imagesvc

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/containerd/errdefs/pkg/errgrpc"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/berth-io/berth/cri/image"
)

// Name of the service.
const Name = "berth.cri.v1.Images"

// Methods of the service, as a client calls them.
const (
	PullMethod   = "/" + Name + "/Pull"
	ImportMethod = "/" + Name + "/Import"
)

// Images is what the service offers.
type Images interface {
	Pull(ctx context.Context, ref string, auth image.Auth, progress func(image.Progress)) (image.Image, error)
	Import(ctx context.Context, archive io.Reader) ([]image.Image, error)
}

// Register adds the service to a gRPC server.
func Register(r grpc.ServiceRegistrar, images Images) {
	r.RegisterService(&grpc.ServiceDesc{
		ServiceName: Name,
		HandlerType: (*Images)(nil),
		Streams: []grpc.StreamDesc{
			{StreamName: "Pull", Handler: pull, ServerStreams: true},
			{StreamName: "Import", Handler: importArchive, ClientStreams: true},
		},
	}, images)
}

// progressBacklog is how many steps a slow client may be behind; it then
// misses some, and the pull goes on at its own speed.
const progressBacklog = 256

func pull(srv any, stream grpc.ServerStream) error {
	var ref wrapperspb.StringValue
	if err := stream.RecvMsg(&ref); err != nil {
		return err
	}
	if ref.GetValue() == "" {
		return status.Error(codes.InvalidArgument, "the image reference is empty")
	}
	type outcome struct {
		img image.Image
		err error
	}
	steps := make(chan image.Progress, progressBacklog)
	done := make(chan outcome, 1)
	go func() {
		img, err := srv.(Images).Pull(stream.Context(), ref.GetValue(), image.Auth{}, func(p image.Progress) {
			select {
			case steps <- p:
			default:
			}
		})
		done <- outcome{img, err}
	}()
	for {
		select {
		case p := <-steps:
			if err := send(stream, progressFields(p)); err != nil {
				return err
			}
		case end := <-done:
			for len(steps) > 0 {
				if err := send(stream, progressFields(<-steps)); err != nil {
					return err
				}
			}
			if end.err != nil {
				return errgrpc.ToGRPC(end.err)
			}
			return send(stream, map[string]any{"id": end.img.ID, "size": end.img.Size})
		}
	}
}

func progressFields(p image.Progress) map[string]any {
	return map[string]any{
		"ref": p.Ref, "digest": p.Digest, "status": p.Status, "offset": p.Offset, "total": p.Total,
	}
}

func send(stream grpc.ServerStream, fields map[string]any) error {
	m, err := structpb.NewStruct(fields)
	if err != nil {
		return fmt.Errorf("encode an answer: %w", err)
	}
	return stream.SendMsg(m)
}

func importArchive(srv any, stream grpc.ServerStream) error {
	images, err := srv.(Images).Import(stream.Context(), &archive{stream: stream})
	if err != nil {
		return errgrpc.ToGRPC(err)
	}
	list := []any{}
	for _, img := range images {
		tags := []any{}
		for _, t := range img.RepoTags {
			tags = append(tags, t)
		}
		list = append(list, map[string]any{"id": img.ID, "tags": tags})
	}
	return send(stream, map[string]any{"images": list})
}

// archive reads the pieces of an archive as one.
type archive struct {
	stream grpc.ServerStream
	piece  []byte
}

func (a *archive) Read(p []byte) (int, error) {
	for len(a.piece) == 0 {
		var next wrapperspb.BytesValue
		if err := a.stream.RecvMsg(&next); err != nil {
			if errors.Is(err, io.EOF) {
				return 0, io.EOF
			}
			return 0, err
		}
		a.piece = next.GetValue()
	}
	n := copy(p, a.piece)
	a.piece = a.piece[n:]
	return n, nil
}
