package containerd

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"sync/atomic"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/berth-io/berth/tests/harness"
)

// eventless passes all requests to a runtime on but those for its events, which
// it does not know, as a runtime without such a stream, until it has learned them.
type eventless struct {
	runtime  *grpc.ClientConn
	refused  atomic.Int64
	learned  atomic.Bool
	followed atomic.Int64
	lists    atomic.Int64 // of all sandboxes
}

// serveEventless serves at a socket what the runtime at another does.
func serveEventless(t harness.TB, socket, runtime string) *eventless {
	t.Helper()
	conn, err := grpc.NewClient("unix://"+runtime, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatalf("%v", err)
	}
	t.Cleanup(func() { conn.Close() })
	e := &eventless{runtime: conn}
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatalf("%v", err)
	}
	server := grpc.NewServer(grpc.ForceServerCodec(asItIs{}), grpc.UnknownServiceHandler(e.pass))
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(server.Stop)
	return e
}

func (e *eventless) pass(_ any, client grpc.ServerStream) error {
	method, _ := grpc.MethodFromServerStream(client)
	if strings.HasSuffix(method, "/GetContainerEvents") {
		if !e.learned.Load() {
			e.refused.Add(1)
			return status.Error(codes.Unimplemented, "unknown method GetContainerEvents")
		}
		e.followed.Add(1)
	}
	ctx, cancel := context.WithCancel(client.Context())
	defer cancel()
	runtime, err := e.runtime.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, method, grpc.ForceCodec(asItIs{}))
	if err != nil {
		return err
	}
	var message []byte
	if err := client.RecvMsg(&message); err != nil {
		return err
	}
	if strings.HasSuffix(method, "/ListPodSandbox") && len(message) == 0 {
		e.lists.Add(1)
	}
	if err := runtime.SendMsg(&message); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if err := runtime.CloseSend(); err != nil {
		return err
	}
	for {
		switch err := runtime.RecvMsg(&message); {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
		if err := client.SendMsg(&message); err != nil {
			return err
		}
	}
}

// asItIs leaves messages encoded.
type asItIs struct{}

func (asItIs) Marshal(v any) ([]byte, error) { return *v.(*[]byte), nil }

func (asItIs) Unmarshal(data []byte, v any) error {
	*v.(*[]byte) = append([]byte(nil), data...)
	return nil
}

func (asItIs) Name() string { return "proto" }
