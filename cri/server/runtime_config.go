package server

import (
	"context"
	"fmt"
	"net/netip"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// RuntimeConfig tells the kubelet which cgroup driver to use.
func (s *Server) RuntimeConfig(context.Context, *runtimeapi.RuntimeConfigRequest) (*runtimeapi.RuntimeConfigResponse, error) {
	driver := runtimeapi.CgroupDriver_CGROUPFS
	if s.cfg.Host.SystemdCgroup {
		driver = runtimeapi.CgroupDriver_SYSTEMD
	}
	return &runtimeapi.RuntimeConfigResponse{Linux: &runtimeapi.LinuxRuntimeConfiguration{CgroupDriver: driver}}, nil
}

// UpdateRuntimeConfig takes the pod subnets that the cluster assigned to this
// node. The kubelet calls it once it knows them, and whenever it starts. An
// empty request changes nothing.
func (s *Server) UpdateRuntimeConfig(_ context.Context, req *runtimeapi.UpdateRuntimeConfigRequest) (*runtimeapi.UpdateRuntimeConfigResponse, error) {
	text := req.GetRuntimeConfig().GetNetworkConfig().GetPodCidr()
	if text == "" {
		return &runtimeapi.UpdateRuntimeConfigResponse{}, nil
	}
	cidrs, err := parsePodCIDRs(text)
	if err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "runtime_config.network_config.pod_cidr: %v", err)
	}
	if s.cfg.PodCIDRs == nil {
		s.log.Info("pod subnets of the node are not used", "podCIDRs", cidrs)
		return &runtimeapi.UpdateRuntimeConfigResponse{}, nil
	}
	before, _ := s.cfg.PodCIDRs.Assigned()
	if err := s.cfg.PodCIDRs.Assign(cidrs); err != nil {
		return nil, fmt.Errorf("assign the pod subnets %s: %w", text, err)
	}
	if after, use := s.cfg.PodCIDRs.Assigned(); fmt.Sprint(before) != fmt.Sprint(after) {
		s.log.Info("pod subnets assigned", "podCIDRs", after, "use", use)
	}
	return &runtimeapi.UpdateRuntimeConfigResponse{}, nil
}

// parsePodCIDRs reads what the kubelet joins with commas: one subnet, or one
// of each family.
func parsePodCIDRs(text string) ([]netip.Prefix, error) {
	var cidrs []netip.Prefix
	for _, part := range strings.Split(text, ",") {
		p, err := netip.ParsePrefix(strings.TrimSpace(part))
		switch {
		case err != nil:
			return nil, fmt.Errorf("%q is not a subnet such as 10.85.0.0/16", part)
		case p.Masked() != p:
			return nil, fmt.Errorf("%s has host bits set: the subnet is %s", p, p.Masked())
		case p.Addr().Is4In6():
			return nil, fmt.Errorf("%s is IPv4 written as IPv6", p)
		case p.Addr().BitLen()-p.Bits() < 2:
			return nil, fmt.Errorf("%s has no room for pods", p)
		case len(cidrs) == 2, len(cidrs) == 1 && cidrs[0].Addr().Is4() == p.Addr().Is4():
			return nil, fmt.Errorf("%s is one too many: one subnet of each family is allowed", p)
		}
		cidrs = append(cidrs, p)
	}
	return cidrs, nil
}
