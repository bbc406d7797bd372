package server

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-io/berth/cri/handler"
	"github.com/berth-io/berth/cri/spec"
	"github.com/berth-io/berth/cri/store"
)

// newHandler finds the OCI runtime of a request.
func (s *Server) newHandler(name string) (*handler.Runtime, error) {
	r, ok := s.cfg.Handlers.Get(name)
	if !ok {
		return nil, status.Errorf(codes.InvalidArgument, "runtime_handler: %q is not configured: name it in runtimes of the node's configuration", name)
	}
	if err := r.Installed(); err != nil {
		return nil, status.Error(codes.FailedPrecondition, err.Error())
	}
	return r, nil
}

// runtimeOf is the OCI runtime that a sandbox was made with, whichever is the
// default by now.
func (s *Server) runtimeOf(sb store.Sandbox) (*handler.Runtime, error) {
	name := sb.Runtime
	if name == "" {
		name = sb.Handler
	}
	r, ok := s.cfg.Handlers.Get(name)
	if !ok {
		return nil, fmt.Errorf("runtime handler %q of sandbox %s is not configured any more: put it back into runtimes of the node's configuration until its pods are removed", name, sb.ID)
	}
	return r, nil
}

// runtimeDelete makes whichever runtime has it forget a container, and kills
// what is left of it: for when there is no shim to do so.
func (s *Server) runtimeDelete(ctx context.Context, id string) error {
	var errs []error
	for _, r := range s.cfg.Handlers.All() {
		errs = append(errs, r.Delete(ctx, id))
	}
	return errors.Join(errs...)
}

// hostFor is the host as far as a runtime makes use of it. The runtime is
// asked only where the request depends on the answer.
func (s *Server) hostFor(ctx context.Context, r *handler.Runtime, config *runtimeapi.ContainerConfig) (spec.Host, error) {
	host := s.cfg.Host
	for _, m := range config.GetMounts() {
		if !m.GetRecursiveReadOnly() || !host.RecursiveReadOnly {
			continue
		}
		known, err := r.Features(ctx)
		if err != nil {
			return host, fmt.Errorf("find out whether runtime handler %s can make mounts read-only with what is below them: %w", r.Name, err)
		}
		host.RecursiveReadOnly = known.RecursiveReadOnly
	}
	return host, nil
}

// noUserNamespaces says why pods of a handler cannot have user namespaces here;
// nil: they can.
func (s *Server) noUserNamespaces(ctx context.Context, r *handler.Runtime) error {
	if s.cfg.NoIDMap != nil {
		return s.cfg.NoIDMap
	}
	known, err := r.Features(ctx)
	switch {
	case err != nil:
		return fmt.Errorf("find out what runtime handler %s can do: %w", r.Name, err)
	case !known.UserNamespaces:
		return fmt.Errorf("%s does not know user namespaces", r.Path)
	case !known.IDMappedMounts:
		return fmt.Errorf("%s cannot map the IDs of mounts (runc 1.2 can)", r.Path)
	}
	return nil
}
