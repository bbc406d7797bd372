package imagesvc

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/containerd/errdefs"

	"github.com/berth-io/berth/cri/image"
)

type store struct{ archive []byte }

func (s *store) Pull(_ context.Context, ref string, _ image.Auth, progress func(image.Progress)) (image.Image, error) {
	if ref == "missing" {
		return image.Image{}, errdefs.ErrNotFound
	}
	progress(image.Progress{Ref: ref, Digest: "sha256:1", Status: "downloading", Offset: 5, Total: 10})
	progress(image.Progress{Ref: ref, Status: "done"})
	return image.Image{ID: "sha256:2", Size: 7}, nil
}

func (s *store) Import(_ context.Context, r io.Reader) ([]image.Image, error) {
	var err error
	s.archive, err = io.ReadAll(r)
	return []image.Image{{ID: "sha256:3", RepoTags: []string{"a:1"}}}, err
}

func dial(t *testing.T, s *store) *grpc.ClientConn {
	t.Helper()
	listener := bufconn.Listen(1 << 20)
	server := grpc.NewServer()
	Register(server, s)
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(server.Stop)
	conn, err := grpc.NewClient("passthrough:x", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) { return listener.Dial() }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func pullAll(t *testing.T, conn *grpc.ClientConn, ref string) ([]map[string]any, error) {
	t.Helper()
	stream, err := conn.NewStream(context.Background(), &grpc.StreamDesc{ServerStreams: true}, PullMethod)
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.SendMsg(wrapperspb.String(ref)); err != nil {
		t.Fatal(err)
	}
	if err := stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	var all []map[string]any
	for {
		var m structpb.Struct
		err := stream.RecvMsg(&m)
		if errors.Is(err, io.EOF) {
			return all, nil
		}
		if err != nil {
			return all, err
		}
		all = append(all, m.AsMap())
	}
}

func TestAPullShowsItsProgressAndThenTheImage(t *testing.T) {
	conn := dial(t, &store{})
	all, err := pullAll(t, conn, "busybox")
	if err != nil {
		t.Fatal(err)
	}
	if len(all) != 3 || all[0]["status"] != "downloading" || all[0]["offset"] != 5.0 || all[2]["id"] != "sha256:2" {
		t.Errorf("got %v", all)
	}
	for ref, want := range map[string]codes.Code{"missing": codes.NotFound, "": codes.InvalidArgument} {
		if _, err := pullAll(t, conn, ref); status.Code(err) != want {
			t.Errorf("%q: %v", ref, err)
		}
	}
}

func TestAnImportedArchiveArrivesWhole(t *testing.T) {
	s := &store{}
	stream, err := dial(t, s).NewStream(context.Background(), &grpc.StreamDesc{ClientStreams: true}, ImportMethod)
	if err != nil {
		t.Fatal(err)
	}
	want := bytes.Repeat([]byte("archive "), 50_000)
	for rest := want; len(rest) > 0; {
		n := min(len(rest), 30_001)
		if err := stream.SendMsg(wrapperspb.Bytes(rest[:n])); err != nil {
			t.Fatal(err)
		}
		rest = rest[n:]
	}
	if err := stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	var m structpb.Struct
	if err := stream.RecvMsg(&m); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(s.archive, want) {
		t.Errorf("%d bytes arrived of %d", len(s.archive), len(want))
	}
	if got := m.AsMap()["images"].([]any)[0].(map[string]any)["tags"].([]any)[0]; got != "a:1" {
		t.Errorf("answer is %v", m.AsMap())
	}
}
