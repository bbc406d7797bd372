package server

import (
	"context"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-io/berth/cri/handler"
)

// Name and versions of this runtime, as Version returns them. RuntimeVersion is
// that of the build.
const (
	runtimeName = "berth"
	apiVersion  = "v1"
)

// Version tells who answers.
func (s *Server) Version(context.Context, *runtimeapi.VersionRequest) (*runtimeapi.VersionResponse, error) {
	return &runtimeapi.VersionResponse{
		Version:     "0.1.0", // of the kubelet's runtime API, the same for all runtimes
		RuntimeName: runtimeName, RuntimeVersion: s.cfg.Version, RuntimeApiVersion: apiVersion,
	}, nil
}

// Status tells whether the runtime and the network are ready, and what the
// runtime handlers can do.
func (s *Server) Status(ctx context.Context, req *runtimeapi.StatusRequest) (*runtimeapi.StatusResponse, error) {
	net := &runtimeapi.RuntimeCondition{Type: runtimeapi.NetworkReady, Status: true}
	if err := s.network.Status(ctx); err != nil {
		net.Status, net.Reason, net.Message = false, "NetworkPluginNotReady", err.Error()
	}
	runtime := &runtimeapi.RuntimeCondition{Type: runtimeapi.RuntimeReady, Status: true}
	if err := s.cfg.Handlers.Default().Installed(); err != nil {
		runtime.Status, runtime.Reason, runtime.Message = false, "RuntimeNotInstalled", err.Error()
	}
	resp := &runtimeapi.StatusResponse{
		Status:          &runtimeapi.RuntimeStatus{Conditions: []*runtimeapi.RuntimeCondition{runtime, net}},
		RuntimeHandlers: s.handlersStatus(ctx),
		Features:        &runtimeapi.RuntimeFeatures{SupplementalGroupsPolicy: true, UserNamespacesHostNetwork: true},
	}
	if req.GetVerbose() {
		info := map[string]any{
			"network": s.network.Name(), "defaultRuntime": s.cfg.Handlers.Default().Name, "runtimes": s.handlersInfo(),
			"runDir": s.cfg.RunDir, "stateDir": s.cfg.StateDir,
			"sandboxes": len(s.sandboxes.List()), "containers": len(s.containers.List()),
			"noUserNamespaces": s.handlersWithoutUserNamespaces(ctx),
		}
		if s.cfg.PodCIDRs != nil {
			info["podCIDRs"], info["podCIDRsUse"] = s.cfg.PodCIDRs.Assigned()
		}
		var err error
		if resp.Info, err = infoJSON(info); err != nil {
			return nil, err
		}
	}
	return resp, nil
}

// handlersStatus has the default handler under its own name and the empty one.
func (s *Server) handlersStatus(ctx context.Context) []*runtimeapi.RuntimeHandler {
	standard := s.cfg.Handlers.Default()
	list := []*runtimeapi.RuntimeHandler{{Name: "", Features: s.handlerFeatures(ctx, standard)}}
	for _, r := range s.cfg.Handlers.All() {
		list = append(list, &runtimeapi.RuntimeHandler{Name: r.Name, Features: s.handlerFeatures(ctx, r)})
	}
	return list
}

// handlerFeatures are what both the host and the runtime can do. Of a runtime
// that does not say, nothing is promised.
func (s *Server) handlerFeatures(ctx context.Context, r *handler.Runtime) *runtimeapi.RuntimeHandlerFeatures {
	known, err := r.Features(ctx)
	if err != nil {
		s.log.Debug("features of a runtime handler are not known, none are reported", "handler", r.Name, "error", err)
	}
	return &runtimeapi.RuntimeHandlerFeatures{
		RecursiveReadOnlyMounts: s.cfg.Host.RecursiveReadOnly && known.RecursiveReadOnly,
		UserNamespaces:          s.noUserNamespaces(ctx, r) == nil,
	}
}

// handlersWithoutUserNamespaces tells why, by handler.
func (s *Server) handlersWithoutUserNamespaces(ctx context.Context) map[string]string {
	why := map[string]string{}
	for _, r := range s.cfg.Handlers.All() {
		if err := s.noUserNamespaces(ctx, r); err != nil {
			why[r.Name] = err.Error()
		}
	}
	return why
}

// handlersInfo is how each runtime is called.
func (s *Server) handlersInfo() map[string]handler.Config {
	info := map[string]handler.Config{}
	for _, r := range s.cfg.Handlers.All() {
		info[r.Name] = r.Config
	}
	return info
}
