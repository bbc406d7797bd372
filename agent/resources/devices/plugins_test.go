package devices

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	pluginapi "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"

	"github.com/berth-io/berth/agent/resources/numa"
)

func TestDevicesAreHandedOutAndTakenBack(t *testing.T) {
	n := startNode(t, t.TempDir())
	n.register(gpu, nil, append(devicesOf("a", "b", "c"), device("broken", pluginapi.Unhealthy))...)
	n.expectCapacity(4, 3)
	if err := n.admit(pod("1", container("x", gpu, "2"), container("y")), 0); err != nil {
		t.Fatal(err)
	}
	if got := n.ids("1", "x"); !slices.Equal(got, []string{"a", "b"}) {
		t.Errorf("got %v", got)
	}
	want := "requested number of devices unavailable for example.com/gpu. Requested: 2, Available: 1"
	if err := n.admit(pod("2", container("x", gpu, "2")), 0); err == nil || err.Error() != want {
		t.Errorf("too few: %v", err)
	}
	if err := n.plugins.Keep(sets.New[string]()); err != nil {
		t.Fatal(err)
	}
	if err := n.admit(pod("2", container("x", gpu, "3")), 0); err != nil {
		t.Errorf("after the first pod has gone: %v", err)
	}
	if err := n.admit(pod("2", container("x", gpu, "3")), 0); err != nil {
		t.Errorf("admitted again: %v", err)
	}
	want = `pod "2" container "x" changed request for resource "example.com/gpu" from 3 to 1`
	if err := n.admit(pod("2", container("x", gpu, "1")), 0); err == nil || err.Error() != want {
		t.Errorf("another request: %v", err)
	}
	if err := n.admit(pod("3", container("x", "example.com/other", "1")), 0); err != nil {
		t.Errorf("a resource of nobody's: %v", err)
	}
}

func TestAResourceThatAClaimStandsForIsNotHandedOut(t *testing.T) {
	n := startNode(t, t.TempDir())
	n.register(gpu, nil, devicesOf("a")...)
	p := pod("1", container("x", gpu, "5"), container("y", gpu, "1"))
	p.Status.ExtendedResourceClaimStatus = &v1.PodExtendedResourceClaimStatus{ResourceClaimName: "c", RequestMappings: []v1.ContainerExtendedResourceRequest{
		{ContainerName: "x", ResourceName: gpu, RequestName: "request-0"}}}
	if err := n.admit(p, 0); err != nil {
		t.Fatal(err)
	}
	if x, y := n.ids("1", "x"), n.ids("1", "y"); len(x) > 0 || !slices.Equal(y, []string{"a"}) {
		t.Errorf("x has %q, y %q", x, y)
	}
}

func TestWhatAPodIsNotGivenAltogetherIsNotGiven(t *testing.T) {
	n := startNode(t, t.TempDir())
	n.register(gpu, nil, devicesOf("a", "b")...)
	if err := n.admit(pod("1", container("x", gpu, "1"), container("y", gpu, "2")), 0); err == nil {
		t.Fatal("three of two devices were given")
	}
	if err := n.admit(pod("2", container("x", gpu, "2")), 0); err != nil {
		t.Errorf("the devices of the pod that was refused are not free: %v", err)
	}
}

func TestInitContainersLeaveTheirDevices(t *testing.T) {
	n := startNode(t, t.TempDir())
	n.register(gpu, nil, devicesOf("a", "b")...)
	p := pod("1", container("app", gpu, "2"))
	p.Spec.InitContainers = []v1.Container{container("first", gpu, "2"), container("second", gpu, "1")}
	if err := n.admit(p, 0); err != nil {
		t.Fatal(err)
	}
	if got := n.ids("1", "app"); !slices.Equal(got, []string{"a", "b"}) {
		t.Errorf("got %v", got)
	}
}

func TestAContainerGetsWhatThePluginSays(t *testing.T) {
	n := startNode(t, t.TempDir())
	f := n.register(gpu, &pluginapi.DevicePluginOptions{PreStartRequired: true}, devicesOf("a", "b")...)
	p := pod("1", container("x", gpu, "1"), container("y"))
	if err := n.admit(p, 0); err != nil {
		t.Fatal(err)
	}
	o := n.plugins.Options("1", "x")
	if string(o.Envs[0].Value) != "a" || o.Devices[0].HostPath != "/dev/a" || o.Devices[0].Permissions != "rw" || !o.Mounts[0].Readonly ||
		o.Annotations["gpu"] != "yes" || o.CDIDevices[0].Name != "example.com/gpu=a" {
		t.Errorf("got %+v", o)
	}
	if o := n.plugins.Options("1", "y"); len(o.Devices)+len(o.Envs)+len(o.Mounts)+len(o.Annotations) > 0 {
		t.Errorf("a container without devices: %+v", o)
	}
	for i := range p.Spec.Containers {
		if err := n.plugins.PreStart(context.Background(), "1", &p.Spec.Containers[i]); err != nil {
			t.Fatal(err)
		}
	}
	if fmt.Sprint(f.started) != "[[a]]" {
		t.Errorf("prestart was called for %v", f.started)
	}
}

func TestAPluginsPreferenceIsFollowed(t *testing.T) {
	n := startNode(t, t.TempDir())
	f := n.register(gpu, &pluginapi.DevicePluginOptions{GetPreferredAllocationAvailable: true}, devicesOf("a", "b", "c")...)
	f.preferred = func(r *pluginapi.ContainerPreferredAllocationRequest) []string {
		if r.GetAllocationSize() != 2 || len(r.GetAvailableDeviceIDs()) != 3 {
			t.Errorf("asked %v", r)
		}
		return []string{"c", "b"}
	}
	if err := n.admit(pod("1", container("x", gpu, "2")), 0); err != nil {
		t.Fatal(err)
	}
	if got := n.ids("1", "x"); !slices.Equal(got, []string{"b", "c"}) {
		t.Errorf("got %v", got)
	}
}

func TestDevicesNearTheChosenNodesComeFirst(t *testing.T) {
	n := startNode(t, t.TempDir())
	n.register(gpu, nil, device("a", pluginapi.Healthy, 0), device("b", pluginapi.Healthy, 1), device("c", pluginapi.Healthy, 1), device("d", pluginapi.Healthy))
	p := pod("1", container("x", gpu, "2"))
	d := n.plugins.Draft(context.Background(), p)
	want := numa.Hints{gpu: {{Nodes: 2, Preferred: true}, {Nodes: 3}}}
	if diff := cmp.Diff(want, d.Hints(p, &p.Spec.Containers[0])); diff != "" {
		t.Errorf("hints (-want +got):\n%s", diff)
	}
	if err := n.admit(p, numa.MaskOf(1)); err != nil {
		t.Fatal(err)
	}
	if got := n.ids("1", "x"); !slices.Equal(got, []string{"b", "c"}) {
		t.Errorf("got %v", got)
	}
	if diff := cmp.Diff(want, n.plugins.Draft(context.Background(), p).PodHints(p)); diff != "" {
		t.Errorf("hints of what it has (-want +got):\n%s", diff)
	}
	next := pod("2", container("x", gpu, "3"))
	if diff := cmp.Diff(numa.Hints{gpu: {}}, n.plugins.Draft(context.Background(), next).Hints(next, &next.Spec.Containers[0])); diff != "" {
		t.Errorf("hints of too many (-want +got):\n%s", diff)
	}
	if err := n.admit(pod("2", container("x", gpu, "1")), numa.MaskOf(1)); err != nil || !slices.Equal(n.ids("2", "x"), []string{"a"}) {
		t.Errorf("another node's before none's: %v, %v", n.ids("2", "x"), err)
	}
}

func TestHealthIsToldOfThePodsConcerned(t *testing.T) {
	n := startNode(t, t.TempDir())
	f := n.register(gpu, nil, devicesOf("a", "b")...)
	if err := n.admit(pod("1", container("x", gpu, "1")), 0); err != nil {
		t.Fatal(err)
	}
	n.tell(f, device("a", pluginapi.Healthy), device("b", pluginapi.Unhealthy))
	n.tell(f, device("a", pluginapi.Unhealthy), device("b", pluginapi.Unhealthy))
	select {
	case got := <-n.health:
		if !slices.Equal(got, []string{"1"}) {
			t.Errorf("told of %v", got)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("nothing was told of the pod")
	}
	want := []v1.ResourceStatus{{Name: gpu, Resources: []v1.ResourceHealth{{ResourceID: "a", Health: v1.ResourceHealthStatusUnhealthy}}}}
	if diff := cmp.Diff(want, n.plugins.Health("1", "x")); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if len(n.health) > 0 {
		t.Error("a pod was told of a device that it does not have")
	}
	if err := n.admit(pod("2", container("x", gpu, "1")), 0); err == nil || !strings.Contains(err.Error(), "no healthy devices present") {
		t.Errorf("no healthy device: %v", err)
	}
}

func TestAPluginThatDiesAndComesBackLeavesPodsAlone(t *testing.T) {
	n := startNode(t, t.TempDir())
	f := n.register(gpu, nil, devicesOf("a", "b")...)
	p := pod("1", container("x", gpu, "1"))
	if err := n.admit(p, 0); err != nil {
		t.Fatal(err)
	}
	before := n.plugins.Options("1", "x")
	f.kill()
	n.waitCapacity()
	n.expectCapacity(2, 0)
	if diff := cmp.Diff(before.Annotations, n.plugins.Options("1", "x").Annotations); diff != "" {
		t.Error(diff)
	}
	if err := n.plugins.PreStart(context.Background(), "1", &p.Spec.Containers[0]); err != nil {
		t.Errorf("a restart of the container while the plugin is away: %v", err)
	}
	if err := n.admit(pod("2", container("x", gpu, "1")), 0); err == nil {
		t.Error("a device of a plugin that is away was given")
	}
	n.register(gpu, nil, devicesOf("a", "b", "c")...)
	n.expectCapacity(3, 3)
	if err := n.admit(pod("2", container("x", gpu, "2")), 0); err != nil || slices.Contains(n.ids("2", "x"), "a") {
		t.Errorf("the first pod's device was given again: %v, %v", n.ids("2", "x"), err)
	}
}

func TestAPluginThatRegistersAgainTakesOver(t *testing.T) {
	n := startNode(t, t.TempDir())
	old := n.register(gpu, nil, devicesOf("a")...)
	n.register(gpu, nil, devicesOf("a", "b")...)
	n.expectCapacity(2, 2)
	old.kill()
	n.expectCapacity(2, 2)
	if err := n.admit(pod("1", container("x", gpu, "2")), 0); err != nil {
		t.Error(err)
	}
}

func TestAResourceIsGoneAfterFiveMinutesWithoutItsPlugin(t *testing.T) {
	n := startNode(t, t.TempDir())
	n.register(gpu, nil, devicesOf("a")...).kill()
	n.waitCapacity()
	n.now.add(4 * time.Minute)
	n.expectCapacity(1, 0)
	n.now.add(2 * time.Minute)
	n.expectCapacity(0, 0)
	if _, found := n.plugins.Capacity().Capacity[gpu]; !found {
		t.Error("the node does not say that it has none")
	}
	n.register(gpu, nil, devicesOf("a")...)
	n.expectCapacity(1, 1)
}

func TestARestartedAgentKnowsWhoHasWhat(t *testing.T) {
	dir := t.TempDir()
	n := startNode(t, dir)
	if !n.plugins.FirstStart() {
		t.Error("a first start was not seen as one")
	}
	n.register(gpu, nil, device("a", pluginapi.Healthy, 0, 1), device("b", pluginapi.Healthy))
	if err := n.admit(pod("1", container("x", gpu, "1")), numa.MaskOf(1)); err != nil {
		t.Fatal(err)
	}
	options, of := n.plugins.Options("1", "x"), n.plugins.Of("1", "x")
	n.stop()
	again := startNode(t, dir)
	if again.plugins.FirstStart() {
		t.Error("a restart was seen as a first start")
	}
	if got := again.plugins.Options("1", "x"); got.Devices[0].HostPath != options.Devices[0].HostPath || string(got.Envs[0].Value) != string(options.Envs[0].Value) {
		t.Errorf("got %+v, before %+v", got, options)
	}
	if diff := cmp.Diff(of, again.plugins.Of("1", "x")); diff != "" {
		t.Errorf("(-before +after):\n%s", diff)
	}
	again.expectCapacity(0, 0)
	again.register(gpu, nil, devicesOf("a", "b")...)
	if err := again.admit(pod("2", container("x", gpu, "1")), 0); err != nil || !slices.Equal(again.ids("2", "x"), []string{"b"}) {
		t.Errorf("got %v, %v", again.ids("2", "x"), err)
	}
}

func TestBadRegistrationsAreRefused(t *testing.T) {
	n := startNode(t, t.TempDir())
	for want, request := range map[string]*pluginapi.RegisterRequest{
		`requested API version "v2" is not supported`:   {Version: "v2", ResourceName: gpu},
		`the ResourceName "gpu" is invalid`:             {Version: "v1beta1", ResourceName: "gpu"},
		`the ResourceName "kubernetes.io/x" is invalid`: {Version: "v1beta1", ResourceName: "kubernetes.io/x"},
		`the ResourceName "a/b/c" is invalid`:           {Version: "v1beta1", ResourceName: "a/b/c"},
	} {
		if err := n.call(request); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v", request, err)
		}
	}
}

func TestTheCheckpointIsTheKubelets(t *testing.T) {
	dir := t.TempDir()
	n := startNode(t, dir)
	n.register(gpu, nil, devicesOf("a")...)
	if err := n.admit(pod("1", container("x", gpu, "1")), 0); err != nil {
		t.Fatal(err)
	}
	n.stop()
	content, err := os.ReadFile(filepath.Join(dir, "kubelet_internal_checkpoint"))
	if err != nil {
		t.Fatal(err)
	}
	prefix := `{"Data":{"PodDeviceEntries":[{"PodUID":"1","ContainerName":"x","ResourceName":"example.com/gpu","DeviceIDs":{"-1":["a"]},"AllocResp":"`
	if !strings.HasPrefix(string(content), prefix) {
		t.Errorf("got %s", content)
	}
	if err := os.WriteFile(filepath.Join(dir, "kubelet_internal_checkpoint"), []byte(strings.Replace(string(content), `"x"`, `"y"`, 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	again := startNode(t, dir)
	if len(again.ids("1", "y")) != 0 {
		t.Error("a checkpoint with a wrong checksum was believed")
	}
	if _, err := os.Stat(filepath.Join(dir, "kubelet_internal_checkpoint.bad")); err != nil {
		t.Error(err)
	}
}

// The file and its checksum are the kubelet's.
func TestACheckpointOfTheKubeletIsRead(t *testing.T) {
	dir := t.TempDir()
	content := `{"Data":{"PodDeviceEntries":[{"PodUID":"u","ContainerName":"c","ResourceName":"e/g","DeviceIDs":{"-1":["x"],"1":["y","z"]},"AllocResp":""}],` +
		`"RegisteredDevices":{"e/g":[],"e/h":["q"]}},"Checksum":3554595957}`
	if err := os.WriteFile(filepath.Join(dir, "kubelet_internal_checkpoint"), []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	p, err := New(Config{Dir: dir, Log: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if err != nil {
		t.Fatal(err)
	}
	want := []Device{{"e/g", "x", nil}, {"e/g", "y", []int64{1}}, {"e/g", "z", []int64{1}}}
	if diff := cmp.Diff(want, p.Of("u", "c")); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func FuzzCheckpoint(f *testing.F) {
	f.Add(`{"PodDeviceEntries":[{"PodUID":"1","ContainerName":"x","ResourceName":"e/g","DeviceIDs":{"-1":["a"]},"AllocResp":"CgYKAWESAWI="}],"RegisteredDevices":{"e/g":[]}}`)
	f.Add(`{"PodDeviceEntries":null,"RegisteredDevices":null}`)
	f.Fuzz(func(t *testing.T, text string) {
		var data checkpointData
		if json.Unmarshal([]byte(text), &data) != nil {
			return
		}
		if data.RegisteredDevices == nil {
			data.RegisteredDevices = map[string][]string{}
		}
		content, err := json.Marshal(checkpoint{Data: data, Checksum: data.sum()})
		if err != nil {
			t.Fatal(err)
		}
		pods, registered, err := decode(content)
		if err != nil {
			return // an answer of a plugin that is none, or text that JSON does not keep
		}
		p := &Plugins{pods: pods, resources: map[string]*pluginResource{}}
		for _, name := range registered {
			p.resources[name] = &pluginResource{}
		}
		saved, err := p.data()
		if err != nil {
			t.Fatal(err)
		}
		if content, err = json.Marshal(checkpoint{Data: saved, Checksum: saved.sum()}); err != nil {
			t.Fatal(err)
		}
		again, _, err := decode(content)
		if err != nil || len(again) != len(pods) {
			t.Errorf("saved %v, loaded %v, %v", pods, again, err)
		}
	})
}
