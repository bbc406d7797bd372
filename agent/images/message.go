package images

import "google.golang.org/grpc/status"

// message is an error as the runtime said it, without gRPC's wrapping.
func message(err error) string {
	if s, ok := status.FromError(err); ok {
		return s.Message()
	}
	return err.Error()
}
