// Package kubelet runs a stock kubelet on Berth's runtime, with static pods and
// without an API server, and asks it and the runtime whether it got what a
// kubelet asks of a runtime.
package kubelet

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-io/berth/tests/harness"
	"github.com/berth-io/berth/tests/leak"
	"github.com/berth-io/berth/tests/stock"
)

// statistics has the test look at what the kubelet says of its pods' resources:
// at first of the runtime's statistics and the kubelet's own, and once it was
// restarted, of the runtime's alone. Not while the runtime has none.
const statistics = true

func TestStockKubeletRunsPodsOnTheRuntime(t *testing.T) {
	k := startKubelet(t)
	for _, pod := range pods {
		k.apply(pod.name, pod.yaml)
	}
	t.Run("pods become ready", func(t *testing.T) { k.waitSteady(t) })
	if statistics {
		t.Run("statistics", func(t *testing.T) { k.checkStats(t, false) })
	}
	// First, since the kubelet collects what pods leave a minute after its start.
	t.Run("pods run on while the kubelet restarts", func(t *testing.T) { k.checkKubeletRestart(t) })
	t.Run("pods", func(t *testing.T) {
		for _, pod := range pods {
			t.Run(pod.sentence, func(t *testing.T) {
				t.Parallel()
				pod.check(t, k.pod(t, pod.name))
			})
		}
	})
	t.Run("events instead of polling", func(t *testing.T) { k.checkEvents(t) })
	if statistics {
		t.Run("statistics from the runtime alone", func(t *testing.T) { k.checkStats(t, true) })
	}
	t.Run("a pod whose manifest is removed ends gracefully", func(t *testing.T) { k.checkRemoval(t) })
	t.Run("pods run on while the runtime is killed", func(t *testing.T) { k.checkRuntimeKilled(t) })
	k.removeAll(t)
	t.Run("nothing stays of pods", func(t *testing.T) { k.checkEmpty(t) })
	if statistics {
		t.Run("images that are not pinned are collected", func(t *testing.T) { k.checkImages(t) })
	}
	k.Stop()
	k.Close()
	k.n.Stop()
	k.n.CheckNothingLeft(k.residue()...)
}

// kubelet is the kubelet with the node it is on.
type kubelet struct {
	*stock.Kubelet
	n   *harness.Node
	cri harness.CRI
}

func startKubelet(t *testing.T) *kubelet {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root, for namespaces, mounts and cgroups")
	}
	n := harness.NewNode(t, harness.Options{Amend: func(c *harness.Config) {
		c.Roles, c.Images.Pinned = []string{"cri", "network"}, []string{harness.Busybox}
	}})
	bin := filepath.Join(n.Bin, "peers")
	if _, err := os.Stat(filepath.Join(bin, "kubelet")); err != nil {
		if strings.Contains(os.Getenv("BERTH_TEST_REQUIRE"), "kubelet") {
			t.Fatalf("%v (make kubelet builds it)", err)
		}
		t.Skip("there is no kubelet to test with: make kubelet builds one, from the Go module k8s.io/kubernetes")
	}
	n.Start()
	k := &kubelet{Kubelet: stock.NewKubelet(t, n, bin), n: n, cri: harness.DialCRI(t, n.Config.CRISocket)}
	for key, value := range map[string]any{
		"featureGates":                map[string]bool{"EventedPLEG": true},
		"containerLogMaxSize":         "64Ki",
		"containerLogMaxFiles":        10,
		"containerLogMonitorInterval": "3s",
		"imageMinimumGCAge":           "1s",
	} {
		k.Config[key] = value
	}
	t.Cleanup(func() {
		if t.Failed() {
			log := k.Log()
			t.Logf("end of the kubelet's log:\n%s", log[max(0, len(log)-6000):])
		}
	})
	k.Start()
	return k
}

// apply writes a manifest of the pod default/name; yaml is what follows its
// metadata.name.
func (k *kubelet) apply(name, yaml string) {
	yaml = strings.NewReplacer("$BOX", harness.Box, "$BUSYBOX", harness.Busybox, "$DIR", k.n.Dir).Replace(yaml)
	k.n.WriteManifest(name+".yaml", "apiVersion: v1\nkind: Pod\nmetadata:\n  namespace: default\n  name: "+name+yaml)
}

// removeAll deletes all manifests.
func (k *kubelet) removeAll(t *testing.T) {
	files, err := os.ReadDir(k.n.Config.ManifestDir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		k.n.RemoveManifest(f.Name())
	}
}

// residue is what the kubelet leaves on purpose.
func (k *kubelet) residue() []leak.Allowed {
	dir := k.n.Config.KubeletDir
	return []leak.Allowed{
		{Kind: "file", Pattern: dir + `/(checkpoints|device-plugins|image_manager|plugins|plugins_registry|pod-resources|actuated_pods_state|allocated_pods_state|.*_manager_state|dra_manager_state)(/.*)?`, Reason: "the kubelet's own state"},
	}
}

// pod is one pod of the kubelet, for one test.
type pod struct {
	*kubelet
	t    *testing.T
	name string // as the kubelet calls it: with the node's
}

func (k *kubelet) pod(t *testing.T, name string) *pod {
	p := &pod{kubelet: k, t: t, name: name + "-" + k.n.Name}
	t.Cleanup(func() {
		if t.Failed() {
			if got, ok, err := p.get(); ok {
				t.Logf("%s", harness.Summary(got))
			} else {
				t.Logf("pod %s: known %v, error %v", p.name, ok, err)
			}
		}
	})
	return p
}

func (p *pod) get() (corev1.Pod, bool, error) {
	all, err := p.Pods()
	if err != nil {
		return corev1.Pod{}, false, err
	}
	i := slices.IndexFunc(all, func(c corev1.Pod) bool { return c.Name == p.name })
	if i < 0 {
		return corev1.Pod{}, false, nil
	}
	return all[i], true, nil
}

// wait waits until check returns an empty reason for the pod.
func (p *pod) wait(what string, check func(corev1.Pod) (reason string)) corev1.Pod {
	p.t.Helper()
	var last corev1.Pod
	harness.Eventually(p.t, harness.PodTimeout, "pod "+p.name+" "+what, func() string {
		got, ok, err := p.get()
		if err != nil || !ok {
			return fmt.Sprintf("known %v, error %v", ok, err)
		}
		last = got
		if reason := check(got); reason != "" {
			return reason + "; " + harness.Summary(got)
		}
		return ""
	})
	return last
}

func (p *pod) waitReady() corev1.Pod {
	p.t.Helper()
	return p.wait("ready", func(c corev1.Pod) string {
		if harness.Ready(c) {
			return ""
		}
		return "not ready"
	})
}

// containers are what the runtime has of a pod.
func (k *kubelet) containers(t *testing.T, uid string) []*runtimeapi.Container {
	t.Helper()
	list, err := k.cri.ListContainers(t.Context(), &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{
		LabelSelector: map[string]string{"io.kubernetes.pod.uid": uid},
	}})
	if err != nil {
		t.Fatalf("list containers: %v", err)
	}
	return list.Containers
}
