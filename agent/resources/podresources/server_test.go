package podresources

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/testing/protocmp"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	api "k8s.io/kubelet/pkg/apis/podresources/v1"
	"k8s.io/utils/cpuset"

	"github.com/berth-io/berth/agent/resources"
	"github.com/berth-io/berth/agent/resources/devices"
	"github.com/berth-io/berth/agent/resources/dra"
	"github.com/berth-io/berth/agent/resources/memory"
)

type fakeNode struct{}

func (fakeNode) ActivePods() []*v1.Pod {
	always := v1.ContainerRestartPolicyAlways
	return []*v1.Pod{{ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "n", UID: "u"}, Spec: v1.PodSpec{
		InitContainers: []v1.Container{{Name: "init"}, {Name: "side", RestartPolicy: &always}},
		Containers:     []v1.Container{{Name: "app"}}}}}
}

func (fakeNode) Of(uid, container string) resources.Container {
	if uid != "u" || container != "app" {
		return resources.Container{}
	}
	return resources.Container{
		CPUs:    cpuset.New(3, 1),
		Memory:  []memory.Block{{NUMAAffinity: []int{0, 1}, Type: "memory", Size: 7}},
		Devices: []devices.Device{{Resource: "e/g", ID: "a", Nodes: []int64{0, 1}}, {Resource: "e/g", ID: "b"}},
	}
}

func (fakeNode) Allocatable() resources.Container {
	return resources.Container{CPUs: cpuset.New(1, 2), Devices: []devices.Device{{Resource: "e/g", ID: "b"}}}
}

// fakeClaims has a claim for the container app, and one for side that is not
// prepared.
type fakeClaims struct{}

func (fakeClaims) Of(pod *v1.Pod, container *v1.Container) ([]dra.Claim, error) {
	if pod.UID != "u" || container.Name != "app" {
		return nil, errors.New("unable to get information for ResourceClaim c")
	}
	share := types.UID("s")
	return []dra.Claim{{Namespace: "n", Name: "c", Devices: []dra.Device{
		{Driver: "d", Pool: "p", Name: "one", ShareID: &share, CDIDeviceIDs: []string{"d/x=1", "d/x=2"}},
		{Driver: "d", Pool: "p", Name: "two"},
	}}}, nil
}

// client returns a client of a server, and the calls that the server tells of.
func client(t *testing.T) (c api.PodResourcesListerClient, asked chan string) {
	asked = make(chan string, 1000)
	t.Helper()
	socket := filepath.Join(t.TempDir(), "pod-resources", "kubelet.sock")
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	tell := func(method string, err error) { asked <- fmt.Sprint(method, " ", err != nil) }
	go func() { done <- New(socket, fakeNode{}, fakeNode{}, fakeClaims{}, tell).Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.WaitForReady(true)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return api.NewPodResourcesListerClient(conn), asked
}

func node(id int64) *api.TopologyInfo { return &api.TopologyInfo{Nodes: []*api.NUMANode{{ID: id}}} }

func TestPodsAreListedWithWhatTheyHave(t *testing.T) {
	c, asked := client(t)
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	want := &api.PodResources{Name: "p", Namespace: "n", Containers: []*api.ContainerResources{
		{Name: "side"},
		{Name: "app", CpuIds: []int64{1, 3},
			Memory: []*api.ContainerMemory{{MemoryType: "memory", Size: 7, Topology: &api.TopologyInfo{Nodes: []*api.NUMANode{{ID: 0}, {ID: 1}}}}},
			Devices: []*api.ContainerDevices{{ResourceName: "e/g", DeviceIds: []string{"a"}, Topology: node(0)},
				{ResourceName: "e/g", DeviceIds: []string{"a"}, Topology: node(1)}, {ResourceName: "e/g", DeviceIds: []string{"b"}}},
			DynamicResources: []*api.DynamicResource{{ClaimNamespace: "n", ClaimName: "c", ClaimResources: []*api.ClaimResource{
				{DriverName: "d", PoolName: "p", DeviceName: "one", ShareId: new("s"), CdiDevices: []*api.CDIDevice{{Name: "d/x=1"}, {Name: "d/x=2"}}},
				{DriverName: "d", PoolName: "p", DeviceName: "two"},
			}}}}}}
	list, err := c.List(ctx, &api.ListPodResourcesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]*api.PodResources{want}, list.GetPodResources(), protocmp.Transform()); diff != "" {
		t.Errorf("list (-want +got):\n%s", diff)
	}
	one, err := c.Get(ctx, &api.GetPodResourcesRequest{PodName: "p", PodNamespace: "n"})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, one.GetPodResources(), protocmp.Transform()); diff != "" {
		t.Errorf("get (-want +got):\n%s", diff)
	}
	if _, err := c.Get(ctx, &api.GetPodResourcesRequest{PodName: "x", PodNamespace: "n"}); status.Convert(err).Message() != "pod x in namespace n not found" {
		t.Errorf("a pod that is not there: %v", err)
	}
	all, err := c.GetAllocatableResources(ctx, &api.AllocatableResourcesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"List false", "Get false", "Get true", "GetAllocatableResources false"} {
		if got := <-asked; got != want {
			t.Errorf("it tells of %q, not of %q", got, want)
		}
	}
	if diff := cmp.Diff(&api.AllocatableResourcesResponse{CpuIds: []int64{1, 2}, Devices: []*api.ContainerDevices{{ResourceName: "e/g", DeviceIds: []string{"b"}}}}, all, protocmp.Transform()); diff != "" {
		t.Errorf("allocatable (-want +got):\n%s", diff)
	}
}

func TestAClientThatAsksWithoutEndIsSlowedDown(t *testing.T) {
	c, _ := client(t)
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	for {
		if _, err := c.List(ctx, &api.ListPodResourcesRequest{}); status.Code(err) == codes.ResourceExhausted {
			return
		} else if err != nil {
			t.Fatal(err)
		}
	}
}
