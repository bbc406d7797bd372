// Package podresources serves the PodResources API, by which monitoring agents
// and schedulers learn which CPUs, memory and devices containers have to
// themselves, and which devices of ResourceClaims (kubelet:
// apis/podresources/server_v1.go).
package podresources

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path"
	"path/filepath"

	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	v1 "k8s.io/api/core/v1"
	api "k8s.io/kubelet/pkg/apis/podresources/v1"

	"github.com/berth-io/berth/agent/resources"
	"github.com/berth-io/berth/agent/resources/devices"
	"github.com/berth-io/berth/agent/resources/dra"
	"github.com/berth-io/berth/agent/resources/memory"
)

// The kubelet's limits of calls a second (apis/podresources/constants.go).
const (
	callsPerSecond = 100
	callsAtOnce    = 10
)

// Pods knows the pods that are active on this node.
type Pods interface {
	ActivePods() []*v1.Pod
}

// Resources knows what containers have to themselves.
type Resources interface {
	Of(podUID, container string) resources.Container
	Allocatable() resources.Container
}

// Claims knows the containers' ResourceClaims.
type Claims interface {
	Of(pod *v1.Pod, container *v1.Container) ([]dra.Claim, error)
}

// Server answers on one socket.
type Server struct {
	api.UnimplementedPodResourcesListerServer
	socket    string
	pods      Pods
	resources Resources
	claims    Claims
	asked     func(method string, err error)
}

// New is for a socket, KUBELETDIR/pod-resources/kubelet.sock. Asked is told of
// each call by its name, without service.
func New(socket string, pods Pods, resources Resources, claims Claims, asked func(method string, err error)) *Server {
	return &Server{socket: socket, pods: pods, resources: resources, claims: claims, asked: asked}
}

// Run serves until ctx ends. A socket that an agent before left is replaced.
func (s *Server) Run(ctx context.Context) error {
	if err := os.MkdirAll(filepath.Dir(s.socket), 0o750); err != nil {
		return fmt.Errorf("make the directory of the PodResources API: %w", err)
	}
	if err := os.Remove(s.socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("replace the socket of the PodResources API: %w", err)
	}
	listener, err := net.Listen("unix", s.socket)
	if err != nil {
		return fmt.Errorf("serve the PodResources API: %w", err)
	}
	limit := rate.NewLimiter(callsPerSecond, callsAtOnce)
	server := grpc.NewServer(grpc.UnaryInterceptor(func(ctx context.Context, request any, call *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
		if !limit.Allow() {
			return nil, status.Error(codes.ResourceExhausted, "rejected by rate limit")
		}
		answer, err := handle(ctx, request)
		s.asked(path.Base(call.FullMethod), err)
		return answer, err
	}))
	api.RegisterPodResourcesListerServer(server, s)
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		<-ctx.Done()
		server.Stop()
		return nil
	})
	group.Go(func() error {
		if err := server.Serve(listener); err != nil && ctx.Err() == nil {
			return fmt.Errorf("serve the PodResources API: %w", err)
		}
		return nil
	})
	return group.Wait()
}

// List is all active pods.
func (s *Server) List(context.Context, *api.ListPodResourcesRequest) (*api.ListPodResourcesResponse, error) {
	answer := &api.ListPodResourcesResponse{}
	for _, pod := range s.pods.ActivePods() {
		answer.PodResources = append(answer.PodResources, s.pod(pod))
	}
	return answer, nil
}

// Get is one active pod.
func (s *Server) Get(_ context.Context, request *api.GetPodResourcesRequest) (*api.GetPodResourcesResponse, error) {
	for _, pod := range s.pods.ActivePods() {
		if pod.Name == request.GetPodName() && pod.Namespace == request.GetPodNamespace() {
			return &api.GetPodResourcesResponse{PodResources: s.pod(pod)}, nil
		}
	}
	return nil, fmt.Errorf("pod %s in namespace %s not found", request.GetPodName(), request.GetPodNamespace())
}

// GetAllocatableResources is what containers can have to themselves.
func (s *Server) GetAllocatableResources(context.Context, *api.AllocatableResourcesRequest) (*api.AllocatableResourcesResponse, error) {
	all := convert("", s.resources.Allocatable())
	return &api.AllocatableResourcesResponse{Devices: all.Devices, CpuIds: all.CpuIds, Memory: all.Memory}, nil
}

// pod leaves out init containers but sidecars: they are no more when somebody
// looks.
func (s *Server) pod(pod *v1.Pod) *api.PodResources {
	answer := &api.PodResources{Name: pod.Name, Namespace: pod.Namespace}
	for i := range pod.Spec.InitContainers {
		if c := &pod.Spec.InitContainers[i]; c.RestartPolicy != nil && *c.RestartPolicy == v1.ContainerRestartPolicyAlways {
			answer.Containers = append(answer.Containers, s.container(pod, c))
		}
	}
	for i := range pod.Spec.Containers {
		answer.Containers = append(answer.Containers, s.container(pod, &pod.Spec.Containers[i]))
	}
	return answer
}

// container has no claims while they are not prepared, as with the kubelet.
func (s *Server) container(pod *v1.Pod, c *v1.Container) *api.ContainerResources {
	answer := convert(c.Name, s.resources.Of(string(pod.UID), c.Name))
	claims, err := s.claims.Of(pod, c)
	if err != nil {
		return answer
	}
	for _, claim := range claims {
		answer.DynamicResources = append(answer.DynamicResources, convertClaim(claim))
	}
	return answer
}

func convertClaim(claim dra.Claim) *api.DynamicResource {
	to := &api.DynamicResource{ClaimName: claim.Name, ClaimNamespace: claim.Namespace}
	for _, d := range claim.Devices {
		r := &api.ClaimResource{DriverName: d.Driver, PoolName: d.Pool, DeviceName: d.Name, ShareId: (*string)(d.ShareID)}
		for _, id := range d.CDIDeviceIDs {
			r.CdiDevices = append(r.CdiDevices, &api.CDIDevice{Name: id})
		}
		to.ClaimResources = append(to.ClaimResources, r)
	}
	return to
}

func convert(name string, c resources.Container) *api.ContainerResources {
	answer := &api.ContainerResources{Name: name, Devices: convertDevices(c.Devices), Memory: convertMemory(c.Memory)}
	for _, id := range c.CPUs.List() {
		answer.CpuIds = append(answer.CpuIds, int64(id))
	}
	return answer
}

// convertDevices has an entry for each device and node, as the kubelet has.
func convertDevices(list []devices.Device) []*api.ContainerDevices {
	var answer []*api.ContainerDevices
	for _, d := range list {
		if len(d.Nodes) == 0 {
			answer = append(answer, &api.ContainerDevices{ResourceName: d.Resource, DeviceIds: []string{d.ID}})
		}
		for _, node := range d.Nodes {
			answer = append(answer, &api.ContainerDevices{ResourceName: d.Resource, DeviceIds: []string{d.ID},
				Topology: &api.TopologyInfo{Nodes: []*api.NUMANode{{ID: node}}}})
		}
	}
	return answer
}

func convertMemory(blocks []memory.Block) []*api.ContainerMemory {
	var answer []*api.ContainerMemory
	for _, b := range blocks {
		m := &api.ContainerMemory{MemoryType: string(b.Type), Size: b.Size, Topology: &api.TopologyInfo{}}
		for _, node := range b.NUMAAffinity {
			m.Topology.Nodes = append(m.Topology.Nodes, &api.NUMANode{ID: int64(node)})
		}
		answer = append(answer, m)
	}
	return answer
}
