package probe

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
)

// grpcCheck asks the standard health service. The connection is made first,
// here: a gRPC client would retry a refused one until the limit, which keeps the
// caller from knowing why and from trying again sooner.
func grpcCheck(ctx context.Context, address, service string, limit time.Duration) outcome {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	dialer := net.Dialer{KeepAlive: -1}
	tcp, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		if ctx.Err() != nil {
			return outcome{failure, fmt.Sprintf("timeout: failed to connect service %q within %v: %v", address, limit, ctx.Err())}
		}
		return outcome{failure, fmt.Sprintf("error: failed to connect service at %q: %v", address, err)}
	}
	defer tcp.Close()
	once := make(chan net.Conn, 1)
	once <- tcp
	conn, err := grpc.NewClient("passthrough:///"+address,
		grpc.WithUserAgent("kube-probe/"+version),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithNoProxy(),
		grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) {
			select {
			case c := <-once:
				return c, nil
			default:
				return nil, errors.New("connection lost")
			}
		}))
	if err != nil {
		return outcome{failure, fmt.Sprintf("error: failed to connect service at %q: %v", address, err)}
	}
	defer conn.Close()

	res, err := healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{Service: service})
	switch status.Code(err) {
	case codes.OK:
	case codes.Unimplemented:
		return outcome{failure, "error: this server does not implement the grpc health protocol (grpc.health.v1.Health): " + status.Convert(err).Message()}
	case codes.DeadlineExceeded:
		return outcome{failure, fmt.Sprintf("timeout: health rpc did not complete within %v", limit)}
	default:
		return outcome{failure, fmt.Sprintf("error: health rpc probe failed: %v", err)}
	}
	if s := res.GetStatus(); s != healthpb.HealthCheckResponse_SERVING {
		return outcome{failure, fmt.Sprintf("service unhealthy (responded with %q)", s)}
	}
	return outcome{success, "service healthy"}
}
