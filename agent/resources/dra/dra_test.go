package dra

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	v1 "k8s.io/api/core/v1"
	resourceapi "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	drapb "k8s.io/kubelet/pkg/apis/dra/v1"
	drapbv1beta1 "k8s.io/kubelet/pkg/apis/dra/v1beta1"
)

func TestADriverIsAskedOnceForAllClaimsOfAPod(t *testing.T) {
	for _, version := range []string{drapb.DRAPluginService, drapbv1beta1.DRAPluginService} {
		t.Run(version, func(t *testing.T) {
			pod := podWith("p", "a", "b")
			n := startNode(t, t.TempDir(), allocated("a", []string{gpu}, pod), allocated("b", []string{gpu, "net.example.com"}, pod))
			g, net := n.driver(gpu, version), n.driver("net.example.com", version)
			n.prepare(pod)
			g.wantCalls(t, "prepare a b")
			net.wantCalls(t, "prepare b")
			n.wantDevices(pod, gpu+"/gpu=a-1", gpu+"/gpu=a-2", gpu+"/gpu=b-1", gpu+"/gpu=b-2", "net.example.com/gpu=b-1", "net.example.com/gpu=b-2")
			n.prepare(pod) // as with a new sandbox
			if !n.Holds("p-uid") || n.Holds("other") {
				t.Error("it is not known who holds claims")
			}
			n.unprepare(pod)
			g.wantCalls(t, "prepare a b", "unprepare a b")
			net.wantCalls(t, "prepare b", "unprepare b")
			n.unprepare(pod)
			g.wantCalls(t, "prepare a b", "unprepare a b")
			if n.Holds("p-uid") || len(n.inFile().ClaimInfoStateList) > 0 {
				t.Error("claims are held still")
			}
		})
	}
}

func TestAPodWithoutClaimsAsksNobody(t *testing.T) {
	n := startNode(t, t.TempDir())
	pod := podWith("p")
	template := "template"
	// None was needed for this one: its status says so.
	pod.Spec.ResourceClaims = []v1.PodResourceClaim{{Name: "none", ResourceClaimTemplateName: &template}}
	pod.Spec.Containers[0].Resources.Claims = []v1.ResourceClaim{{Name: "none"}}
	pod.Status.ResourceClaimStatuses = []v1.PodResourceClaimStatus{{Name: "none"}}
	n.prepare(pod)
	n.wantDevices(pod)
	n.unprepare(pod)
	if _, err := os.Stat(n.file()); !os.IsNotExist(err) {
		t.Errorf("there is a state file: %v", err)
	}
}

func TestAClaimMadeFromATemplateIsFoundByThePodsStatus(t *testing.T) {
	pod := podWith("p")
	template, name := "template", "p-gpu-x7k"
	pod.Spec.ResourceClaims = []v1.PodResourceClaim{{Name: "gpu", ResourceClaimTemplateName: &template}}
	pod.Spec.Containers[0].Resources.Claims = []v1.ResourceClaim{{Name: "gpu"}}
	claim := allocated(name, []string{gpu}, pod)
	yes := true
	claim.OwnerReferences = []metav1.OwnerReference{{Kind: "Pod", Name: "p", UID: "p-uid", Controller: &yes}}
	n := startNode(t, t.TempDir(), claim)
	g := n.driver(gpu, drapb.DRAPluginService)
	if err := n.Prepare(t.Context(), pod); err == nil || err.Error() != `prepare dynamic resources: pod "default/p": ResourceClaim not created yet` {
		t.Errorf("before there is one: %v", err)
	}
	pod.Status.ResourceClaimStatuses = []v1.PodResourceClaimStatus{{Name: "gpu", ResourceClaimName: &name}}
	n.prepare(pod)
	g.wantCalls(t, "prepare "+name)
	n.wantDevices(pod, gpu+"/gpu="+name+"-1", gpu+"/gpu="+name+"-2")
}

func TestAPodThatMayNotUseItsClaimsIsToldWhyAndHoldsNothing(t *testing.T) {
	pod := podWith("p", "a")
	template := "template"
	for _, c := range []struct {
		name, want string
		pod        func(*v1.Pod)
		claim      func(*resourceapi.ResourceClaim)
	}{
		{name: "no such claim", want: `fetch ResourceClaim a: resourceclaims.resource.k8s.io "a" not found`,
			claim: func(c *resourceapi.ResourceClaim) { c.Name = "other" }},
		{name: "reserved for another", want: "pod p (p-uid) is not allowed to use ResourceClaim a (a-uid)",
			claim: func(c *resourceapi.ResourceClaim) { c.Status.ReservedFor[0].UID = "another" }},
		{name: "not allocated", want: "ResourceClaim a: not allocated",
			claim: func(c *resourceapi.ResourceClaim) { c.Status.Allocation = nil }},
		{name: "not its own", want: "ResourceClaim default/a was not created for Pod default/p (Pod is not owner)",
			pod: func(p *v1.Pod) {
				p.Spec.ResourceClaims[0] = v1.PodResourceClaim{Name: "my-a", ResourceClaimTemplateName: &template}
				p.Status.ResourceClaimStatuses = []v1.PodResourceClaimStatus{{Name: "my-a", ResourceClaimName: new("a")}}
			}},
		{name: "neither name nor template", want: `pod "default/p", spec.resourceClaim "my-a": none of the supported fields are set`,
			pod: func(p *v1.Pod) { p.Spec.ResourceClaims[0].ResourceClaimName = nil }},
		{name: "no driver", want: "DRA driver net.example.com is not registered",
			claim: func(c *resourceapi.ResourceClaim) { c.Status.Allocation.Devices.Results[0].Driver = "net.example.com" }},
	} {
		t.Run(c.name, func(t *testing.T) {
			pod, claim := pod.DeepCopy(), allocated("a", []string{gpu}, pod)
			if c.pod != nil {
				c.pod(pod)
			}
			if c.claim != nil {
				c.claim(claim)
			}
			n := startNode(t, t.TempDir(), claim)
			g := n.driver(gpu, drapb.DRAPluginService)
			if err := n.Prepare(t.Context(), pod); err == nil || err.Error() != "prepare dynamic resources: "+c.want {
				t.Errorf("got  %v\nwant prepare dynamic resources: %s", err, c.want)
			}
			g.wantCalls(t)
			if n.Holds("p-uid") {
				t.Error("it holds claims")
			}
		})
	}
}

func TestWhatADriverAnswersIsToldInTheKubeletsWords(t *testing.T) {
	for _, c := range []struct {
		want   string
		answer func(*drapb.NodePrepareResourcesResponse) error
	}{
		{"NodePrepareResources: rpc error: code = Unknown desc = no power", func(*drapb.NodePrepareResourcesResponse) error { return errors.New("no power") }},
		{"NodePrepareResources failed for ResourceClaim a: broken", func(r *drapb.NodePrepareResourcesResponse) error {
			r.Claims["a-uid"].Error = "broken"
			return nil
		}},
		{"NodePrepareResources skipped 1 ResourceClaims", func(r *drapb.NodePrepareResourcesResponse) error {
			delete(r.Claims, "a-uid")
			return nil
		}},
		{"NodePrepareResources returned result for unknown claim UID else", func(r *drapb.NodePrepareResourcesResponse) error {
			r.Claims["else"] = &drapb.NodePrepareResourceResponse{}
			return nil
		}},
	} {
		t.Run(c.want, func(t *testing.T) {
			pod := podWith("p", "a")
			n := startNode(t, t.TempDir(), allocated("a", []string{gpu}, pod))
			g := n.driver(gpu, drapb.DRAPluginService)
			g.answer = c.answer
			if err := n.Prepare(t.Context(), pod); err == nil || err.Error() != "prepare dynamic resources: "+c.want {
				t.Errorf("got  %v\nwant prepare dynamic resources: %s", err, c.want)
			}
			// It was asked: whatever it did has to be undone, also by the next agent.
			n.restart()
			n.register(g, drapb.DRAPluginService)
			g.mu.Lock()
			g.answer = nil
			g.mu.Unlock()
			n.unprepare(pod)
			g.wantCalls(t, "prepare a", "unprepare a")
		})
	}
}

func TestAPodHoldsItsClaimsUntilTheDriverHasUnpreparedThem(t *testing.T) {
	pod := podWith("p", "a")
	n := startNode(t, t.TempDir(), allocated("a", []string{gpu}, pod))
	g := n.driver(gpu, drapb.DRAPluginService)
	n.prepare(pod)
	for _, c := range []struct {
		want     string
		unanswer func(*drapb.NodeUnprepareResourcesResponse) error
	}{
		{"NodeUnprepareResources: rpc error: code = Unknown desc = no power", func(*drapb.NodeUnprepareResourcesResponse) error { return errors.New("no power") }},
		{"NodeUnprepareResources failed for ResourceClaim a: busy", func(r *drapb.NodeUnprepareResourcesResponse) error {
			r.Claims["a-uid"].Error = "busy"
			return nil
		}},
		{"NodeUnprepareResources skipped 1 ResourceClaims", func(r *drapb.NodeUnprepareResourcesResponse) error {
			clear(r.Claims)
			return nil
		}},
	} {
		g.mu.Lock()
		g.unanswer = c.unanswer
		g.mu.Unlock()
		if err := n.Unprepare(t.Context(), "p-uid"); err == nil || err.Error() != "unprepare dynamic resources: "+c.want {
			t.Errorf("got  %v\nwant unprepare dynamic resources: %s", err, c.want)
		}
		if !n.Holds("p-uid") {
			t.Error("it does not hold its claim any more")
		}
	}
	n.Drivers().Deregister(gpu, g.endpoint)
	if err := n.Unprepare(t.Context(), "p-uid"); err == nil || err.Error() != "unprepare dynamic resources: DRA driver gpu.example.com is not registered" {
		t.Errorf("without a driver: %v", err)
	}
	g.mu.Lock()
	g.unanswer = nil
	g.mu.Unlock()
	n.register(g, drapb.DRAPluginService)
	n.unprepare(pod)
	if n.Holds("p-uid") {
		t.Error("it holds its claim still")
	}
}

func TestAClaimOfTwoPodsIsPreparedOnceAndUnpreparedWithTheLast(t *testing.T) {
	one, two := podWith("one", "a"), podWith("two", "a")
	n := startNode(t, t.TempDir(), allocated("a", []string{gpu}, one, two))
	g := n.driver(gpu, drapb.DRAPluginService)
	n.prepare(one, two)
	g.wantCalls(t, "prepare a")
	n.unprepare(one)
	g.wantCalls(t, "prepare a")
	n.wantDevices(two, gpu+"/gpu=a-1", gpu+"/gpu=a-2")
	n.unprepare(two)
	g.wantCalls(t, "prepare a", "unprepare a")
}

func TestAPodThatComesWhileTheLastLetsGoHasTheClaimPreparedAgain(t *testing.T) {
	one, two := podWith("one", "a"), podWith("two", "a")
	n := startNode(t, t.TempDir(), allocated("a", []string{gpu}, one, two))
	g := n.driver(gpu, drapb.DRAPluginService)
	n.prepare(one)
	g.hold = make(chan struct{})
	left, came := make(chan error, 1), make(chan error, 1)
	go func() { left <- n.Unprepare(context.Background(), "one-uid") }()
	n.eventually("the driver is asked to unprepare", func() bool { return len(g.asked()) == 2 })
	go func() { came <- n.Prepare(context.Background(), two) }()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := n.Prepare(ctx, two); !errors.Is(err, context.Canceled) {
		t.Errorf("one who does not wait: %v", err)
	}
	close(g.hold)
	if err := errors.Join(<-left, <-came); err != nil {
		t.Fatal(err)
	}
	g.wantCalls(t, "prepare a", "unprepare a", "prepare a")
	n.wantDevices(two, gpu+"/gpu=a-1", gpu+"/gpu=a-2")
}

func TestARestartedAgentKnowsWhoHasWhat(t *testing.T) {
	one, two := podWith("one", "a"), podWith("two", "a")
	n := startNode(t, t.TempDir(), allocated("a", []string{gpu}, one, two))
	g := n.driver(gpu, drapb.DRAPluginService)
	n.prepare(one)
	n.restart()
	n.wantDevices(one, gpu+"/gpu=a-1", gpu+"/gpu=a-2") // a container that starts again needs no driver
	if uids, err := n.Orphans(); err != nil || !slices.Equal(uids, []string{"one-uid"}) {
		t.Errorf("pods with claims: %q, %v", uids, err)
	}
	n.register(g, drapb.DRAPluginService)
	n.prepare(two) // what the driver made may be gone with a boot
	g.wantCalls(t, "prepare a", "prepare a")
	n.wantDevices(one, gpu+"/gpu=a-1", gpu+"/gpu=a-2")
	n.unprepare(one)
	n.unprepare(two)
	g.wantCalls(t, "prepare a", "prepare a", "unprepare a")
}

func TestAClaimOfTheSameNameWaitsForTheOldOnesPod(t *testing.T) {
	old, next := podWith("old", "a"), podWith("next", "a")
	n := startNode(t, t.TempDir(), allocated("a", []string{gpu}, old))
	g := n.driver(gpu, drapb.DRAPluginService)
	n.prepare(old)
	claim := allocated("a", []string{gpu}, next)
	claim.UID = "another"
	if err := n.api.Tracker().Update(resourceapi.SchemeGroupVersion.WithResource("resourceclaims"), claim, "default"); err != nil {
		t.Fatal(err)
	}
	want := "prepare dynamic resources: old ResourceClaim with same name a and different UID a-uid still exists (previous pod force-deleted?!)"
	if err := n.Prepare(t.Context(), next); err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
	n.unprepare(old)
	n.prepare(next)
	g.wantCalls(t, "prepare a", "unprepare a", "prepare a")
}

// kubeletFile is what the kubelet 1.36.3 writes (cm/dra/state, NewCheckpoint).
const kubeletFile = `{"Data":"{\"kind\":\"DRACheckpoint\",\"apiVersion\":\"checkpoint.dra.kubelet.k8s.io/v1\",\"ClaimInfoStateList\":[{\"ClaimUID\":\"a-uid\",\"ClaimName\":\"a\",\"Namespace\":\"default\",\"PodUIDs\":{\"p-uid\":{}},\"DriverState\":{\"gpu.example.com\":{\"Devices\":[{\"PoolName\":\"pool\",\"DeviceName\":\"d1\",\"ShareID\":null,\"RequestNames\":[\"one\"],\"CDIDeviceIDs\":[\"gpu.example.com/gpu=a-1\"]},{\"PoolName\":\"pool\",\"DeviceName\":\"d2\",\"ShareID\":null,\"RequestNames\":null,\"CDIDeviceIDs\":[\"gpu.example.com/gpu=a-2\"]}]}}}]}","Checksum":1600253186}`

func TestTheStateFileIsTheKubelets(t *testing.T) {
	pod := podWith("p", "a")
	n := startNode(t, t.TempDir(), allocated("a", []string{gpu}, pod))
	n.driver(gpu, drapb.DRAPluginService)
	n.prepare(pod)
	written, err := os.ReadFile(filepath.Join(n.dir, "dra_manager_state"))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(kubeletFile, string(written)); diff != "" {
		t.Errorf("the file (-want +got):\n%s", diff)
	}
}

func TestADamagedStateFileKeepsTheAgentFromStarting(t *testing.T) {
	for content, want := range map[string]string{
		`{`: "unexpected end of JSON input",
		strings.Replace(kubeletFile, "d1", "d3", 1):                      "checkpoint is corrupted: its checksum is 1600253186",
		`{"Data":"{\"ClaimInfoStateList\":[{}]}","Checksum":1552601224}`: "ClaimInfoStateList[0]: a claim without name or namespace",
	} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "dra_manager_state"), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := New(Config{Dir: dir})
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "dra_manager_state: ") || !strings.Contains(err.Error(), "drain this node") {
			t.Errorf("%s: %v, want %q", content, err, want)
		}
	}
}

func FuzzAStateFileIsReadOrRefused(f *testing.F) {
	f.Add([]byte(kubeletFile))
	f.Add([]byte(`{"Data":"{\"ClaimInfoStateList\":[{}]}","Checksum":1552601224}`))
	f.Add([]byte(`{"Data":"{}","Checksum":2745614147}`))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, content []byte) {
		in, out := filepath.Join(dir, "in"), filepath.Join(dir, "out")
		if err := os.WriteFile(in, content, 0o600); err != nil {
			t.Fatal(err)
		}
		claims, err := load(in)
		if err != nil {
			return
		}
		if err := save(out, claims); err != nil {
			t.Fatal(err)
		}
		again, err := load(out)
		if err != nil || len(again) != len(claims) {
			t.Fatalf("%d claims were read and written, then %d read: %v", len(claims), len(again), err)
		}
		for key, info := range again {
			_, _, _ = info.devices(), info.inUse(), claims[key].with(claims[key].PodUIDs.Clone())
		}
	})
}

func TestAStateThatCannotBeWrittenIsNotInForce(t *testing.T) {
	pod := podWith("p", "a")
	n := startNode(t, t.TempDir(), allocated("a", []string{gpu}, pod))
	g := n.driver(gpu, drapb.DRAPluginService)
	n.config.Dir = filepath.Join(n.dir, "not", "there")
	if err := n.Prepare(t.Context(), pod); err == nil || !strings.HasPrefix(err.Error(), "prepare dynamic resources: checkpoint ResourceClaim cache: ") {
		t.Errorf("got %v", err)
	}
	g.wantCalls(t)
	n.config.Dir = n.dir
	n.prepare(pod)
	n.config.Dir = filepath.Join(n.dir, "not", "there")
	if err := n.Unprepare(t.Context(), "p-uid"); err == nil || !strings.HasPrefix(err.Error(), "unprepare dynamic resources: checkpoint ResourceClaim state: ") {
		t.Errorf("got %v", err)
	}
	if !n.Holds("p-uid") {
		t.Error("the claim is let go of although a restarted agent would not know")
	}
}

func TestAContainerGetsTheDevicesOfTheRequestsItNames(t *testing.T) {
	pod := podWith("p", "a", "b")
	extended := allocated("ext", []string{gpu}, pod)
	n := startNode(t, t.TempDir(), allocated("a", []string{gpu}, pod), allocated("b", []string{gpu}, pod), extended)
	g := n.driver(gpu, drapb.DRAPluginService)
	pod.Status.ExtendedResourceClaimStatus = &v1.PodExtendedResourceClaimStatus{ResourceClaimName: "ext", RequestMappings: []v1.ContainerExtendedResourceRequest{
		{ContainerName: "app", ResourceName: "example.com/gpu", RequestName: "one"},
		{ContainerName: "app", ResourceName: "example.com/unused", RequestName: "two"},
		{ContainerName: "other", ResourceName: "example.com/gpu", RequestName: "two"},
	}}
	n.prepare(pod)
	g.wantCalls(t, "prepare a b ext")
	app := &pod.Spec.Containers[0]
	for _, c := range []struct {
		claims   []v1.ResourceClaim
		requests v1.ResourceList
		want     []string
	}{
		{claims: nil},
		{claims: []v1.ResourceClaim{{Name: "my-a"}}, want: []string{"a-1", "a-2"}},
		{claims: []v1.ResourceClaim{{Name: "my-a", Request: "one"}}, want: []string{"a-1", "a-2"}},
		{claims: []v1.ResourceClaim{{Name: "my-a", Request: "other"}}, want: []string{"a-2"}}, // d2 is of no request in particular
		{claims: []v1.ResourceClaim{{Name: "my-b"}, {Name: "my-a", Request: "other"}, {Name: "my-a", Request: "one"}}, want: []string{"a-2", "a-1", "b-1", "b-2"}},
		{requests: v1.ResourceList{"example.com/gpu": resource.MustParse("1")}, want: []string{"ext-1", "ext-2"}},
		{requests: v1.ResourceList{"example.com/gpu": resource.MustParse("0")}},
	} {
		app.Resources = v1.ResourceRequirements{Claims: c.claims, Requests: c.requests}
		var want []string
		for _, name := range c.want {
			want = append(want, gpu+"/gpu="+name)
		}
		n.wantDevices(pod, want...)
	}
	app.Resources = v1.ResourceRequirements{Claims: []v1.ResourceClaim{{Name: "my-b", Request: "one"}}}
	got, err := n.Of(pod, app)
	device := func(name, id string) Device {
		return Device{Driver: gpu, Pool: "pool", Name: name, CDIDeviceIDs: []string{gpu + "/gpu=" + id}}
	}
	want := []Claim{{Namespace: "default", Name: "b", Devices: []Device{device("d1", "b-1"), device("d2", "b-2")}}}
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("claims (-want +got), %v:\n%s", err, diff)
	}
	n.unprepare(pod)
	if _, err := n.CDIDevices(pod, app); err == nil || err.Error() != "internal error: unable to get claim info for ResourceClaim b in namespace default" {
		t.Errorf("devices of a claim that is not prepared: %v", err)
	}
	if _, err := n.Of(pod, app); err == nil || err.Error() != "unable to get information for ResourceClaim b" {
		t.Errorf("a claim that is not prepared: %v", err)
	}
}

func TestADeviceThatOthersShareIsKeptWithItsShare(t *testing.T) {
	pod := podWith("p", "a")
	n := startNode(t, t.TempDir(), runtime.Object(allocated("a", []string{gpu}, pod)))
	g := n.driver(gpu, drapb.DRAPluginService)
	share := "6f9ee2d1-8d54-4d1c-a3a1-4f7b1f5d3c8e"
	g.answer = func(r *drapb.NodePrepareResourcesResponse) error {
		r.Claims["a-uid"].Devices[0].ShareId = &share
		return nil
	}
	n.prepare(pod)
	n.restart()
	claims, err := n.Of(pod, &pod.Spec.Containers[0])
	if err != nil || *claims[0].Devices[0].ShareID != types.UID(share) || claims[0].Devices[1].ShareID != nil {
		t.Errorf("%+v, %v", claims, err)
	}
}
