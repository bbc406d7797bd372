package evict

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/berth-io/berth/agent/disruption"
	"github.com/berth-io/berth/agent/usage"
)

func order(pods []*v1.Pod) []string {
	var names []string
	for _, p := range pods {
		names = append(names, p.Name)
	}
	return names
}

func TestPodsAreRankedAsDocumented(t *testing.T) {
	none := usage.Disk{}
	tests := []struct {
		name   string
		signal Signal
		layout usage.Layout
		pods   []*v1.Pod
		used   Usage
		want   []string
	}{
		{"memory: above the request, then priority, then how much above", MemoryAvailable, usage.Single,
			[]*v1.Pod{
				pod("within", "memory", "1Gi"),
				with(pod("above-important", "memory", "10Mi"), priority(10)),
				pod("above-little", "memory", "100Mi"), pod("above-much", "memory", "10Mi"),
				pod("unknown", "memory", "1Gi"),
			},
			Usage{
				"within": uses(900*mi, none, none, none), "above-important": uses(gi, none, none, none),
				"above-little": uses(150*mi, none, none, none), "above-much": uses(140*mi, none, none, none),
			},
			[]string{"unknown", "above-much", "above-little", "above-important", "within"}},
		{"allocatable memory as memory", AllocatableMemoryAvailable, usage.Single,
			[]*v1.Pod{pod("a"), pod("b")}, Usage{"a": uses(1, none, none, none), "b": uses(2, none, none, none)}, []string{"b", "a"}},
		{"process IDs: priority, then their number", PIDAvailable, usage.Single,
			[]*v1.Pod{with(pod("important"), priority(1)), pod("few"), pod("many")},
			Usage{"important": uses(900, none, none, none), "few": uses(1, none, none, none), "many": uses(5, none, none, none)},
			[]string{"many", "few", "important"}},
		{"one disk: everything counts", NodeFSAvailable, usage.Single,
			[]*v1.Pod{pod("layer"), pod("log"), pod("volume")},
			Usage{"layer": uses(0, bytes(3), none, none), "log": uses(0, none, bytes(2), none), "volume": uses(0, none, none, bytes(1))},
			[]string{"layer", "log", "volume"}},
		{"images apart, node's disk: not the writable layers", NodeFSAvailable, usage.ImagesApart,
			[]*v1.Pod{pod("layer"), pod("log"), pod("volume")},
			Usage{"layer": uses(0, bytes(3), none, none), "log": uses(0, none, bytes(2), none), "volume": uses(0, none, none, bytes(1))},
			[]string{"log", "volume", "layer"}},
		{"images apart, their disk: only the writable layers", ImageFSAvailable, usage.ImagesApart,
			[]*v1.Pod{pod("volume"), pod("log"), pod("layer")},
			Usage{"layer": uses(0, bytes(1), none, none), "log": uses(0, none, bytes(2), none), "volume": uses(0, none, none, bytes(3))},
			[]string{"layer", "volume", "log"}},
		{"split, images' disk: nobody's", ImageFSAvailable, usage.Split,
			[]*v1.Pod{pod("first"), with(pod("second"), priority(-1))},
			Usage{"first": uses(0, bytes(9), none, none), "second": uses(0, bytes(1), none, none)},
			[]string{"second", "first"}},
		{"split, containers' disk: everything", ContainerFSAvailable, usage.Split,
			[]*v1.Pod{pod("a"), pod("b")}, Usage{"a": uses(0, bytes(1), none, none), "b": uses(0, none, none, bytes(2))}, []string{"b", "a"}},
		{"requests for storage count", NodeFSAvailable, usage.Single,
			[]*v1.Pod{pod("asked", "ephemeral-storage", "1Gi"), pod("not")},
			Usage{"asked": uses(0, bytes(gi/2), none, none), "not": uses(0, bytes(1), none, none)}, []string{"not", "asked"}},
		{"inodes are asked for by nobody", NodeFSInodesFree, usage.Single,
			[]*v1.Pod{pod("few"), pod("many", "ephemeral-storage", "1Gi")},
			Usage{"few": uses(0, usage.Disk{Bytes: 9, Inodes: 2}, none, none), "many": uses(0, usage.Disk{Inodes: 3}, none, none)}, []string{"many", "few"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			p := policy(t, Settings{}, test.layout)
			if diff := cmp.Diff(test.want, order(p.rank(test.signal, test.pods, test.used))); diff != "" {
				t.Errorf("order (-want +got):\n%s", diff)
			}
		})
	}
}

func TestWhatIsFreedBeforeAPodEnds(t *testing.T) {
	both, none := []Reclaim{DeadContainers, UnusedImages}, []Reclaim(nil)
	for _, test := range []struct {
		signal               Signal
		single, apart, split []Reclaim
	}{
		{MemoryAvailable, none, none, none},
		{PIDAvailable, none, none, none},
		{NodeFSAvailable, both, none, []Reclaim{DeadContainers}},
		{NodeFSInodesFree, both, none, []Reclaim{DeadContainers}},
		{ImageFSAvailable, both, both, []Reclaim{UnusedImages}},
		{ImageFSInodesFree, both, both, []Reclaim{UnusedImages}},
		{ContainerFSAvailable, both, both, []Reclaim{DeadContainers}},
	} {
		for layout, want := range map[usage.Layout][]Reclaim{usage.Single: test.single, usage.ImagesApart: test.apart, usage.Split: test.split} {
			if diff := cmp.Diff(want, reclaims(test.signal, layout)); diff != "" {
				t.Errorf("%s, layout %d (-want +got):\n%s", test.signal, layout, diff)
			}
		}
	}
}

func TestVictimsAreToldTheKubeletsWords(t *testing.T) {
	none := usage.Disk{}
	podLevel := func(p *v1.Pod) { p.Spec.Resources = &v1.ResourceRequirements{Requests: list("memory", "20Mi")} }
	full := Observations{
		MemoryAvailable: {80 * mi, 8 * gi}, NodeFSAvailable: {5 * gi, 100 * gi}, ImageFSAvailable: {5 * gi, 100 * gi},
		NodeFSInodesFree: {1000, 1 << 20}, PIDAvailable: {50, 32768},
	}
	annotations := func(containers, usages, starved string) map[string]string {
		return map[string]string{"offending_containers": containers, "offending_containers_usage": usages, "starved_resource": starved}
	}
	tests := []struct {
		name        string
		due         []Threshold
		pod         *v1.Pod
		used        Usage
		message     string
		annotations map[string]string
		grace       int64
	}{
		{"memory, a hard threshold", []Threshold{{Signal: MemoryAvailable, Value: Value{Amount: 100 * mi, Text: "100Mi"}}}, with(pod("p", "memory", "10Mi"), grace(30)),
			Usage{"p": uses(50*mi, none, none, none)},
			"The node was low on resource: memory. Threshold quantity: 100Mi, available: 80Mi. Container c was using 50Mi, request is 10Mi, has larger consumption of memory. ",
			annotations("c", "50Mi", "memory"), 1},
		{"memory within the request", []Threshold{{Signal: MemoryAvailable, Value: Value{Amount: 100 * mi, Text: "100Mi"}}}, pod("p", "memory", "1Gi"),
			Usage{"p": uses(50*mi, none, none, none)},
			"The node was low on resource: memory. Threshold quantity: 100Mi, available: 80Mi. ", annotations("", "", "memory"), 1},
		{"memory of the pod as a whole", []Threshold{{Signal: MemoryAvailable, Value: Value{Amount: 100 * mi, Text: "100Mi"}}}, with(pod("p"), podLevel),
			Usage{"p": uses(50*mi, none, none, none)},
			"The node was low on resource: memory. Threshold quantity: 100Mi, available: 80Mi. Pod p was using 50Mi, request is 20Mi, has larger consumption of memory. Container c was using 50Mi, request is 0, has larger consumption of memory. ",
			map[string]string{"offending_pod": "p", "offending_pod_usage": "50Mi", "offending_containers": "c", "offending_containers_usage": "50Mi", "starved_resource": "memory"}, 1},
		{"a pod that was not measured", []Threshold{{Signal: MemoryAvailable, Value: Value{Amount: 100 * mi, Text: "100Mi"}}}, pod("p"), nil,
			"The node was low on resource: memory. Threshold quantity: 100Mi, available: 80Mi. ", map[string]string{}, 1},
		{"disk, a percentage, a soft threshold", []Threshold{{Signal: NodeFSAvailable, Value: Value{Fraction: 0.25}, Grace: 1}}, with(pod("p"), grace(30)),
			Usage{"p": uses(0, bytes(mi), bytes(mi), none)},
			"The node was low on resource: ephemeral-storage. Threshold quantity: 25Gi, available: 5Gi. Container c was using 2Mi, request is 0, has larger consumption of ephemeral-storage. ",
			annotations("c", "2Mi", "ephemeral-storage"), 30},
		{"disk, a soft threshold that leaves less", []Threshold{{Signal: NodeFSAvailable, Value: Value{Fraction: 0.25}, Grace: 1}}, with(pod("p"), grace(300)), nil,
			"The node was low on resource: ephemeral-storage. Threshold quantity: 25Gi, available: 5Gi. ", map[string]string{}, 60},
		{"inodes", []Threshold{{Signal: NodeFSInodesFree, Value: Value{Fraction: 0.5}}}, pod("p"), Usage{"p": uses(0, bytes(mi), bytes(mi), none)},
			"The node was low on resource: inodes. Threshold quantity: 512Ki, available: 1k. ", annotations("", "", "inodes"), 1},
		{"process IDs", []Threshold{{Signal: PIDAvailable, Value: Value{Amount: 100, Text: "100"}}}, pod("p"), Usage{"p": uses(7, none, none, none)},
			"The node was low on resource: pids. Threshold quantity: 100, available: 50. ", annotations("", "", "pids"), 1},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			v, found := policy(t, Settings{}, usage.Single).Victim(test.due, full, []*v1.Pod{test.pod}, test.used)
			if !found {
				t.Fatal("nobody was chosen")
			}
			want := disruption.Stop{
				Reason: "Evicted", Message: test.message, Grace: &test.grace,
				Conditions: []v1.PodCondition{{Type: "DisruptionTarget", Status: "True", Reason: "TerminationByKubelet", Message: test.message, ObservedGeneration: 3}},
				Event:      &disruption.Event{Reason: "Evicted", Message: test.message, Annotations: test.annotations},
			}
			if diff := cmp.Diff(want, v.Stop); diff != "" {
				t.Errorf("stop (-want +got):\n%s", diff)
			}
		})
	}
}

func TestCriticalPodsAreNeverVictims(t *testing.T) {
	p := policy(t, Settings{}, usage.Single)
	due := []Threshold{{Signal: MemoryAvailable, Value: Value{Amount: 1}}}
	static := with(pod("static"), func(p *v1.Pod) { p.Annotations = map[string]string{"kubernetes.io/config.source": "file"} })
	pods := []*v1.Pod{static, with(pod("critical"), priority(2_000_000_000)), pod("p", "memory", "1Gi")}
	used := Usage{"static": uses(gi, usage.Disk{}, usage.Disk{}, usage.Disk{}), "p": {}}
	if v, found := p.Victim(due, nil, pods, used); !found || v.Pod.Name != "p" {
		t.Errorf("victim %+v", v)
	}
	if v, found := p.Victim(due, nil, pods[:2], used); found {
		t.Errorf("victim %+v", v)
	}
	// Where every pod is static, the node depends on those of system priority.
	p.spared = disruption.OfSystem
	if v, found := p.Victim(due, nil, pods[:2], used); !found || v.Pod != static {
		t.Errorf("victim %+v", v)
	}
	if v, found := p.Victim(due, nil, pods[1:2], used); found {
		t.Errorf("victim %+v", v)
	}
}

// Of two pods, the one that is ended first is the one the rules name, however
// many others there are.
func TestRankingIsAnOrder(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	p := policy(t, Settings{}, usage.Single)
	for range 300 {
		var pods []*v1.Pod
		used := Usage{}
		for i := range 8 {
			x := with(pod(string(rune('a'+i)), "memory", resource.NewQuantity(r.Int64N(100), resource.BinarySI).String()), priority(int32(r.IntN(3))))
			if r.IntN(6) > 0 {
				used[x.UID] = usage.Pod{WorkingSet: r.Uint64N(100)}
			}
			pods = append(pods, x)
		}
		ranked := p.rank(MemoryAvailable, pods, used)
		for i := 1; i < len(ranked); i++ {
			a, b := ranked[i-1], ranked[i]
			if got := p.rank(MemoryAvailable, []*v1.Pod{a, b}, used); got[0] != a {
				t.Fatalf("%s is before %s among eight, and after it among two", a.Name, b.Name)
			}
		}
		if len(ranked) != 8 || len(slices.Compact(slices.Sorted(slices.Values(order(ranked))))) != 8 {
			t.Fatalf("ranked %v", order(ranked))
		}
	}
}

func TestLimitsOnLocalStorageEndPods(t *testing.T) {
	none := usage.Disk{}
	tests := []struct {
		name    string
		pod     *v1.Pod
		used    usage.Pod
		layout  usage.Layout
		signal  string
		message string
	}{
		{"an emptyDir above its limit", with(pod("p"), emptyDir("v", "1Mi")), uses(0, none, none, bytes(mi+1)), usage.Single,
			"emptydirfs.limit", `Usage of EmptyDir volume "v" exceeds the limit "1Mi". `},
		{"an emptyDir at its limit", with(pod("p"), emptyDir("v", "1Mi")), uses(0, none, none, bytes(mi)), usage.Single, "", ""},
		{"an emptyDir without one", with(pod("p"), emptyDir("v", "")), uses(0, none, none, bytes(gi)), usage.Single, "", ""},
		{"an emptyDir with a limit of zero", with(pod("p"), emptyDir("v", "0")), uses(0, none, none, bytes(gi)), usage.Single, "", ""},
		{"the pod as a whole", with(pod("p"), limits("ephemeral-storage", "3Mi")), uses(0, bytes(mi), bytes(mi), bytes(mi+1)), usage.Single,
			"ephemeralpodfs.limit", "Pod ephemeral local storage usage exceeds the total limit of containers 3Mi. "},
		{"a container", with(pod("p"), limits("ephemeral-storage", "1Mi"), func(p *v1.Pod) {
			p.Spec.Containers = append(p.Spec.Containers, v1.Container{Name: "d", Resources: v1.ResourceRequirements{Limits: list("ephemeral-storage", "1Gi")}})
		}), uses(0, bytes(mi/2), bytes(mi/2+1), none), usage.Single,
			"ephemeralcontainerfs.limit", `Container c exceeded its local ephemeral storage limit "1Mi". `},
		{"a container whose layer is apart", with(pod("p"), limits("ephemeral-storage", "1Mi"), func(p *v1.Pod) {
			p.Spec.Containers = append(p.Spec.Containers, v1.Container{Name: "d", Resources: v1.ResourceRequirements{Limits: list("ephemeral-storage", "1Gi")}})
		}), uses(0, bytes(2*mi), none, none), usage.ImagesApart, "", ""},
		{"a critical pod", with(pod("p"), emptyDir("v", "1Mi"), priority(2_000_000_000)), uses(0, none, none, bytes(gi)), usage.Single, "", ""},
		{"a volume in memory is not on the disk", with(pod("p"), limits("ephemeral-storage", "1Mi")),
			usage.Pod{Volumes: map[string]usage.Volume{"v": {Disk: bytes(gi), Memory: true}}}, usage.Single, "", ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			victims := policy(t, Settings{}, test.layout).Overstepped([]*v1.Pod{test.pod, pod("other")}, Usage{"p": test.used})
			if test.signal == "" {
				if len(victims) > 0 {
					t.Errorf("victims %+v", victims)
				}
				return
			}
			one := int64(1)
			want := []Victim{{Pod: test.pod, Signal: test.signal, Stop: disruption.Stop{
				Reason: "Evicted", Message: test.message, Grace: &one, Event: &disruption.Event{Reason: "Evicted", Message: test.message},
			}}}
			if diff := cmp.Diff(want, victims); diff != "" {
				t.Errorf("victims (-want +got):\n%s", diff)
			}
		})
	}
}

func TestOnlyPodsWithLimitsAreMeasuredEachRound(t *testing.T) {
	for name, test := range map[string]struct {
		pod  *v1.Pod
		want bool
	}{
		"none":             {pod("p", "ephemeral-storage", "1Gi"), false},
		"a container's":    {with(pod("p"), limits("ephemeral-storage", "1Gi")), true},
		"another resource": {with(pod("p"), limits("memory", "1Gi")), false},
		"an emptyDir's":    {with(pod("p"), emptyDir("v", "1Gi")), true},
		"an emptyDir":      {with(pod("p"), emptyDir("v", "")), false},
	} {
		if got := Limited(test.pod); got != test.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}
