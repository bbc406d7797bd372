package images

import (
	"errors"

	"google.golang.org/grpc/status"
)

// message is an error as the runtime said it, without gRPC's wrapping.
func message(err error) string { return plain(err).Error() }

// plain takes gRPC's wrapping off an error of the runtime. Others, nil among
// them, stay what they are.
func plain(err error) error {
	if s, ok := err.(interface{ GRPCStatus() *status.Status }); ok {
		return errors.New(s.GRPCStatus().Message())
	}
	return err
}
