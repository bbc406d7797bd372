package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-io/berth/tests/bare"
	"github.com/berth-io/berth/tests/harness"
	"github.com/berth-io/berth/tests/measure"
)

// pod is one pod's requests, with what the kubelet of a small Deployment's pod
// would put in them.
type pod struct {
	*side
	t       harness.TB
	dir     string
	cgroup  string
	config  *runtimeapi.PodSandboxConfig
	sandbox string
}

// newPod makes what a kubelet makes before it calls the runtime: the pod's
// cgroup, its log directory and the files that are mounted into it.
func (s *side) newPod(t harness.TB) *pod {
	t.Helper()
	s.made++
	name := fmt.Sprintf("%s-%d", s.name, s.made)
	uid := fmt.Sprintf("00000000-0000-4000-8000-%c%011d", s.name[0], s.made)
	p := &pod{
		side: s, t: t,
		dir:    filepath.Join(s.node.Dir, "bench", name),
		cgroup: filepath.Join(s.node.Config.CgroupRoot, "kubepods/burstable/pod"+uid),
	}
	logs := filepath.Join(s.node.Config.PodLogsDir, "default_"+name+"_"+uid)
	for _, dir := range []string{filepath.Join(logs, "main"), filepath.Join(p.dir, "token")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatalf("%v", err)
		}
	}
	for _, file := range []string{"hosts", "termination-log"} {
		if err := os.WriteFile(filepath.Join(p.dir, file), []byte("127.0.0.1 localhost\n"), 0o666); err != nil {
			t.Fatalf("%v", err)
		}
	}
	if err := harness.MakeCgroup(p.cgroup); err != nil {
		t.Fatalf("%v", err)
	}
	p.config = &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: name, Namespace: "default", Uid: uid},
		Hostname:     name,
		LogDirectory: logs,
		DnsConfig:    &runtimeapi.DNSConfig{Servers: []string{"10.96.0.10"}, Searches: []string{"default.svc.cluster.local", "svc.cluster.local", "cluster.local"}, Options: []string{"ndots:5"}},
		PortMappings: []*runtimeapi.PortMapping{{ContainerPort: 8080}},
		Labels:       p.labels(name, uid, nil),
		Annotations:  map[string]string{"kubernetes.io/config.seen": time.Now().Format(time.RFC3339), "kubernetes.io/config.source": "api"},
		Linux: &runtimeapi.LinuxPodSandboxConfig{
			CgroupParent: p.cgroup,
			SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
				NamespaceOptions: namespaces(),
				// The kubelet confines every sandbox, whatever its containers ask for.
				Seccomp: p.profile(),
			},
			Resources: &runtimeapi.LinuxContainerResources{CpuShares: 102, MemoryLimitInBytes: 128 << 20},
		},
	}
	return p
}

func namespaces() *runtimeapi.NamespaceOption {
	return &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER}
}

func (p *pod) profile() *runtimeapi.SecurityProfile {
	if p.seccomp {
		return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault}
	}
	return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Unconfined}
}

func (p *pod) labels(name, uid string, more map[string]string) map[string]string {
	l := map[string]string{
		"app": "bench", "pod-template-hash": "5d4f8c7b9",
		"io.kubernetes.pod.name": name, "io.kubernetes.pod.namespace": "default", "io.kubernetes.pod.uid": uid,
	}
	for k, v := range more {
		l[k] = v
	}
	return l
}

// container is the request for the pod's only container.
func (p *pod) container() *runtimeapi.ContainerConfig {
	m := p.config.Metadata
	return &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: "main"},
		Image:    &runtimeapi.ImageSpec{Image: harness.Busybox, UserSpecifiedImage: harness.Busybox},
		Command:  bare.Command,
		Envs: envs(map[string]string{
			"KUBERNETES_SERVICE_HOST": "10.96.0.1", "KUBERNETES_SERVICE_PORT": "443", "KUBERNETES_SERVICE_PORT_HTTPS": "443",
			"KUBERNETES_PORT": "tcp://10.96.0.1:443", "KUBERNETES_PORT_443_TCP": "tcp://10.96.0.1:443", "KUBERNETES_PORT_443_TCP_ADDR": "10.96.0.1",
		}),
		Mounts: []*runtimeapi.Mount{
			{HostPath: filepath.Join(p.dir, "hosts"), ContainerPath: "/etc/hosts"},
			{HostPath: filepath.Join(p.dir, "termination-log"), ContainerPath: "/dev/termination-log"},
			{HostPath: filepath.Join(p.dir, "token"), ContainerPath: "/var/run/secrets/kubernetes.io/serviceaccount", Readonly: true},
		},
		LogPath: "main/0.log",
		Labels:  p.labels(m.Name, m.Uid, map[string]string{"io.kubernetes.container.name": "main"}),
		Annotations: map[string]string{
			"io.kubernetes.container.hash": "3f2a9c1b", "io.kubernetes.container.restartCount": "0",
			"io.kubernetes.container.terminationMessagePath": "/dev/termination-log", "io.kubernetes.container.terminationMessagePolicy": "File",
			"io.kubernetes.pod.terminationGracePeriod": "30",
		},
		Linux: &runtimeapi.LinuxContainerConfig{
			Resources: &runtimeapi.LinuxContainerResources{CpuPeriod: 100000, CpuShares: 102, MemoryLimitInBytes: 128 << 20, OomScoreAdj: 994},
			SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
				NamespaceOptions: namespaces(),
				Seccomp:          p.profile(),
				MaskedPaths: []string{"/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
					"/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap"},
				ReadonlyPaths: []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
			},
		},
	}
}

func envs(m map[string]string) (out []*runtimeapi.KeyValue) {
	for k, v := range m {
		out = append(out, &runtimeapi.KeyValue{Key: k, Value: []byte(v)})
	}
	return out
}

// timed does one request and returns its milliseconds.
func (p *pod) timed(what string, call func(context.Context) error) float64 {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	start := time.Now()
	if err := call(ctx); err != nil {
		p.t.Fatalf("%s: %s: %v", p.name, what, err)
	}
	return measure.Milliseconds(time.Since(start))
}

// run makes the sandbox, and a container in it, and tells what each step took.
func (p *pod) run() (id string, took [3]float64) {
	p.t.Helper()
	took[0] = p.timed("RunPodSandbox", func(ctx context.Context) error {
		r, err := p.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: p.config})
		p.sandbox = r.GetPodSandboxId()
		return err
	})
	c := p.container()
	took[1] = p.timed("CreateContainer", func(ctx context.Context) error {
		r, err := p.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: p.sandbox, Config: c, SandboxConfig: p.config})
		id = r.GetContainerId()
		return err
	})
	took[2] = p.timed("StartContainer", func(ctx context.Context) error {
		_, err := p.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: id})
		return err
	})
	return id, took
}

// stop ends the pod, with what runs in it, and tells what StopPodSandbox and RemovePodSandbox took.
func (p *pod) stop() (took [2]float64) {
	p.t.Helper()
	took[0] = p.timed("StopPodSandbox", func(ctx context.Context) error {
		_, err := p.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: p.sandbox})
		return err
	})
	took[1] = p.timed("RemovePodSandbox", func(ctx context.Context) error {
		_, err := p.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: p.sandbox})
		return err
	})
	if err := harness.RemoveCgroup(p.cgroup); err != nil {
		p.t.Errorf("%s: %v", p.name, err)
	}
	return took
}
