package agent

import (
	"context"
	"testing"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/berth-io/berth/agent/admit"
)

// gives asks for the pods of its map, and says of them what is in it.
type gives map[types.UID]*admit.Rejection

func (g gives) Asks(pod *v1.Pod) bool { _, asks := g[pod.UID]; return asks }

func (g gives) ask(_ context.Context, pod *v1.Pod, _ func() []*v1.Pod) *admit.Rejection {
	return g[pod.UID]
}
func (g gives) allocate(*v1.Pod, []*v1.Pod) *admit.Rejection { return nil }

func nodeIn(zone string) *v1.Node {
	return &v1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n", Labels: map[string]string{"zone": zone}},
		Status: v1.NodeStatus{Allocatable: v1.ResourceList{v1.ResourcePods: resource.MustParse("10")}}}
}

func podFor(uid, zone string) *v1.Pod {
	p := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Name: uid, UID: types.UID(uid)}}
	if zone != "" {
		p.Spec.NodeSelector = map[string]string{"zone": zone}
	}
	return p
}

func admissionOf(t *testing.T, give giver, seen, anew *v1.Node) (a *admission, reads *int) {
	t.Helper()
	checker, err := admit.New(admit.Config{KernelVersion: "6.1.0", KubernetesVersion: "v1.36.3"})
	if err != nil {
		t.Fatal(err)
	}
	reads = new(int)
	return &admission{
		check: func(pod *v1.Pod, others []*v1.Pod, node *v1.Node, allocate func(*v1.Pod) *admit.Rejection) admit.Decision {
			return checker.Check(admit.Input{Pod: pod, Others: others, Node: node, Allocate: allocate})
		},
		give: give, node: func() *v1.Node { return seen }, rejected: func(*admit.Rejection) {},
		read: func(context.Context) *v1.Node { *reads++; return anew },
	}, reads
}

// settle asks until there is a decision.
func settle(t *testing.T, a *admission, pod *v1.Pod) admit.Decision {
	t.Helper()
	decide := a.knowing(answers{})
	for range 10 {
		d, ask := decide(pod, nil)
		if ask == nil {
			return d
		}
		decide = ask(t.Context(), func() []*v1.Pod { return []*v1.Pod{pod} })
	}
	t.Fatal("it asks for ever")
	return admit.Decision{}
}

func TestTheNodeIsReadAnewBeforeAPodIsRejectedForItsLabels(t *testing.T) {
	for _, test := range []struct {
		name     string
		anew     *v1.Node
		zone     string
		rejected bool
		reads    int
	}{
		{"its labels match", nodeIn("b"), "a", false, 0},
		{"the label was set a moment ago", nodeIn("b"), "b", false, 1},
		{"no node has such a label", nodeIn("b"), "c", true, 1},
		{"the API server is away", nil, "b", true, 1},
	} {
		a, reads := admissionOf(t, gives{}, nodeIn("a"), test.anew)
		d := settle(t, a, podFor("p", test.zone))
		if (d.Rejection != nil) != test.rejected || d.Rejection != nil && d.Rejection.Reason != admit.NodeAffinity {
			t.Errorf("%s: rejection %+v", test.name, d.Rejection)
		}
		if *reads != test.reads {
			t.Errorf("%s: the node was read %d times, want %d", test.name, *reads, test.reads)
		}
	}
}

func TestWhatOthersAnswerIsForOnePod(t *testing.T) {
	refused := &admit.Rejection{Reason: admit.UnexpectedAdmissionError, Message: "no device"}
	a, _ := admissionOf(t, gives{"refused": refused, "given": nil}, nodeIn("a"), nil)
	decide := a.knowing(answers{})
	_, ask := decide(podFor("refused", ""), nil)
	if ask == nil {
		t.Fatal("nobody is asked for a pod that asks for a device")
	}
	next := ask(t.Context(), nil)
	if d, _ := decide(podFor("plain", ""), nil); d.Rejection != nil {
		t.Errorf("a pod that asks for nothing is rejected: %+v", d.Rejection)
	}
	if _, ask := decide(podFor("given", ""), nil); ask == nil {
		t.Error("the answer to one pod counts for another")
	}
	if d, ask := next(podFor("refused", ""), nil); ask != nil || d.Rejection != refused {
		t.Errorf("the answer was %+v", d.Rejection)
	}
	if d := settle(t, a, podFor("given", "")); d.Rejection != nil {
		t.Errorf("a pod that was given its device is rejected: %+v", d.Rejection)
	}
}

func TestPodsMakeRoomForACriticalPodThatGrows(t *testing.T) {
	victim := podFor("small", "")
	for _, test := range []struct {
		name    string
		d       admit.Decision
		victims int
		fits    bool
	}{
		{"there is room", admit.Decision{}, 0, true},
		{"it is not critical", admit.Decision{Rejection: &admit.Rejection{Message: "no"}}, 0, false},
		{"others must end", admit.Decision{Victims: []admit.Victim{{Pod: victim}}, Preemptor: v1.ResourceCPU}, 1, false},
	} {
		var ended []*v1.Pod
		message, fits := room(test.d, func(v admit.Victim) { ended = append(ended, v.Pod) })
		if fits != test.fits || (message == "") != fits || len(ended) != test.victims {
			t.Errorf("%s: fits %v with %q, %d pods end", test.name, fits, message, len(ended))
		}
	}
}
