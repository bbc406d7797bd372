package dra

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
	healthpb "k8s.io/kubelet/pkg/apis/dra-health/v1alpha1"
	drapb "k8s.io/kubelet/pkg/apis/dra/v1"
	drapbv1beta1 "k8s.io/kubelet/pkg/apis/dra/v1beta1"
)

func TestADriverThatCannotBeSpokenToIsRefused(t *testing.T) {
	n := startNode(t, t.TempDir())
	for _, c := range []struct {
		versions []string
		want     string
	}{
		{nil, "invalid supported gRPC versions of DRA driver plugin d at endpoint /e: empty list of supported gRPC services (aka supported versions)"},
		{[]string{"v1alpha4.Node"}, `invalid supported gRPC versions of DRA driver plugin d at endpoint /e: none of services supported by the plugin (["v1alpha4.Node"]) are supported by the kubelet (["v1.DRAPlugin" "v1beta1.DRAPlugin"])`},
		{[]string{"v9.Other", "v1beta1.DRAPlugin"}, ""},
	} {
		got := ""
		if err := n.Drivers().Validate("d", "/e", c.versions); err != nil {
			got = err.Error()
		}
		if got != c.want {
			t.Errorf("%q: %s\nwant %s", c.versions, got, c.want)
		}
	}
	if err := n.Drivers().Register(t.Context(), "d", "/e", nil); err == nil {
		t.Error("it is registered")
	}
}

func TestOfADriversPluginsTheNewestThatIsThereIsAsked(t *testing.T) {
	pods := []*v1.Pod{podWith("p0", "a0"), podWith("p1", "a1"), podWith("p2", "a2")}
	var objects []runtime.Object
	for _, pod := range pods {
		objects = append(objects, allocated(*pod.Spec.ResourceClaims[0].ResourceClaimName, []string{gpu}, pod))
	}
	n := startNode(t, t.TempDir(), objects...)
	old := n.driver(gpu, drapbv1beta1.DRAPluginService)
	next := n.driver(gpu, drapb.DRAPluginService)
	n.prepare(pods[0])
	next.wantCalls(t, "prepare a0")
	if err := n.Drivers().Register(t.Context(), gpu, old.endpoint, []string{drapb.DRAPluginService}); err == nil ||
		err.Error() != "endpoint "+old.endpoint+" already registered for DRA driver plugin "+gpu {
		t.Errorf("a second plugin at the same endpoint: %v", err)
	}
	next.server.Stop() // without a word
	n.eventually("its end is noticed", func() bool {
		p, err := n.drivers.get(gpu)
		return err == nil && p.endpoint == old.endpoint
	})
	n.prepare(pods[1])
	old.wantCalls(t, "prepare a1")
	n.Drivers().Deregister(gpu, next.endpoint)
	n.Drivers().Deregister(gpu, "/unknown")
	n.prepare(pods[2])
	old.wantCalls(t, "prepare a1", "prepare a2")
	n.Drivers().Deregister(gpu, old.endpoint)
	if _, err := n.drivers.get(gpu); err == nil {
		t.Error("there is a plugin still")
	}
	if _, err := n.drivers.get(""); err == nil || err.Error() != "DRA driver name is empty" {
		t.Errorf("no name: %v", err)
	}
}

func TestADriverIsLostOnceNoneOfItsPluginsIsThere(t *testing.T) {
	n := startNode(t, t.TempDir())
	lost := func() bool {
		n.drivers.wiper.mu.Lock()
		defer n.drivers.wiper.mu.Unlock()
		return n.drivers.wiper.due[gpu] != nil
	}
	g := n.driver(gpu, drapb.DRAPluginService)
	n.eventually("the driver is there, and pods are told", func() bool { return !lost() && n.came.Load() == 1 })
	g.server.Stop()
	n.eventually("the driver is lost", lost)
	again := n.driver(gpu, drapb.DRAPluginService)
	n.eventually("the driver is there again, and pods are told", func() bool { return !lost() && n.came.Load() == 2 })
	n.Drivers().Deregister(gpu, g.endpoint)
	if lost() {
		t.Error("the driver is lost although it has a plugin")
	}
	n.Drivers().Deregister(gpu, again.endpoint)
	if !lost() {
		t.Error("the driver is not lost although it has no plugin")
	}
}

// inWipes runs a wiper in a bubble of time.
func inWipes(t *testing.T, test func(w *wiper, wiped func() []string, fail func(error))) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var selectors []string
		var failure error
		api := fake.NewClientset()
		api.PrependReactor("delete-collection", "resourceslices", func(action clienttesting.Action) (bool, runtime.Object, error) {
			mu.Lock()
			defer mu.Unlock()
			selectors = append(selectors, action.(clienttesting.DeleteCollectionAction).GetListRestrictions().Fields.String())
			return true, nil, failure
		})
		w := newWiper(api.ResourceV1().ResourceSlices(), "node", slog.New(slog.NewTextHandler(io.Discard, nil)))
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { _ = w.run(ctx); close(done) }()
		defer func() { cancel(); <-done }()
		test(w, func() []string {
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			return slices.Clone(selectors)
		}, func(err error) {
			mu.Lock()
			defer mu.Unlock()
			failure = err
		})
	})
}

const nodesOwn, drivers = "spec.nodeName=node", "spec.driver=gpu.example.com,spec.nodeName=node"

func TestSlicesOfADriverThatStaysAwayAreRemoved(t *testing.T) {
	inWipes(t, func(w *wiper, wiped func() []string, _ func(error)) {
		want := []string{nodesOwn} // at start: no driver is there yet
		check := func(what string) {
			t.Helper()
			if got := wiped(); !slices.Equal(got, want) {
				t.Errorf("%s: removed %q, want %q", what, got, want)
			}
		}
		check("at start")
		w.lost(gpu)
		time.Sleep(29 * time.Second)
		w.back(gpu)
		time.Sleep(time.Hour)
		check("after it was away for 29 s")
		w.lost(gpu)
		time.Sleep(20 * time.Second)
		w.lost(gpu) // it is deregistered, having been away before
		time.Sleep(9 * time.Second)
		check("before 30 s are over")
		time.Sleep(time.Second)
		want = append(want, drivers)
		check("after 30 s")
		time.Sleep(time.Hour)
		check("an hour later")
	})
}

func TestARemovalThatFailsIsTriedAgain(t *testing.T) {
	inWipes(t, func(w *wiper, wiped func() []string, fail func(error)) {
		if n := len(wiped()); n != 1 {
			t.Fatalf("%d removals at start", n)
		}
		fail(errors.New("the API server is away"))
		w.lost(gpu)
		time.Sleep(30*time.Second + (1+2+4+8)*time.Second)
		if n := len(wiped()); n != 1+5 {
			t.Errorf("%d tries", n-1)
		}
		time.Sleep(time.Hour)
		if n := len(wiped()); n > 1+5+20 {
			t.Errorf("%d tries in an hour", n-6)
		}
		fail(apierrors.NewNotFound(v1.Resource("resourceslices"), "")) // it has no such resource
		time.Sleep(time.Hour)
		tries := len(wiped())
		time.Sleep(time.Hour)
		if n := len(wiped()); n != tries {
			t.Errorf("%d tries after it is done", n-tries)
		}
		fail(errors.New("the API server is away"))
		w.lost(gpu)
		time.Sleep(time.Minute)
		w.back(gpu)
		tries = len(wiped())
		time.Sleep(time.Hour)
		if n := len(wiped()); n != tries {
			t.Errorf("%d tries although the driver is back", n-tries)
		}
	})
}

func healthOfDevice(name string, health healthpb.HealthStatus, message string) *healthpb.DeviceHealth {
	return &healthpb.DeviceHealth{Device: &healthpb.DeviceIdentifier{PoolName: "pool", DeviceName: name}, Health: health, Message: message}
}

func TestWhatADriverSaysOfItsDevicesIsInTheContainersStatus(t *testing.T) {
	pod := podWith("p", "a")
	n := startNode(t, t.TempDir(), allocated("a", []string{gpu}, pod))
	g := n.driver(gpu, drapb.DRAPluginService)
	n.prepare(pod)
	want := func(claim string, health ...v1.ResourceHealth) {
		t.Helper()
		if diff := cmp.Diff([]v1.ResourceStatus{{Name: v1.ResourceName(claim), Resources: health}}, n.Health(pod, "app")); diff != "" {
			t.Errorf("allocatedResourcesStatus (-want +got):\n%s", diff)
		}
	}
	is := func(id string, health v1.ResourceHealthStatus, message string) v1.ResourceHealth {
		h := v1.ResourceHealth{ResourceID: v1.ResourceID(gpu + "/gpu=" + id), Health: health}
		if message != "" {
			h.Message = &message
		}
		return h
	}
	want("claim:my-a", is("a-1", "Unknown", ""), is("a-2", "Unknown", ""))
	told := func() {
		t.Helper()
		select {
		case uids := <-n.health:
			if !slices.Equal(uids, []string{"p-uid"}) {
				t.Errorf("%q are told", uids)
			}
		case <-time.After(30 * time.Second):
			t.Fatal("nobody is told")
		}
	}
	g.told <- []*healthpb.DeviceHealth{healthOfDevice("d1", healthpb.HealthStatus_HEALTHY, ""), healthOfDevice("d2", healthpb.HealthStatus_UNHEALTHY, strings.Repeat("x", 1025))}
	told()
	want("claim:my-a", is("a-1", "Healthy", ""), is("a-2", "Unhealthy", strings.Repeat("x", 1021)+"..."))
	pod.Spec.Containers[0].Resources.Claims[0].Request = "other/sub"
	want("claim:my-a/other/sub", is("a-2", "Unhealthy", strings.Repeat("x", 1021)+"..."))
	pod.Spec.Containers[0].Resources.Claims[0].Request = ""
	n.restart() // it is known still
	want("claim:my-a", is("a-1", "Healthy", ""), is("a-2", "Unhealthy", strings.Repeat("x", 1021)+"..."))
	n.register(g, drapb.DRAPluginService)
	g.told <- []*healthpb.DeviceHealth{healthOfDevice("d2", healthpb.HealthStatus_HEALTHY, "cooled down")}
	told()
	want("claim:my-a", is("a-1", "Healthy", ""), is("a-2", "Healthy", "cooled down"))
	n.Drivers().Deregister(gpu, g.endpoint)
	told()
	want("claim:my-a", is("a-1", "Unknown", ""), is("a-2", "Unknown", ""))
	if got := n.Health(pod, "init"); got != nil {
		t.Errorf("another container has %v", got)
	}
}

func TestHealthIsUnknownWhenNobodyHasSaidItForAWhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var told []string
		h := newHealth(t.TempDir(), slog.New(slog.NewTextHandler(io.Discard, nil)), func(driver string, devices []deviceHealth) {
			for _, d := range devices {
				told = append(told, driver+" "+d.DeviceName+" "+string(d.Health))
			}
		})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { _ = h.run(ctx); close(done) }()
		defer func() { cancel(); <-done }()
		long := healthOfDevice("d2", healthpb.HealthStatus_HEALTHY, "")
		long.HealthCheckTimeoutSeconds = 100
		h.take(gpu, nil, []*healthpb.DeviceHealth{healthOfDevice("d1", healthpb.HealthStatus_HEALTHY, "fine"), long})
		time.Sleep(29 * time.Second)
		h.take(gpu, nil, []*healthpb.DeviceHealth{healthOfDevice("d1", healthpb.HealthStatus_HEALTHY, "fine")})
		time.Sleep(29 * time.Second)
		if health, message := h.of(gpu, "pool", "d1"); health != "Healthy" || *message != "fine" {
			t.Errorf("%s %v after 29 s", health, message)
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if health, message := h.of(gpu, "pool", "d1"); health != "Unknown" || message != nil {
			t.Errorf("%s %v after 31 s", health, message)
		}
		time.Sleep(41 * time.Second)
		synctest.Wait()
		want := []string{gpu + " d1 Healthy", gpu + " d2 Healthy", gpu + " d1 Unknown", gpu + " d2 Unknown"}
		if !slices.Equal(told, want) {
			t.Errorf("told %q, want %q", told, want)
		}
	})
}

func TestTheMetricsAreTheKubelets(t *testing.T) {
	pod := podWith("p", "a", "b")
	n := startNode(t, t.TempDir(), allocated("a", []string{gpu}, pod), allocated("b", []string{gpu, "net.example.com"}, pod))
	n.driver(gpu, drapb.DRAPluginService)
	if err := n.Prepare(t.Context(), pod); err == nil {
		t.Fatal("it is prepared without a driver")
	}
	n.driver("net.example.com", drapb.DRAPluginService)
	n.prepare(pod)
	registry := prometheus.NewRegistry()
	registry.MustRegister(n)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			name := f.GetName()
			for _, l := range m.GetLabel() {
				name += " " + l.GetName() + "=" + l.GetValue()
			}
			got[name] = m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	want := map[string]float64{
		"dra_operations_duration_seconds is_error=false operation_name=PrepareResources":                                                                                  1,
		"dra_operations_duration_seconds is_error=true operation_name=PrepareResources":                                                                                   1,
		"dra_grpc_operations_duration_seconds driver_name=gpu.example.com grpc_status_code=OK method_name=/k8s.io.kubelet.pkg.apis.dra.v1.DRAPlugin/NodePrepareResources": 1,
		"dra_grpc_operations_duration_seconds driver_name=net.example.com grpc_status_code=OK method_name=/k8s.io.kubelet.pkg.apis.dra.v1.DRAPlugin/NodePrepareResources": 1,
		"dra_resource_claims_in_use driver_name=<any>":                                                                                                                    2,
		"dra_resource_claims_in_use driver_name=gpu.example.com":                                                                                                          2,
		"dra_resource_claims_in_use driver_name=net.example.com":                                                                                                          1,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("metrics (-want +got):\n%s", diff)
	}
}
