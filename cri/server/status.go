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
	resp := &runtimeapi.StatusResponse{
		Status: &runtimeapi.RuntimeStatus{Conditions: []*runtimeapi.RuntimeCondition{
			{Type: runtimeapi.RuntimeReady, Status: true}, net,
		}},
		Features: &runtimeapi.RuntimeFeatures{SupplementalGroupsPolicy: true, UserNamespacesHostNetwork: true},
	}
	noUserNamespaces := map[string]string{}
	for _, name := range append([]string{""}, slices.Sorted(maps.Keys(s.cfg.Handlers))...) {
		f := s.cfg.Features[name]
		resp.RuntimeHandlers = append(resp.RuntimeHandlers, &runtimeapi.RuntimeHandler{Name: name, Features: &runtimeapi.RuntimeHandlerFeatures{
			RecursiveReadOnlyMounts: f.RecursiveReadOnly, UserNamespaces: f.NoUserNamespaces == nil,
		}})
		if f.NoUserNamespaces != nil {
			noUserNamespaces[name] = f.NoUserNamespaces.Error()
		}
	}
	if req.GetVerbose() {
		var err error
		resp.Info, err = infoJSON(map[string]any{
			"network": s.network.Name(), "runtime": s.cfg.Runtime.Binary,
			"runDir": s.cfg.RunDir, "stateDir": s.cfg.StateDir,
			"sandboxes": len(s.sandboxes.List()), "containers": len(s.containers.List()),
			"noUserNamespaces": noUserNamespaces, // why, by handler
		})
		if err != nil {
			return nil, err
		}
	}
	return resp, nil
}

// RuntimeConfig tells the kubelet which cgroup driver to use.
func (s *Server) RuntimeConfig(context.Context, *runtimeapi.RuntimeConfigRequest) (*runtimeapi.RuntimeConfigResponse, error) {
	driver := runtimeapi.CgroupDriver_CGROUPFS
	if s.cfg.Host.SystemdCgroup {
		driver = runtimeapi.CgroupDriver_SYSTEMD
	}
	return &runtimeapi.RuntimeConfigResponse{Linux: &runtimeapi.LinuxRuntimeConfiguration{CgroupDriver: driver}}, nil
}

// UpdateRuntimeConfig takes the node's pod CIDR, and needs none: the network
// configuration says which addresses pods get.
func (s *Server) UpdateRuntimeConfig(_ context.Context, req *runtimeapi.UpdateRuntimeConfigRequest) (*runtimeapi.UpdateRuntimeConfigResponse, error) {
	s.log.Debug("pod CIDR of the node", "cidr", req.GetRuntimeConfig().GetNetworkConfig().GetPodCidr())
	return &runtimeapi.UpdateRuntimeConfigResponse{}, nil
}
