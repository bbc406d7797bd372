package cli

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// golden compares what people read with testdata/NAME.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("%s (-want +got):\n%s", path, diff)
	}
}

var now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func made(name string, ago time.Duration, change func(*v1.Pod)) v1.Pod {
	p := v1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, CreationTimestamp: metav1.Time{Time: now.Add(-ago)}}}
	p.Spec.NodeName = "node-1"
	p.Spec.Containers = []v1.Container{{Name: "c"}}
	p.Status.Phase = v1.PodRunning
	p.Status.PodIP = "10.85.0.7"
	p.Status.Conditions = []v1.PodCondition{{Type: v1.PodReady, Status: v1.ConditionTrue}}
	p.Status.ContainerStatuses = []v1.ContainerStatus{{Name: "c", Ready: true, State: v1.ContainerState{Running: &v1.ContainerStateRunning{}}}}
	if change != nil {
		change(&p)
	}
	return p
}

func waits(reason string) v1.ContainerState {
	return v1.ContainerState{Waiting: &v1.ContainerStateWaiting{Reason: reason}}
}

func ended(reason string, code int32, ago time.Duration) v1.ContainerState {
	return v1.ContainerState{Terminated: &v1.ContainerStateTerminated{Reason: reason, ExitCode: code, FinishedAt: metav1.Time{Time: now.Add(-ago)}}}
}

func pods() []v1.Pod {
	always := v1.ContainerRestartPolicyAlways
	yes, no := true, false
	notReady := func(p *v1.Pod) {
		p.Status.Conditions[0].Status = v1.ConditionFalse
		p.Status.ContainerStatuses[0].Ready = false
	}
	return []v1.Pod{
		made("running", 3*time.Hour, nil),
		made("not-ready", 10*time.Second, notReady),
		made("crash", 5*time.Minute, func(p *v1.Pod) {
			notReady(p)
			p.Status.ContainerStatuses[0].State = waits("CrashLoopBackOff")
			p.Status.ContainerStatuses[0].LastTerminationState = ended("Error", 1, 20*time.Second)
			p.Status.ContainerStatuses[0].RestartCount = 4
		}),
		made("done", 2*24*time.Hour, func(p *v1.Pod) {
			notReady(p)
			p.Status.Phase = v1.PodSucceeded
			p.Status.ContainerStatuses[0].State = ended("Completed", 0, time.Hour)
		}),
		made("no-image", time.Minute, func(p *v1.Pod) {
			notReady(p)
			p.Status.Phase, p.Status.PodIP = v1.PodPending, ""
			p.Status.ContainerStatuses[0].State = waits("ImagePullBackOff")
		}),
		made("init", time.Second, func(p *v1.Pod) {
			notReady(p)
			p.Status.Phase = v1.PodPending
			p.Spec.InitContainers = []v1.Container{{Name: "a"}, {Name: "b"}}
			p.Status.InitContainerStatuses = []v1.ContainerStatus{
				{Name: "a", State: ended("Completed", 0, time.Second)},
				{Name: "b", State: v1.ContainerState{Running: &v1.ContainerStateRunning{}}},
			}
			p.Status.ContainerStatuses[0].State = waits("PodInitializing")
		}),
		made("init-fails", time.Minute, func(p *v1.Pod) {
			notReady(p)
			p.Status.Phase = v1.PodPending
			p.Spec.InitContainers = []v1.Container{{Name: "a"}}
			p.Status.InitContainerStatuses = []v1.ContainerStatus{{Name: "a", State: ended("Error", 2, time.Second)}}
			p.Status.ContainerStatuses[0].State = waits("PodInitializing")
		}),
		made("sidecar", time.Minute, func(p *v1.Pod) {
			p.Spec.InitContainers = []v1.Container{{Name: "s", RestartPolicy: &always}}
			p.Status.InitContainerStatuses = []v1.ContainerStatus{{Name: "s", Ready: true, Started: &yes, State: v1.ContainerState{Running: &v1.ContainerStateRunning{}}}}
		}),
		made("sidecar-starts", time.Minute, func(p *v1.Pod) {
			notReady(p)
			p.Status.Phase = v1.PodPending
			p.Spec.InitContainers = []v1.Container{{Name: "s", RestartPolicy: &always}}
			p.Status.InitContainerStatuses = []v1.ContainerStatus{{Name: "s", Started: &no, State: v1.ContainerState{Running: &v1.ContainerStateRunning{}}}}
			p.Status.ContainerStatuses[0].State = waits("PodInitializing")
		}),
		made("deadline", time.Hour, func(p *v1.Pod) {
			notReady(p)
			p.Status.Phase, p.Status.Reason = v1.PodFailed, "DeadlineExceeded"
			p.Status.ContainerStatuses[0].State = v1.ContainerState{Terminated: &v1.ContainerStateTerminated{ExitCode: 143}}
		}),
	}
}

func TestPodTable(t *testing.T) {
	var out bytes.Buffer
	if err := podTable(&out, pods(), true, true, now); err != nil {
		t.Fatal(err)
	}
	golden(t, "pods.txt", out.Bytes())
}

func TestImageTable(t *testing.T) {
	var out bytes.Buffer
	images := []*runtimeapi.Image{
		{Id: "sha256:0123456789abcdef", RepoTags: []string{"docker.io/library/redis:8", "registry:5000/redis:8"}, RepoDigests: []string{"docker.io/library/redis@sha256:feed"}, Size: 43_210_000},
		{Id: "sha256:fedcba9876543210", RepoDigests: []string{"docker.io/library/old@sha256:dead"}, Size: 812, Pinned: true},
	}
	if err := imageTable(&out, images, true); err != nil {
		t.Fatal(err)
	}
	golden(t, "images.txt", out.Bytes())
}

func TestExplanation(t *testing.T) {
	at := func(ms int) time.Time { return now.Add(time.Duration(ms) * time.Millisecond) }
	e := explanation{
		Pod: made("web", time.Minute, func(p *v1.Pod) {
			p.Status.Phase = v1.PodPending
			p.Status.ContainerStatuses[0] = v1.ContainerStatus{Name: "c", State: waits("CrashLoopBackOff")}
		}), Phase: "running",
		Steps: []step{
			{Name: "queued", Start: at(0), End: at(1)},
			{Name: "sandbox", Start: at(1), End: at(12)},
			{Name: "create", Container: "c", Start: at(13), End: at(16)},
			{Name: "start", Container: "c", Start: at(16), End: at(55)},
			{Name: "ready", Start: at(56), End: at(56)},
			{Name: "start", Container: "c", Start: at(2000), End: at(2040), Error: "exec: \"nope\": not found"},
			{Name: "stop", Container: "c", Start: at(4000)},
		},
	}
	e.Stuck = &struct {
		Step, Container, Reason, Message string
		Since                            time.Time
	}{"back-off", "c", "CrashLoopBackOff", "back-off 10s restarting failed container=c", at(2040)}
	var out bytes.Buffer
	if err := e.print(&out, at(9000)); err != nil {
		t.Fatal(err)
	}
	golden(t, "explain.txt", out.Bytes())
}

func TestSizesAreDecimal(t *testing.T) {
	for bytes, want := range map[uint64]string{0: "0B", 999: "999B", 1000: "1kB", 1_230_000: "1.23MB", 43_210_000_000: "43.2GB"} {
		if got := size(bytes); got != want {
			t.Errorf("size(%d) = %s, want %s", bytes, got, want)
		}
	}
}

func TestRunFlags(t *testing.T) {
	f := runFlags{
		name: "web", restart: "Never", env: []string{"A=b=c"}, ports: []string{"127.0.0.1:8080:80", "[::1]:53:53/udp", "90:91"},
		volumes: []string{"/srv:/data:ro"},
	}
	pod, err := f.pod("default", "nginx", []string{"-g", "daemon off;"})
	if err != nil {
		t.Fatal(err)
	}
	c := pod.Spec.Containers[0]
	want := v1.Container{
		Name: "web", Image: "nginx", Args: []string{"-g", "daemon off;"}, Env: []v1.EnvVar{{Name: "A", Value: "b=c"}},
		Ports: []v1.ContainerPort{
			{HostIP: "127.0.0.1", HostPort: 8080, ContainerPort: 80, Protocol: "TCP"},
			{HostIP: "::1", HostPort: 53, ContainerPort: 53, Protocol: "UDP"},
			{HostPort: 90, ContainerPort: 91, Protocol: "TCP"},
		},
		VolumeMounts: []v1.VolumeMount{{Name: "v0", MountPath: "/data", ReadOnly: true}},
	}
	if diff := cmp.Diff(want, c); diff != "" {
		t.Errorf("container (-want +got):\n%s", diff)
	}
	for _, bad := range []runFlags{
		{env: []string{"A"}}, {ports: []string{"80"}}, {ports: []string{"0:80"}}, {ports: []string{"a:80"}}, {ports: []string{"70000:80"}},
		{volumes: []string{"/a"}}, {volumes: []string{"/a:/b:rw"}},
	} {
		if _, err := bad.pod("default", "x", nil); err == nil {
			t.Errorf("%+v was accepted", bad)
		}
	}
}

func TestNamesComeFromTheImage(t *testing.T) {
	for image, prefix := range map[string]string{
		"docker.io/library/redis:8": "redis-", "registry:5000/My_App@sha256:00": "my-app-", "x": "x-", "///": "pod-",
	} {
		if got := nameFor(image); !strings.HasPrefix(got, prefix) || len(got) != len(prefix)+5 {
			t.Errorf("nameFor(%q) = %q, want %s and five characters", image, got, prefix)
		}
	}
}

func TestTargets(t *testing.T) {
	o := &options{namespace: "default"}
	for arg, want := range map[string][2]string{
		"web": {"default", "web"}, "pod/web": {"default", "web"}, "kube-system/dns": {"kube-system", "dns"},
	} {
		if ns, name := o.target(arg); ns != want[0] || name != want[1] {
			t.Errorf("target(%q) = %s, %s", arg, ns, name)
		}
	}
}
