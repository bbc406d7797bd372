package server

import (
	"context"
	"maps"
	"slices"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
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
	features := &runtimeapi.RuntimeHandlerFeatures{RecursiveReadOnlyMounts: s.cfg.Host.RecursiveReadOnly}
	resp := &runtimeapi.StatusResponse{
		Status: &runtimeapi.RuntimeStatus{Conditions: []*runtimeapi.RuntimeCondition{
			{Type: runtimeapi.RuntimeReady, Status: true}, net,
		}},
		RuntimeHandlers: []*runtimeapi.RuntimeHandler{{Name: "", Features: features}},
		Features:        &runtimeapi.RuntimeFeatures{SupplementalGroupsPolicy: true},
	}
	for _, name := range slices.Sorted(maps.Keys(s.cfg.Handlers)) {
		resp.RuntimeHandlers = append(resp.RuntimeHandlers, &runtimeapi.RuntimeHandler{Name: name, Features: features})
	}
	if req.GetVerbose() {
		info := map[string]any{
			"network": s.network.Name(), "runtime": s.cfg.Runtime.Binary,
			"runDir": s.cfg.RunDir, "stateDir": s.cfg.StateDir,
			"sandboxes": len(s.sandboxes.List()), "containers": len(s.containers.List()),
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
