package dra

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	v1 "k8s.io/api/core/v1"
	resourceapi "k8s.io/api/resource/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
	healthpb "k8s.io/kubelet/pkg/apis/dra-health/v1alpha1"
	drapb "k8s.io/kubelet/pkg/apis/dra/v1"
	drapbv1beta1 "k8s.io/kubelet/pkg/apis/dra/v1beta1"
)

const gpu = "gpu.example.com"

// fakeDriver is a plugin of a DRA driver behind a real socket. It gives each claim
// two devices, one for the request "one" and one for all.
type fakeDriver struct {
	drapb.UnimplementedDRAPluginServer
	healthpb.UnimplementedDRAResourceHealthServer
	name, endpoint string
	server         *grpc.Server
	told           chan []*healthpb.DeviceHealth // what is sent of devices' health
	hold           chan struct{}                 // not nil: NodeUnprepareResources waits for it

	mu       sync.Mutex
	calls    []string // "prepare a b", "unprepare a"
	answer   func(*drapb.NodePrepareResourcesResponse) error
	unanswer func(*drapb.NodeUnprepareResourcesResponse) error
}

func (f *fakeDriver) NodePrepareResources(_ context.Context, request *drapb.NodePrepareResourcesRequest) (*drapb.NodePrepareResourcesResponse, error) {
	answer := &drapb.NodePrepareResourcesResponse{Claims: map[string]*drapb.NodePrepareResourceResponse{}}
	for _, c := range request.GetClaims() {
		answer.Claims[c.GetUid()] = &drapb.NodePrepareResourceResponse{Devices: []*drapb.Device{
			{PoolName: "pool", DeviceName: "d1", RequestNames: []string{"one"}, CdiDeviceIds: []string{f.name + "/gpu=" + c.GetName() + "-1"}},
			{PoolName: "pool", DeviceName: "d2", CdiDeviceIds: []string{f.name + "/gpu=" + c.GetName() + "-2"}},
		}}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, "prepare "+namesOf(request.GetClaims()))
	if f.answer != nil {
		return answer, f.answer(answer)
	}
	return answer, nil
}

func (f *fakeDriver) NodeUnprepareResources(ctx context.Context, request *drapb.NodeUnprepareResourcesRequest) (*drapb.NodeUnprepareResourcesResponse, error) {
	answer := &drapb.NodeUnprepareResourcesResponse{Claims: map[string]*drapb.NodeUnprepareResourceResponse{}}
	for _, c := range request.GetClaims() {
		answer.Claims[c.GetUid()] = &drapb.NodeUnprepareResourceResponse{}
	}
	f.mu.Lock()
	f.calls = append(f.calls, "unprepare "+namesOf(request.GetClaims()))
	unanswer := f.unanswer
	f.mu.Unlock()
	if f.hold != nil {
		select {
		case <-f.hold:
		case <-ctx.Done():
		}
	}
	if unanswer != nil {
		return answer, unanswer(answer)
	}
	return answer, nil
}

func (f *fakeDriver) NodeWatchResources(_ *healthpb.NodeWatchResourcesRequest, stream grpc.ServerStreamingServer[healthpb.NodeWatchResourcesResponse]) error {
	for {
		select {
		case <-stream.Context().Done():
			return nil
		case list := <-f.told:
			if err := stream.Send(&healthpb.NodeWatchResourcesResponse{Devices: list}); err != nil {
				return err
			}
		}
	}
}

func namesOf(claims []*drapb.Claim) string {
	var names []string
	for _, c := range claims {
		names = append(names, c.GetName())
	}
	return strings.Join(names, " ")
}

// asked are the calls so far.
func (f *fakeDriver) asked() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.calls)
}

func (f *fakeDriver) wantCalls(t *testing.T, want ...string) {
	t.Helper()
	if got := f.asked(); !slices.Equal(got, want) {
		t.Errorf("the driver was asked for %q, want %q", got, want)
	}
}

// node is Claims that run, with an API server.
type node struct {
	*Claims
	t      *testing.T
	dir    string
	api    *fake.Clientset
	health chan []string
	came   atomic.Int32 // drivers
	ctx    context.Context
	stop   func()
}

func startNode(t *testing.T, dir string, objects ...runtime.Object) *node {
	t.Helper()
	n := &node{t: t, dir: dir, api: fake.NewClientset(objects...), health: make(chan []string, 100)}
	n.start()
	t.Cleanup(func() { n.stop() })
	return n
}

func (n *node) start() {
	n.t.Helper()
	var err error
	n.Claims, err = New(Config{Dir: n.dir, Node: "node", Client: n.api.ResourceV1(), Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
		HealthChanged: func(uids []string) { n.health <- uids }, DriverCame: func() { n.came.Add(1) }})
	if err != nil {
		n.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = n.Run(ctx)
	}()
	n.ctx = ctx
	n.stop = sync.OnceFunc(func() { cancel(); <-done })
}

// restart has another agent take over. Drivers have to register again.
func (n *node) restart() {
	n.t.Helper()
	n.stop()
	n.start()
}

// driver registers a plugin of the driver in that version.
func (n *node) driver(name, version string) *fakeDriver {
	n.t.Helper()
	dir, err := os.MkdirTemp("", "dra") // short, as paths of sockets have to be
	if err != nil {
		n.t.Fatal(err)
	}
	f := &fakeDriver{name: name, endpoint: filepath.Join(dir, "dra.sock"), server: grpc.NewServer(), told: make(chan []*healthpb.DeviceHealth, 10)}
	if version == drapbv1beta1.DRAPluginService {
		drapbv1beta1.RegisterDRAPluginServer(f.server, drapbv1beta1.V1ServerWrapper{DRAPluginServer: f})
	} else {
		drapb.RegisterDRAPluginServer(f.server, f)
	}
	healthpb.RegisterDRAResourceHealthServer(f.server, f)
	listener, err := net.Listen("unix", f.endpoint)
	if err != nil {
		n.t.Fatal(err)
	}
	go func() { _ = f.server.Serve(listener) }()
	n.t.Cleanup(func() {
		f.server.Stop()
		_ = os.RemoveAll(dir)
	})
	n.register(f, version)
	return f
}

func (n *node) register(f *fakeDriver, version string) {
	n.t.Helper()
	if err := n.Drivers().Register(n.ctx, f.name, f.endpoint, []string{version}); err != nil {
		n.t.Fatal(err)
	}
	n.eventually("the driver is connected", func() bool {
		n.drivers.mu.Lock()
		defer n.drivers.mu.Unlock()
		return slices.ContainsFunc(n.drivers.plugins[f.name], func(p *plugin) bool { return p.endpoint == f.endpoint && p.connected })
	})
}

func (n *node) eventually(what string, true func() bool) {
	n.t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !true(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			n.t.Fatalf("%s: it is not so", what)
		}
	}
}

func (n *node) prepare(pods ...*v1.Pod) {
	n.t.Helper()
	for _, pod := range pods {
		if err := n.Prepare(n.t.Context(), pod); err != nil {
			n.t.Fatal(err)
		}
	}
}

func (n *node) unprepare(pod *v1.Pod) {
	n.t.Helper()
	if err := n.Unprepare(n.t.Context(), string(pod.UID)); err != nil {
		n.t.Fatal(err)
	}
}

// wantDevices are the CDI devices of the pod's first container.
func (n *node) wantDevices(pod *v1.Pod, want ...string) {
	n.t.Helper()
	devices, err := n.CDIDevices(pod, &pod.Spec.Containers[0])
	if err != nil {
		n.t.Fatal(err)
	}
	var got []string
	for _, d := range devices {
		got = append(got, d.GetName())
	}
	if !slices.Equal(got, want) {
		n.t.Errorf("CDI devices %q, want %q", got, want)
	}
}

// inFile is the state file's content, decoded.
func (n *node) inFile() checkpointData {
	n.t.Helper()
	content, err := os.ReadFile(n.file())
	if err != nil {
		n.t.Fatal(err)
	}
	var outer checkpoint
	var data checkpointData
	if err := json.Unmarshal(content, &outer); err != nil {
		n.t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(outer.Data), &data); err != nil {
		n.t.Fatal(err)
	}
	return data
}

// allocated is a claim that has devices of the drivers, for the pods.
func allocated(name string, drivers []string, pods ...*v1.Pod) *resourceapi.ResourceClaim {
	c := &resourceapi.ResourceClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: types.UID(name + "-uid")}}
	c.Status.Allocation = &resourceapi.AllocationResult{}
	for _, driver := range drivers {
		c.Status.Allocation.Devices.Results = append(c.Status.Allocation.Devices.Results,
			resourceapi.DeviceRequestAllocationResult{Request: "one", Driver: driver, Pool: "pool", Device: "d1"})
	}
	for _, pod := range pods {
		c.Status.ReservedFor = append(c.Status.ReservedFor, resourceapi.ResourceClaimConsumerReference{Resource: "pods", Name: pod.Name, UID: pod.UID})
	}
	return c
}

// podWith has a container that uses all of the claims, which are named as objects.
func podWith(name string, claims ...string) *v1.Pod {
	pod := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: types.UID(name + "-uid")}}
	pod.Spec.Containers = []v1.Container{{Name: "app"}}
	for _, claim := range claims {
		pod.Spec.ResourceClaims = append(pod.Spec.ResourceClaims, v1.PodResourceClaim{Name: "my-" + claim, ResourceClaimName: &claim})
		pod.Spec.Containers[0].Resources.Claims = append(pod.Spec.Containers[0].Resources.Claims, v1.ResourceClaim{Name: "my-" + claim})
	}
	return pod
}
