package devices

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	pluginapi "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"

	"github.com/berth-io/berth/agent/resources/numa"
)

const gpu = "example.com/gpu"

// fakePlugin is a device plugin behind a real socket.
type fakePlugin struct {
	pluginapi.UnimplementedDevicePluginServer
	server    *grpc.Server
	options   *pluginapi.DevicePluginOptions
	devices   chan []*pluginapi.Device
	stop      chan struct{}
	preferred func(*pluginapi.ContainerPreferredAllocationRequest) []string

	mu        sync.Mutex
	allocated [][]string
	started   [][]string
}

func (f *fakePlugin) GetDevicePluginOptions(context.Context, *pluginapi.Empty) (*pluginapi.DevicePluginOptions, error) {
	return f.options, nil
}

func (f *fakePlugin) ListAndWatch(_ *pluginapi.Empty, stream grpc.ServerStreamingServer[pluginapi.ListAndWatchResponse]) error {
	for {
		select {
		case <-f.stop:
			return nil
		case <-stream.Context().Done():
			return nil
		case list := <-f.devices:
			if err := stream.Send(&pluginapi.ListAndWatchResponse{Devices: list}); err != nil {
				return err
			}
		}
	}
}

func (f *fakePlugin) Allocate(_ context.Context, request *pluginapi.AllocateRequest) (*pluginapi.AllocateResponse, error) {
	ids := request.GetContainerRequests()[0].GetDevicesIds()
	f.mu.Lock()
	f.allocated = append(f.allocated, ids)
	f.mu.Unlock()
	answer := &pluginapi.ContainerAllocateResponse{
		Envs:        map[string]string{"GPUS": strings.Join(ids, ",")},
		Mounts:      []*pluginapi.Mount{{HostPath: "/host/lib", ContainerPath: "/lib/gpu", ReadOnly: true}},
		Annotations: map[string]string{"gpu": "yes"},
		CdiDevices:  []*pluginapi.CDIDevice{{Name: "example.com/gpu=" + ids[0]}},
	}
	for _, id := range ids {
		answer.Devices = append(answer.Devices, &pluginapi.DeviceSpec{HostPath: "/dev/" + id, ContainerPath: "/dev/" + id, Permissions: "rw"})
	}
	return &pluginapi.AllocateResponse{ContainerResponses: []*pluginapi.ContainerAllocateResponse{answer}}, nil
}

func (f *fakePlugin) GetPreferredAllocation(_ context.Context, request *pluginapi.PreferredAllocationRequest) (*pluginapi.PreferredAllocationResponse, error) {
	return &pluginapi.PreferredAllocationResponse{ContainerResponses: []*pluginapi.ContainerPreferredAllocationResponse{
		{DeviceIDs: f.preferred(request.GetContainerRequests()[0])}}}, nil
}

func (f *fakePlugin) PreStartContainer(_ context.Context, request *pluginapi.PreStartContainerRequest) (*pluginapi.PreStartContainerResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.started = append(f.started, request.GetDevicesIds())
	return &pluginapi.PreStartContainerResponse{}, nil
}

func (f *fakePlugin) kill() { close(f.stop); f.server.Stop() }

// node is a Plugins that runs.
type node struct {
	t        *testing.T
	dir      string
	plugins  *Plugins
	capacity chan struct{}
	health   chan []string
	now      *clock
	stop     func()
}

type clock struct {
	mu sync.Mutex
	at time.Time
}

func (c *clock) Now() time.Time { c.mu.Lock(); defer c.mu.Unlock(); return c.at }
func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = c.at.Add(d)
}

func startNode(t *testing.T, dir string) *node {
	t.Helper()
	n := &node{t: t, dir: dir, capacity: make(chan struct{}, 100), health: make(chan []string, 100), now: &clock{at: time.Unix(1000, 0)}}
	var err error
	n.plugins, err = New(Config{Dir: dir, Nodes: []int{0, 1}, Log: slog.New(slog.NewTextHandler(io.Discard, nil)), Now: n.now.Now,
		CapacityChanged: func() { n.capacity <- struct{}{} }, HealthChanged: func(uids []string) { n.health <- uids }})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- n.plugins.Run(ctx) }()
	n.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(n.stop)
	// Sockets that are there before are removed: plugins come after.
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
		if _, err := os.Stat(filepath.Join(dir, "kubelet.sock")); err == nil {
			return n
		}
		if time.Now().After(deadline) {
			t.Fatal("kubelet.sock was not made")
		}
	}
}

// register starts a plugin and registers it as plugins do.
func (n *node) register(name string, options *pluginapi.DevicePluginOptions, list ...*pluginapi.Device) *fakePlugin {
	n.t.Helper()
	f := &fakePlugin{server: grpc.NewServer(), options: options, devices: make(chan []*pluginapi.Device, 10), stop: make(chan struct{})}
	socket := fmt.Sprintf("p%d.sock", time.Now().UnixNano())
	listener, err := net.Listen("unix", filepath.Join(n.dir, socket))
	if err != nil {
		n.t.Fatal(err)
	}
	pluginapi.RegisterDevicePluginServer(f.server, f)
	go func() { _ = f.server.Serve(listener) }()
	n.t.Cleanup(f.server.Stop)
	if err := n.call(&pluginapi.RegisterRequest{Version: "v1beta1", Endpoint: socket, ResourceName: name}); err != nil {
		n.t.Fatal(err)
	}
	n.tell(f, list...)
	return f
}

func (n *node) call(request *pluginapi.RegisterRequest) error {
	conn, err := grpc.NewClient("unix://"+filepath.Join(n.dir, "kubelet.sock"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		n.t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	_, err = pluginapi.NewRegistrationClient(conn).Register(ctx, request, grpc.WaitForReady(true))
	return err
}

// tell sends the plugin's devices and waits until they are taken in.
func (n *node) tell(f *fakePlugin, list ...*pluginapi.Device) {
	n.t.Helper()
	f.devices <- list
	n.waitCapacity()
}

func (n *node) waitCapacity() {
	n.t.Helper()
	select {
	case <-n.capacity:
	case <-time.After(30 * time.Second):
		n.t.Fatal("nothing was told of the capacity")
	}
}

func device(id, health string, nodes ...int64) *pluginapi.Device {
	d := &pluginapi.Device{ID: id, Health: health}
	if len(nodes) > 0 {
		d.Topology = &pluginapi.TopologyInfo{}
		for _, n := range nodes {
			d.Topology.Nodes = append(d.Topology.Nodes, &pluginapi.NUMANode{ID: n})
		}
	}
	return d
}

func devicesOf(ids ...string) []*pluginapi.Device {
	var list []*pluginapi.Device
	for _, id := range ids {
		list = append(list, device(id, pluginapi.Healthy))
	}
	return list
}

func container(name string, pairs ...string) v1.Container {
	limits := v1.ResourceList{"cpu": resource.MustParse("1")}
	for i := 0; i < len(pairs); i += 2 {
		limits[v1.ResourceName(pairs[i])] = resource.MustParse(pairs[i+1])
	}
	return v1.Container{Name: name, Resources: v1.ResourceRequirements{Limits: limits}}
}

func pod(uid string, containers ...v1.Container) *v1.Pod {
	return &v1.Pod{ObjectMeta: metav1.ObjectMeta{UID: types.UID(uid)}, Spec: v1.PodSpec{Containers: containers}}
}

func (n *node) admit(pod *v1.Pod, nodes numa.Mask) error {
	d := n.plugins.Draft(context.Background(), pod)
	for _, list := range [][]v1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			if err := d.Allocate(pod, &list[i], nodes); err != nil {
				return err
			}
		}
	}
	return d.Commit()
}

func (n *node) ids(uid, container string) []string {
	var ids []string
	for _, d := range n.plugins.Of(uid, container) {
		ids = append(ids, d.ID)
	}
	return ids
}

func (n *node) expectCapacity(want, allocatable int64) {
	n.t.Helper()
	got := n.plugins.Capacity()
	c, a := got.Capacity[gpu], got.Allocatable[gpu]
	if c.Value() != want || a.Value() != allocatable {
		n.t.Errorf("capacity %v, allocatable %v, want %d and %d", &c, &a, want, allocatable)
	}
}
