package node

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
)

var nodesResource = v1.SchemeGroupVersion.WithResource("nodes")

// world is a node's registrar, its API server and what the watch has told.
type world struct {
	t      *testing.T
	client *fake.Clientset
	r      *Registrar

	mu      sync.Mutex
	facts   Facts
	watched *v1.Node
	calls   []string // verbs on nodes
	fail    map[string]error
	events  []string
	reset   int // connections were closed
}

func facts() Facts {
	return Facts{
		Capacity:    v1.ResourceList{v1.ResourceCPU: resource.MustParse("2"), v1.ResourcePods: resource.MustParse("110")},
		Allocatable: v1.ResourceList{v1.ResourceCPU: resource.MustParse("1900m"), v1.ResourcePods: resource.MustParse("110")},
		Info:        v1.NodeSystemInfo{KubeletVersion: KubeletVersion, BootID: "boot-1"},
	}
}

// inWorld runs a test with a registrar that runs; before prepares what is there
// when it starts.
func inWorld(t *testing.T, register bool, before func(w *world), test func(w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &world{t: t, client: fake.NewClientset(), facts: facts(), fail: map[string]error{}}
		w.client.PrependReactor("*", "nodes", func(a clienttesting.Action) (bool, runtime.Object, error) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.calls = append(w.calls, a.GetVerb())
			err := w.fail[a.GetVerb()]
			return err != nil, nil, err
		})
		w.r = New(Config{
			Client: w.client, Name: "node", Register: register,
			Labels:      map[string]string{v1.LabelHostname: "host", "role": "worker"},
			Annotations: map[string]string{"volumes.kubernetes.io/controller-managed-attach-detach": "true"},
			Taints:      []v1.Taint{{Key: "new", Effect: v1.TaintEffectNoSchedule}},
			Every:       10 * time.Second, Report: 5 * time.Minute, Lease: 40 * time.Second,
			Facts: func(context.Context) Facts {
				w.mu.Lock()
				defer w.mu.Unlock()
				return w.facts
			},
			Object: func() (*v1.Node, bool) {
				w.mu.Lock()
				defer w.mu.Unlock()
				return w.watched, w.watched != nil
			},
			Event: func(eventType, reason, message string) {
				w.mu.Lock()
				defer w.mu.Unlock()
				w.events = append(w.events, eventType+" "+reason+": "+message)
			},
			Unreachable: func() { w.change(func() { w.reset++ }) },
			Log:         slog.New(slog.DiscardHandler),
		})
		before(w)
		ctx, end := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- w.r.Run(ctx) }()
		synctest.Wait()
		test(w)
		end()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("Run returned %v", err)
		}
	})
}

func nothing(*world) {}

// change changes facts or failures.
func (w *world) change(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f()
}

func (w *world) took() []string {
	synctest.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	calls := w.calls
	w.calls = nil
	return calls
}

func (w *world) told() []string {
	synctest.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	events := w.events
	w.events = nil
	return events
}

func (w *world) in() *v1.Node {
	w.t.Helper()
	synctest.Wait()
	o, err := w.client.Tracker().Get(nodesResource, "", "node")
	if err != nil {
		w.t.Fatal(err)
	}
	return o.(*v1.Node).DeepCopy()
}

// others changes the node's object as somebody else would, and lets the watch tell.
func (w *world) others(f func(n *v1.Node)) {
	w.t.Helper()
	n := w.in()
	f(n)
	if err := w.client.Tracker().Update(nodesResource, n, ""); err != nil {
		w.t.Fatal(err)
	}
	w.change(func() { w.watched = n.DeepCopy() })
}

func (w *world) status(t v1.NodeConditionType) v1.ConditionStatus {
	w.t.Helper()
	s := w.in().Status
	c := find(s.Conditions, t)
	if c == nil {
		return "missing"
	}
	return c.Status
}

func TestANodeRegistersWithLabelsTaintsAndStatus(t *testing.T) {
	inWorld(t, true, nothing, func(w *world) {
		n := w.in()
		if n.Labels["role"] != "worker" || len(n.Spec.Taints) != 1 || len(n.Annotations) != 1 || n.Status.NodeInfo.BootID != "boot-1" {
			t.Errorf("registered %+v", n)
		}
		if w.status(v1.NodeReady) != v1.ConditionTrue {
			t.Error("not ready")
		}
		select {
		case <-w.r.Registered():
		default:
			t.Error("Registered is open")
		}
		want := []string{
			"Normal NodeHasSufficientMemory: Node node status is now: NodeHasSufficientMemory",
			"Normal NodeHasNoDiskPressure: Node node status is now: NodeHasNoDiskPressure",
			"Normal NodeHasSufficientPID: Node node status is now: NodeHasSufficientPID",
		}
		if got := w.told(); !slices.Equal(got, want) {
			t.Errorf("events %q", got)
		}
	})
}

func TestANodeThatIsThereKeepsItsClustersLabelsAndGetsItsHosts(t *testing.T) {
	old := func(w *world) {
		n := &v1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node", Labels: map[string]string{v1.LabelHostname: "old", "role": "db", "cluster": "x"},
			Annotations: map[string]string{"alpha.kubernetes.io/provided-node-ip": "192.0.2.9", "theirs": "1"}}}
		if err := w.client.Tracker().Add(n); err != nil {
			w.t.Fatal(err)
		}
	}
	for _, register := range []bool{true, false} {
		inWorld(t, register, old, func(w *world) {
			n := w.in()
			if n.Labels[v1.LabelHostname] != "host" || n.Labels["role"] != "db" || n.Labels["cluster"] != "x" {
				t.Errorf("labels %v", n.Labels)
			}
			if _, stale := n.Annotations["alpha.kubernetes.io/provided-node-ip"]; stale || n.Annotations["theirs"] != "1" {
				t.Errorf("annotations %v", n.Annotations)
			}
			if len(n.Spec.Taints) > 0 {
				t.Errorf("taints %v: they are the cluster's by now", n.Spec.Taints)
			}
			if w.status(v1.NodeReady) != v1.ConditionTrue {
				t.Error("not ready")
			}
		})
	}
}

func TestANodeThatMayNotBeCreatedIsTakenOverWhereItIs(t *testing.T) {
	forbid := func(w *world) {
		w.fail["create"] = apierrors.NewForbidden(nodesResource.GroupResource(), "node", errors.New("no"))
	}
	inWorld(t, true, forbid, func(w *world) {
		time.Sleep(time.Minute)
		select {
		case <-w.r.Registered():
			t.Error("registered without being there")
		default:
		}
		if n := len(w.took()); n > 40 {
			t.Errorf("%d requests in a minute", n)
		}
		if err := w.client.Tracker().Add(&v1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node"}}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Second)
		if w.status(v1.NodeReady) != v1.ConditionTrue {
			t.Error("not ready")
		}
	})
}

func TestTheStatusIsWrittenWhenItSaysSomethingElseOrAfterAWhile(t *testing.T) {
	inWorld(t, true, nothing, func(w *world) {
		w.took()
		time.Sleep(4*time.Minute + 50*time.Second)
		if got := w.took(); slices.Contains(got, "patch") {
			t.Errorf("calls %q although nothing has changed", got)
		}
		time.Sleep(20 * time.Second)
		if got := w.took(); !slices.Equal(got, []string{"patch"}) {
			t.Errorf("calls %q after Report", got)
		}
		w.change(func() { w.facts.MemoryPressure = true })
		w.r.Poke()
		if got := w.took(); !slices.Equal(got, []string{"patch"}) {
			t.Errorf("calls %q after a change", got)
		}
	})
}

func TestChangesOfConditionsAreEventsInTheKubeletsWords(t *testing.T) {
	inWorld(t, true, nothing, func(w *world) {
		w.told()
		for _, c := range []struct {
			change func()
			want   string
		}{
			{func() { w.facts.MemoryPressure = true }, "Normal NodeHasInsufficientMemory: Node node status is now: NodeHasInsufficientMemory"},
			{func() { w.facts.MemoryPressure = false }, "Normal NodeHasSufficientMemory: Node node status is now: NodeHasSufficientMemory"},
			{func() { w.facts.DiskPressure = true }, "Normal NodeHasDiskPressure: Node node status is now: NodeHasDiskPressure"},
			{func() { w.facts.DiskPressure = false }, "Normal NodeHasNoDiskPressure: Node node status is now: NodeHasNoDiskPressure"},
			{func() { w.facts.PIDPressure = true }, "Normal NodeHasInsufficientPID: Node node status is now: NodeHasInsufficientPID"},
			{func() { w.facts.PIDPressure = false }, "Normal NodeHasSufficientPID: Node node status is now: NodeHasSufficientPID"},
			{func() { w.facts.Problems = []string{"no network"} }, "Normal NodeNotReady: Node node status is now: NodeNotReady"},
			{func() { w.facts.Problems = nil }, "Normal NodeReady: Node node status is now: NodeReady"},
			{func() { w.facts.Info.BootID = "boot-2" }, "Warning Rebooted: Node node has been rebooted, boot id: boot-2"},
		} {
			w.change(c.change)
			time.Sleep(10 * time.Second)
			if got := w.told(); !slices.Equal(got, []string{c.want}) {
				t.Errorf("events %q, want %q", got, c.want)
			}
		}
		w.others(func(n *v1.Node) { n.Spec.Unschedulable = true })
		time.Sleep(10 * time.Second)
		w.others(func(n *v1.Node) { n.Spec.Unschedulable = false })
		time.Sleep(10 * time.Second)
		want := []string{
			"Normal NodeNotSchedulable: Node node status is now: NodeNotSchedulable",
			"Normal NodeSchedulable: Node node status is now: NodeSchedulable",
		}
		if got := w.told(); !slices.Equal(got, want) {
			t.Errorf("events %q", got)
		}
	})
}

func TestANodeThatAControllerTookForLostSaysThatItIsNot(t *testing.T) {
	inWorld(t, true, nothing, func(w *world) {
		time.Sleep(time.Minute)
		w.others(func(n *v1.Node) {
			for i := range n.Status.Conditions {
				n.Status.Conditions[i].Status, n.Status.Conditions[i].Reason = v1.ConditionUnknown, "NodeStatusUnknown"
			}
			n.Status.Conditions = append(n.Status.Conditions, v1.NodeCondition{Type: "example.com/Theirs", Status: v1.ConditionTrue})
			n.Status.VolumesAttached = []v1.AttachedVolume{{Name: "vol"}}
		})
		time.Sleep(10 * time.Second)
		if w.status(v1.NodeReady) != v1.ConditionTrue || w.status(v1.NodeMemoryPressure) != v1.ConditionFalse {
			t.Error("the node stays lost")
		}
		if w.status("example.com/Theirs") != v1.ConditionTrue || len(w.in().Status.VolumesAttached) != 1 {
			t.Error("what others say of the node is gone")
		}
	})
}

func TestResourcesThatOthersGiveANodeStay(t *testing.T) {
	inWorld(t, true, nothing, func(w *world) {
		w.others(func(n *v1.Node) {
			n.Status.Capacity["example.com/foo"] = resource.MustParse("5")
			n.Status.Capacity["hugepages-1Gi"] = resource.MustParse("1Gi")
		})
		time.Sleep(10 * time.Second)
		s := w.in().Status
		if c, a := s.Capacity["example.com/foo"], s.Allocatable["example.com/foo"]; c.Value() != 5 || a.Value() != 5 {
			t.Errorf("capacity %v, allocatable %v", s.Capacity, s.Allocatable)
		}
		if _, ok := s.Capacity["hugepages-1Gi"]; ok {
			t.Error("the node has huge pages that its host has not")
		}
		if cpu := s.Allocatable[v1.ResourceCPU]; cpu.String() != "1900m" {
			t.Errorf("allocatable CPU %s", cpu.String())
		}
	})
}

func TestANodeThatWasDeletedRegistersAgain(t *testing.T) {
	inWorld(t, true, nothing, func(w *world) {
		if err := w.client.Tracker().Delete(nodesResource, "", "node"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5*time.Minute + 20*time.Second)
		if n := w.in(); n.Labels["role"] != "worker" || len(n.Spec.Taints) != 1 {
			t.Errorf("registered %+v", n)
		}
		if w.status(v1.NodeReady) != v1.ConditionTrue {
			t.Error("not ready")
		}
	})
}

func TestAnAPIServerThatIsAwayIsNotAskedAllTheTime(t *testing.T) {
	inWorld(t, true, func(w *world) { w.facts.Problems = []string{"no network"} }, func(w *world) {
		w.took()
		w.change(func() {
			w.fail["patch"], w.fail["get"] = errors.New("connection refused"), errors.New("connection refused")
			w.facts.Problems = nil
		})
		time.Sleep(20 * time.Second)
		if n := len(w.took()); n == 0 || n > 8 {
			t.Errorf("%d requests in 20 s", n)
		}
		w.change(func() { clear(w.fail) })
		time.Sleep(10 * time.Second)
		if w.status(v1.NodeReady) != v1.ConditionTrue {
			t.Error("not ready after the API server is back")
		}
	})
}

func TestANodeGetsReadyWithinATickOnceItIs(t *testing.T) {
	inWorld(t, true, func(w *world) { w.facts.Problems = []string{"one", "two"} }, func(w *world) {
		if c := find(w.in().Status.Conditions, v1.NodeReady); c.Message != "[one, two]" || c.Reason != "KubeletNotReady" {
			t.Errorf("condition %+v", c)
		}
		w.change(func() { w.facts.Problems = nil })
		time.Sleep(eager)
		if w.status(v1.NodeReady) != v1.ConditionTrue {
			t.Error("not ready")
		}
	})
}

func TestTheLeaseIsRenewedAndBelongsToTheNode(t *testing.T) {
	inWorld(t, true, nothing, func(w *world) {
		renewed := func() time.Time {
			synctest.Wait()
			l, err := w.client.CoordinationV1().Leases(v1.NamespaceNodeLease).Get(t.Context(), "node", metav1.GetOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if *l.Spec.LeaseDurationSeconds != 40 || *l.Spec.HolderIdentity != "node" {
				t.Errorf("lease %+v", l.Spec)
			}
			if len(l.OwnerReferences) != 1 || l.OwnerReferences[0].Kind != "Node" || l.OwnerReferences[0].Name != "node" {
				t.Errorf("owners %+v", l.OwnerReferences)
			}
			return l.Spec.RenewTime.Time
		}
		time.Sleep(time.Second)
		first := renewed()
		time.Sleep(12 * time.Second) // its interval has some jitter
		if second := renewed(); !second.After(first) {
			t.Errorf("renewed at %s and still at %s", first, second)
		}
	})
}

func TestAddressesAreTheCloudProvidersOnceThereAreSome(t *testing.T) {
	own := []v1.NodeAddress{{Type: v1.NodeInternalIP, Address: "192.0.2.1"}}
	theirs := []v1.NodeAddress{{Type: v1.NodeExternalIP, Address: "198.51.100.1"}}
	for _, c := range []struct {
		cloud     bool
		had, want []v1.NodeAddress
	}{{false, nil, own}, {false, theirs, own}, {true, nil, own}, {true, theirs, theirs}} {
		f := facts()
		f.Addresses, f.CloudAddresses = own, c.cloud
		if got := Status(f, v1.NodeStatus{Addresses: c.had}, time.Unix(1, 0)).Addresses; !slices.Equal(got, c.want) {
			t.Errorf("%+v: %v", c, got)
		}
	}
}

func TestConnectionsAreClosedWhenTheLeaseCannotBeRenewed(t *testing.T) {
	broken := func(w *world) {
		w.client.PrependReactor("update", "leases", func(clienttesting.Action) (bool, runtime.Object, error) {
			return true, nil, context.DeadlineExceeded
		})
	}
	inWorld(t, true, broken, func(w *world) {
		time.Sleep(20 * time.Second)
		synctest.Wait()
		w.change(func() {
			if w.reset == 0 {
				t.Error("nobody is told that the API server is out of reach")
			}
		})
	})
}

func TestReadyIsTheLastOfTheNodesConditions(t *testing.T) {
	s := Status(facts(), v1.NodeStatus{}, time.Unix(1, 0))
	var got []v1.NodeConditionType
	for _, c := range s.Conditions {
		got = append(got, c.Type)
	}
	if !slices.Equal(got, []v1.NodeConditionType{v1.NodeMemoryPressure, v1.NodeDiskPressure, v1.NodePIDPressure, v1.NodeReady}) {
		t.Errorf("conditions %q", got)
	}
	later := Status(facts(), s, time.Unix(100, 0))
	if !Same(s, later) || later.Conditions[0].LastTransitionTime.Unix() != 1 || later.Conditions[0].LastHeartbeatTime.Unix() != 100 {
		t.Errorf("conditions %+v", later.Conditions)
	}
}
