package manifest

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	"sigs.k8s.io/yaml"
)

const twoPods = `apiVersion: v1
kind: Pod
metadata: {name: a}
spec: {containers: [{name: main, image: "busybox:1"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: b}
spec: {containers: [{name: main, image: "busybox:1"}]}
`

func mustParse(t *testing.T, file, data string, opts Options) Set {
	t.Helper()
	set, rejections := Parse(file, []byte(data), opts)
	if len(rejections) > 0 {
		t.Fatalf("%s rejected: %v", file, rejections)
	}
	return set
}

func TestUIDFollowsContentAndFile(t *testing.T) {
	base := mustParse(t, "web.yaml", twoPods, testOptions)
	uid := func(set Set, name string) string {
		for _, pod := range set.Pods {
			if pod.Name == name {
				return string(pod.UID)
			}
		}
		t.Fatalf("no pod %s", name)
		return ""
	}
	later := testOptions
	later.Now = later.Now.Add(time.Hour)
	otherNode := testOptions
	otherNode.NodeName = "node-b"
	spaced := strings.Replace(twoPods, "spec: {", "# comment\nspec:   {", 1)
	changedB := strings.Replace(twoPods, "name: b}\nspec: {", "name: b}\nspec: {restartPolicy: Never, ", 1)
	labelledB := strings.Replace(twoPods, "name: b}", "name: b, labels: {x: z}}", 1)
	for _, tc := range []struct {
		name         string
		got          Set
		sameA, sameB bool
	}{
		{"the same again", mustParse(t, "web.yaml", twoPods, testOptions), true, true},
		{"comments and white space do not count", mustParse(t, "web.yaml", spaced, testOptions), true, true},
		{"the time does not count", mustParse(t, "web.yaml", twoPods, later), true, true},
		{"a changed spec changes its pod only", mustParse(t, "web.yaml", changedB, testOptions), true, false},
		{"a changed label changes its pod only", mustParse(t, "web.yaml", labelledB, testOptions), true, false},
		{"another file is another pod", mustParse(t, "api.yaml", twoPods, testOptions), false, false},
		{"another node is another pod", mustParse(t, "web.yaml", twoPods, otherNode), false, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if same := uid(tc.got, "a") == uid(base, "a"); same != tc.sameA {
				t.Errorf("pod a keeps its UID: %v, want %v", same, tc.sameA)
			}
			if same := uid(tc.got, "b") == uid(base, "b"); same != tc.sameB {
				t.Errorf("pod b keeps its UID: %v, want %v", same, tc.sameB)
			}
		})
	}
	if uid(base, "a") == uid(base, "b") {
		t.Error("two pods share a UID")
	}
}

func TestScalingLeavesTheOtherPodsAlone(t *testing.T) {
	data, err := os.ReadFile("testdata/good/deployment.yaml")
	if err != nil {
		t.Fatal(err)
	}
	two := mustParse(t, "d.yaml", string(data), testOptions)
	three := mustParse(t, "d.yaml", strings.Replace(string(data), "replicas: 2", "replicas: 3", 1), testOptions)
	if len(two.Pods) != 2 || len(three.Pods) != 3 {
		t.Fatalf("%d and %d pods", len(two.Pods), len(three.Pods))
	}
	for i, pod := range two.Pods {
		if !apiequality.Semantic.DeepEqual(pod, three.Pods[i]) {
			t.Errorf("%s changed", pod.Name)
		}
	}
}

func TestNameSuffixIsAppended(t *testing.T) {
	opts := testOptions
	opts.NameSuffix = "-node-a"
	set := mustParse(t, "web.yaml", twoPods, opts)
	if set.Pods[0].Name != "a-node-a" {
		t.Errorf("name %s", set.Pods[0].Name)
	}
}

func TestLargeFileIsRejected(t *testing.T) {
	_, rejections := Parse("big.yaml", bytes.Repeat([]byte("#"), MaxFileSize+1), testOptions)
	if len(rejections) != 1 || !strings.Contains(rejections[0].Error(), "larger than 3 MiB") {
		t.Errorf("got %v", rejections)
	}
}

func TestRejectionsOfOneFileAreBounded(t *testing.T) {
	var b strings.Builder
	for i := range 10_000 {
		fmt.Fprintf(&b, "---\napiVersion: v1\nkind: Pod%d\n", i)
	}
	_, rejections := Parse("many.yaml", []byte(b.String()), testOptions)
	if n := len(rejections); n != maxRejections+1 {
		t.Errorf("%d rejections", n)
	}
	if last := rejections[len(rejections)-1].Error(); last != "many.yaml: and 9950 more problems" {
		t.Errorf("last: %s", last)
	}
}

func TestClaimWithoutADirectoryForClaimsIsRejected(t *testing.T) {
	opts := testOptions
	opts.ClaimsDir = ""
	data, err := os.ReadFile("testdata/good/objects.yaml")
	if err != nil {
		t.Fatal(err)
	}
	_, rejections := Parse("objects.yaml", data, opts)
	want := "objects.yaml:22: metadata.annotations[berth.io/host-path]: Required value: names the directory to bind to; this node has no directory for claims"
	if len(rejections) != 1 || rejections[0].Error() != want {
		t.Errorf("got %v, want %s", rejections, want)
	}
}

func TestMergePutsSetsTogetherInOrder(t *testing.T) {
	a := mustParse(t, "a.yaml", twoPods, testOptions)
	b := mustParse(t, "b.yaml", strings.NewReplacer("name: a}", "name: aa}", "name: b}", "name: c, namespace: a}").Replace(twoPods), testOptions)
	got := strings.Join(Merge([]Set{a, b}).Objects(), ", ")
	if want := "Pod a/c, Pod default/a, Pod default/aa, Pod default/b"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// What is accepted must mean to the decoder of kubectl what it means here.
func TestDecodingAgreesWithKubectl(t *testing.T) {
	for _, file := range []string{"full", "host-network", "merge-keys", "minimal", "pod-resources"} {
		t.Run(file, func(t *testing.T) {
			data, err := os.ReadFile("testdata/good/" + file + ".yaml")
			if err != nil {
				t.Fatal(err)
			}
			want, got := &v1.Pod{}, &v1.Pod{}
			if err := yaml.Unmarshal(data, want); err != nil {
				t.Fatal(err)
			}
			p := &parser{file: file, dec: newDecoder(file), seen: map[string]int{}}
			for _, doc := range p.documents(data) {
				decodeThen(p, doc, func(_ document, pod *v1.Pod) { got = pod })
			}
			if !apiequality.Semantic.DeepEqual(got, want) {
				t.Errorf("got  %+v\nwant %+v", got, want)
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	for _, dir := range []string{"testdata/good", "testdata/bad"} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			f.Fatal(err)
		}
		for _, e := range entries {
			if strings.HasSuffix(e.Name(), ".golden") || e.Name() == "alias-bomb.yaml" {
				continue
			}
			data, err := os.ReadFile(dir + "/" + e.Name())
			if err != nil {
				f.Fatal(err)
			}
			f.Add(data)
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		set, rejections := Parse("f.yaml", data, testOptions)
		if len(rejections) > 0 {
			if len(set.Objects()) > 0 {
				t.Fatalf("rejected, but left %v", set.Objects())
			}
			return
		}
		// An accepted pod, written out and read again, stays what it is.
		for _, pod := range set.Pods {
			again := reparse(t, pod)
			third := reparse(t, again)
			if again.UID != third.UID || !apiequality.Semantic.DeepEqual(again, third) {
				t.Fatalf("not stable:\n%+v\n%+v", again, third)
			}
			again.UID, again.Annotations = pod.UID, pod.Annotations
			if !apiequality.Semantic.DeepEqual(pod, again) {
				t.Fatalf("changed when read again:\n%+v\n%+v", pod, again)
			}
		}
	})
}

func reparse(t *testing.T, pod *v1.Pod) *v1.Pod {
	t.Helper()
	b, err := yaml.Marshal(pod)
	if err != nil {
		t.Fatal(err)
	}
	set, rejections := Parse("f.yaml", b, testOptions)
	if len(rejections) > 0 || len(set.Pods) != 1 {
		t.Fatalf("accepted, but not when read again: %v\n%s", rejections, b)
	}
	return set.Pods[0]
}

func BenchmarkParse(b *testing.B) {
	data, err := os.ReadFile("testdata/good/full.yaml")
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, rejections := Parse("full.yaml", data, testOptions); len(rejections) > 0 {
			b.Fatal(rejections)
		}
	}
}
