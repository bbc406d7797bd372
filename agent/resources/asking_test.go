package resources

import (
	"context"
	"net"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	v1 "k8s.io/api/core/v1"
	pluginapi "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"

	"github.com/berth-io/berth/agent/resources/devices"
)

// slowPlugin answers Allocate when it is let.
type slowPlugin struct {
	pluginapi.UnimplementedDevicePluginServer
	devices []string
	asked   chan []string
	answer  chan struct{}
}

func (*slowPlugin) GetDevicePluginOptions(context.Context, *pluginapi.Empty) (*pluginapi.DevicePluginOptions, error) {
	return &pluginapi.DevicePluginOptions{}, nil
}

func (p *slowPlugin) ListAndWatch(_ *pluginapi.Empty, stream grpc.ServerStreamingServer[pluginapi.ListAndWatchResponse]) error {
	answer := &pluginapi.ListAndWatchResponse{}
	for _, id := range p.devices {
		answer.Devices = append(answer.Devices, &pluginapi.Device{ID: id, Health: pluginapi.Healthy})
	}
	if err := stream.Send(answer); err != nil {
		return err
	}
	<-stream.Context().Done()
	return nil
}

func (p *slowPlugin) Allocate(ctx context.Context, r *pluginapi.AllocateRequest) (*pluginapi.AllocateResponse, error) {
	p.asked <- r.GetContainerRequests()[0].GetDevicesIds()
	select {
	case <-p.answer:
	case <-ctx.Done():
	}
	return &pluginapi.AllocateResponse{ContainerResponses: []*pluginapi.ContainerAllocateResponse{{}}}, nil
}

// withPlugins is an allocator with the plugins of these resources, which have
// two devices each.
func withPlugins(t *testing.T, names ...string) (*Allocator, map[string]*slowPlugin) {
	t.Helper()
	c := config(t.TempDir(), "none", "container")
	dir := filepath.Join(c.Dir, "device-plugins")
	changed := make(chan struct{}, 100)
	plugins, err := devices.New(devices.Config{Dir: dir, Nodes: c.Machine.NodeIDs(), Log: c.Log, CapacityChanged: func() { changed <- struct{}{} }})
	if err != nil {
		t.Fatal(err)
	}
	a, err := New(c, plugins, &fakeRuntime{cpus: map[string]string{}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { _ = plugins.Run(ctx) })
	t.Cleanup(func() { cancel(); running.Wait() })
	conn, err := grpc.NewClient("unix://"+filepath.Join(dir, "kubelet.sock"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	all := map[string]*slowPlugin{}
	for _, name := range names {
		all[name] = &slowPlugin{devices: []string{"d1", "d2"}, asked: make(chan []string, 10), answer: make(chan struct{})}
		serve(t, conn, dir, name, all[name])
	}
	for slices.ContainsFunc(names, func(name string) bool {
		healthy := plugins.Capacity().Allocatable[v1.ResourceName(name)]
		return healthy.Value() != 2
	}) {
		<-changed
	}
	return a, all
}

func serve(t *testing.T, conn *grpc.ClientConn, dir, name string, p *slowPlugin) {
	t.Helper()
	endpoint := filepath.Base(name) + ".sock"
	var listener net.Listener
	// The node removes sockets that were there before it; kubelet.sock comes after.
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	server := grpc.NewServer()
	pluginapi.RegisterDevicePluginServer(server, p)
	for conn.Connect(); conn.GetState().String() != "READY"; {
		if !conn.WaitForStateChange(ctx, conn.GetState()) {
			t.Fatal("nobody listens for plugins")
		}
		conn.Connect()
	}
	listener, err := net.Listen("unix", filepath.Join(dir, endpoint))
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(server.Stop)
	if _, err := pluginapi.NewRegistrationClient(conn).Register(ctx, &pluginapi.RegisterRequest{
		Version: "v1beta1", Endpoint: endpoint, ResourceName: name,
	}, grpc.WaitForReady(true)); err != nil {
		t.Fatal(err)
	}
}

// asks is a container of a whole CPU and a device.
func asks(name, resource string) v1.Container {
	c := container(name, "1", "100Mi")
	for _, list := range []v1.ResourceList{c.Resources.Requests, c.Resources.Limits} {
		list[v1.ResourceName(resource)] = quantities("x", "1")["x"]
	}
	return c
}

func begin(a *Allocator, p *v1.Pod, look func() []*v1.Pod) chan *Rejection {
	done := make(chan *Rejection, 1)
	go func() { done <- a.AdmitAsking(context.Background(), p, look) }()
	return done
}

func TestASlowPluginHoldsUpOnlyPodsThatAskForItsDevices(t *testing.T) {
	a, plugins := withPlugins(t, "example.com/slow", "example.com/other")
	first, second := pod("1", asks("c", "example.com/slow")), pod("2", asks("c", "example.com/slow"))
	other, plain := pod("3", asks("c", "example.com/other")), pod("4", container("c", "1", "100Mi"))
	look := func() []*v1.Pod { return []*v1.Pod{first, second, other, plain} }
	if !a.Asks(first) || a.Asks(plain) {
		t.Fatal("it is not known who asks plugins")
	}
	firstDone := begin(a, first, look)
	chosen := <-plugins["example.com/slow"].asked
	secondDone := begin(a, second, look)

	close(plugins["example.com/other"].answer)
	if r := <-begin(a, other, look); r != nil {
		t.Errorf("a pod that asks for another device: %+v", *r)
	}
	if r := a.Admit(plain, look()); r != nil {
		t.Errorf("a pod that asks for none: %+v", *r)
	}
	if err := a.Sync(t.Context(), World{Pods: look()}); err != nil {
		t.Error(err)
	}
	select {
	case ids := <-plugins["example.com/slow"].asked:
		t.Errorf("%q was handed out while nobody knew whether %q was", ids, chosen)
	case <-firstDone:
		t.Error("a pod got a device that its plugin has not given")
	default:
	}

	close(plugins["example.com/slow"].answer)
	for _, done := range []chan *Rejection{firstDone, secondDone} {
		if r := <-done; r != nil {
			t.Fatalf("a pod is rejected: %+v", *r)
		}
	}
	state, _ := a.states()
	seen := map[string]string{}
	for _, p := range look() {
		cpus := state.Of(string(p.UID), "c").String()
		if before, taken := seen[cpus]; taken {
			t.Errorf("pods %s and %s have the CPUs %s both", before, p.UID, cpus)
		}
		seen[cpus] = string(p.UID)
	}
	one, two := a.plugins.Of("1", "c"), a.plugins.Of("2", "c")
	if len(one) != 1 || len(two) != 1 || one[0].ID == two[0].ID {
		t.Errorf("the pods have the devices %v and %v", one, two)
	}
}

func TestWhoWaitsForHisTurnStopsWhenNobodyWantsHim(t *testing.T) {
	a, plugins := withPlugins(t, "example.com/slow")
	first, second := pod("1", asks("c", "example.com/slow")), pod("2", asks("c", "example.com/slow"))
	look := func() []*v1.Pod { return []*v1.Pod{first, second} }
	done := begin(a, first, look)
	<-plugins["example.com/slow"].asked
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if r := a.AdmitAsking(ctx, second, look); r == nil {
		t.Error("a pod that nobody wants has a device")
	}
	close(plugins["example.com/slow"].answer)
	if r := <-done; r != nil {
		t.Errorf("the pod before is rejected: %+v", *r)
	}
	if len(a.turns.of) != 0 {
		t.Errorf("%d turns are kept that nobody uses", len(a.turns.of))
	}
}
