package podreport

import (
	"encoding/json"
	"math/rand/v2"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
)

// anyStatus is some status with conditions of the node's and of others in some
// order, and times finer than the API's.
func anyStatus(r *rand.Rand) v1.PodStatus {
	at := func() metav1.Time { return metav1.NewTime(time.Unix(r.Int64N(1000), r.Int64N(1e9))) }
	truth := []v1.ConditionStatus{v1.ConditionTrue, v1.ConditionFalse, v1.ConditionUnknown}
	s := v1.PodStatus{Phase: []v1.PodPhase{v1.PodPending, v1.PodRunning, v1.PodSucceeded, v1.PodFailed}[r.IntN(4)]}
	types := []v1.PodConditionType{
		v1.PodReadyToStartContainers, v1.PodInitialized, v1.PodReady, v1.ContainersReady, v1.PodScheduled,
		v1.DisruptionTarget, "example.com/one", "example.com/two",
	}
	for _, i := range r.Perm(len(types))[:r.IntN(len(types)+1)] {
		s.Conditions = append(s.Conditions, v1.PodCondition{Type: types[i], Status: truth[r.IntN(3)], LastTransitionTime: at()})
	}
	for _, ip := range []string{"192.0.2.1", "2001:db8::1"}[:r.IntN(3)] {
		s.PodIPs = append(s.PodIPs, v1.PodIP{IP: ip})
		s.PodIP = s.PodIPs[0].IP
	}
	if r.IntN(2) == 0 {
		s.StartTime = new(at())
	}
	for _, name := range []string{"c", "a", "b"}[:r.IntN(4)] {
		message := strings.Repeat([]string{"x", "é", "\xff", ""}[r.IntN(4)], r.IntN(6000))
		c := v1.ContainerStatus{Name: name, Ready: r.IntN(2) == 0, RestartCount: r.Int32N(3)}
		switch r.IntN(3) {
		case 0:
			c.State.Waiting = &v1.ContainerStateWaiting{Reason: "ErrImagePull", Message: message}
		case 1:
			c.State.Running = &v1.ContainerStateRunning{StartedAt: at()}
		default:
			c.State.Terminated = &v1.ContainerStateTerminated{FinishedAt: at(), Message: message}
		}
		s.ContainerStatuses = append(s.ContainerStatuses, c)
	}
	return s
}

// stored is a status as it comes out of the API again.
func stored(t *testing.T, s v1.PodStatus) v1.PodStatus {
	t.Helper()
	data, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	var out v1.PodStatus
	if err := json.Unmarshal(data, &out); err != nil {
		t.Fatal(err)
	}
	return out
}

func TestWhatWasWrittenIsNeverWrittenAgain(t *testing.T) {
	for seed := range uint64(2000) {
		r := rand.New(rand.NewPCG(seed, 0))
		node, object := anyStatus(r), &v1.Pod{ObjectMeta: metav1.ObjectMeta{UID: "uid"}, Status: stored(t, anyStatus(r))}
		next := Merge(node, object.Status)
		patch, err := statusPatch(object, next)
		if err != nil {
			t.Fatal(err)
		}
		before, err := json.Marshal(object)
		if err != nil {
			t.Fatal(err)
		}
		after, err := strategicpatch.StrategicMergePatch(before, patch, v1.Pod{})
		if err != nil {
			t.Fatal(err)
		}
		var written v1.Pod
		if err := json.Unmarshal(after, &written); err != nil {
			t.Fatal(err)
		}
		if again := Merge(node, written.Status); !equality.Semantic.DeepEqual(again, written.Status) {
			t.Fatalf("seed %d: the API has\n%+v\nand it is to be\n%+v", seed, written.Status, again)
		}
	}
}

func TestMergeChangesNeitherOfWhatItMerges(t *testing.T) {
	for seed := range uint64(500) {
		r := rand.New(rand.NewPCG(seed, 1))
		node, api := anyStatus(r), anyStatus(r)
		nodeBefore, apiBefore := node.DeepCopy(), api.DeepCopy()
		Merge(node, api)
		if !equality.Semantic.DeepEqual(&node, nodeBefore) || !equality.Semantic.DeepEqual(&api, apiBefore) {
			t.Fatalf("seed %d: changed", seed)
		}
	}
}

func TestContainersShareTheRoomForTheirMessages(t *testing.T) {
	long := strings.Repeat("é", 5000)
	s := v1.PodStatus{}
	for _, name := range []string{"b", "a", "c"} {
		s.ContainerStatuses = append(s.ContainerStatuses, v1.ContainerStatus{
			Name: name, LastTerminationState: v1.ContainerState{Terminated: &v1.ContainerStateTerminated{Message: long}},
		})
	}
	for i, c := range Merge(s, v1.PodStatus{}).ContainerStatuses {
		m := c.LastTerminationState.Terminated.Message
		if len(m) != 4096 || !utf8.ValidString(m) {
			t.Errorf("container %s has %d bytes", c.Name, len(m))
		}
		if c.Name != string("abc"[i]) {
			t.Errorf("container %d is %s: they go by name, as the kubelet has them", i, c.Name)
		}
	}
}
