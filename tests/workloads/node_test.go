package workloads

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Not beside other tests: their pods would find no node.
func TestDrainMovesThePodsToAnotherNode(t *testing.T) {
	if shared == nil {
		t.Skip(without)
	}
	s := makeSpace(t)
	s.apply(strings.ReplaceAll(web, "VERSION", "one"))
	s.kubectl("rollout", "status", "deployment/web", wait)
	s.kubectl("create", "poddisruptionbudget", "web", "--selector=app=web", "--min-available=2")
	t.Cleanup(func() { s.kubectl("uncordon", "n1") })
	s.kubectl("drain", "n1", "--pod-selector=app=web", wait)
	s.kubectl("rollout", "status", "deployment/web", wait)
	for _, node := range strings.Fields(s.get("pods", ".items[*].spec.nodeName")) {
		equal(t, "node of a pod", node, "n2")
	}
	contains(t, "node", s.kubectl("get", "node", "n1"), "Ready,SchedulingDisabled")
	s.create("fixed", `nodeSelector: {kubernetes.io/hostname: n1}`, `containers: [{name: box, image: $BOX}]`)
	s.event("Pod/fixed", "FailedScheduling", "unschedulable")
	s.kubectl("uncordon", "n1")
	s.ready("pod/fixed")
}

func TestStaticPodHasAMirrorPod(t *testing.T) {
	s := newSpace(t)
	file := filepath.Join(shared.Nodes[0].Dir, "manifests", s.ns+".yaml")
	write := func(version string) {
		t.Helper()
		text := fmt.Sprintf("{apiVersion: v1, kind: Pod, metadata: {name: static, namespace: %s}, spec: {containers: [{name: box, image: %q, env: [{name: VERSION, value: %q}]}]}}",
			s.ns, box, version)
		if err := os.WriteFile(file+".tmp~", []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(file+".tmp~", file); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { _ = os.Remove(file) }) // for when the test fails
	const pod = "pod/static-n1"
	write("one")
	s.kubectl("wait", "--for=create", pod, wait)
	s.ready(pod)
	equal(t, "source", s.get(pod, `.metadata.annotations.kubernetes\.io/config\.source`), "file")
	equal(t, "owner", s.get(pod, ".metadata.ownerReferences[0].kind")+" "+s.get(pod, ".metadata.ownerReferences[0].name"), "Node n1")
	equal(t, "mirror and hash", s.get(pod, `.metadata.annotations.kubernetes\.io/config\.mirror`), s.get(pod, `.metadata.annotations.kubernetes\.io/config\.hash`))
	equal(t, "exec", s.exec("static-n1", "sh", "-c", "echo $VERSION"), "one")

	uid, container := s.get(pod, ".metadata.uid"), s.get(pod, ".status.containerStatuses[0].containerID")
	s.kubectl("delete", pod, "--wait=false")
	s.eventually(func() error {
		now, err := s.try("get", pod, "-o", "jsonpath={.metadata.uid}")
		if err == nil && now == uid {
			err = fmt.Errorf("%s is still the one that was deleted", pod)
		}
		return err
	})
	s.ready(pod)
	equal(t, "container after the mirror pod was deleted", s.get(pod, ".status.containerStatuses[0].containerID"), container)

	write("two")
	s.eventually(func() error { // for a moment there is none
		version, err := s.try("get", pod, "-o", "jsonpath={.spec.containers[0].env[0].value}")
		if err == nil && version != "two" {
			err = fmt.Errorf("%s has version %s", pod, version)
		}
		return err
	})
	s.ready(pod)
	equal(t, "exec after the change", s.exec("static-n1", "sh", "-c", "echo $VERSION"), "two")

	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	s.gone(pod)
}

func TestResizeInPlace(t *testing.T) {
	s := newSpace(t)
	s.pod("elastic", `containers: [{name: box, image: $BOX,
		resources: {requests: {cpu: 100m, memory: 32Mi}, limits: {cpu: 100m, memory: 32Mi}},
		resizePolicy: [{resourceName: cpu, restartPolicy: NotRequired}, {resourceName: memory, restartPolicy: RestartContainer}]}]`)
	resize := func(resource, amount string) {
		t.Helper()
		s.kubectl("patch", "pod", "elastic", "--subresource=resize", "-p",
			fmt.Sprintf(`{"spec": {"containers": [{"name": "box", "resources": {"requests": {%[1]q: %[2]q}, "limits": {%[1]q: %[2]q}}}]}}`, resource, amount))
	}
	quota := func() string {
		return s.exec("elastic", "sh", "-c", "cat /sys/fs/cgroup/cpu/cpu.cfs_quota_us 2>/dev/null || cut -d' ' -f1 /sys/fs/cgroup/cpu.max")
	}
	limit := func() string {
		return s.exec("elastic", "sh", "-c", "cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null || cat /sys/fs/cgroup/memory.max")
	}
	const status = ".status.containerStatuses[0]"
	equal(t, "quota", quota(), "10000")
	for _, cpu := range []string{"300m", "200m"} {
		resize("cpu", cpu)
		s.want("pod/elastic", status+".resources.limits.cpu", cpu)
		equal(t, "allocated", s.get("pod/elastic", status+".allocatedResources.cpu"), cpu)
	}
	equal(t, "quota after the resize", quota(), "20000")
	equal(t, "restarts", s.get("pod/elastic", status+".restartCount"), "0")

	resize("memory", "64Mi")
	s.want("pod/elastic", status+".restartCount", "1")
	s.ready("pod/elastic")
	s.want("pod/elastic", status+".resources.limits.memory", "64Mi")
	equal(t, "memory limit", limit(), fmt.Sprint(64<<20))
	s.eventually(func() error { // a resize that is done has no condition
		if got := s.get("pod/elastic", ".status.conditions[?(@.type=='PodResizeInProgress')].status"); got != "" {
			return fmt.Errorf("PodResizeInProgress is %s", got)
		}
		return nil
	})

	// What the node has, but not now, is waited for.
	s.pod("other", "nodeName: "+s.get("pod/elastic", ".spec.nodeName"), `containers: [{name: box, image: $BOX, resources: {requests: {cpu: "1"}}}]`)
	resize("cpu", "1200m")
	s.want("pod/elastic", ".status.conditions[?(@.type=='PodResizePending')].reason", "Deferred")
	equal(t, "quota of what cannot be had yet", quota(), "20000")
	s.kubectl("delete", "pod", "other", wait)
	s.want("pod/elastic", status+".resources.limits.cpu", "1200m")
	resize("cpu", "100m")
	s.want("pod/elastic", status+".resources.limits.cpu", "100m")
	equal(t, "quota at last", quota(), "10000")
}
