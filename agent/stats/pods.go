package stats

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	statsapi "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
)

// present are the sandboxes and running containers that are measured, by ID.
type present struct {
	sandboxes  map[string]*runtimeapi.PodSandbox
	containers map[string]*runtimeapi.Container
}

// layers are the mount points of the file systems that writable layers are on,
// by layerKey.
type layers map[[2]string]string

// layerKey names a container that runs: one of that name in a pod does.
func layerKey(podUID, container string) [2]string { return [2]string{podUID, container} }

// podStats measures every pod with a ready sandbox, once each: of two sandboxes
// of a pod the newer counts.
func (c *Collector) podStats(ctx context.Context, at layers) ([]statsapi.PodStats, error) {
	p, err := c.present(ctx)
	if err != nil {
		return nil, err
	}
	r, err := c.runtime.ListPodSandboxStats(ctx, &runtimeapi.ListPodSandboxStatsRequest{})
	if status.Code(err) == codes.Unimplemented {
		return c.podStatsOfContainers(ctx, p, at)
	}
	if err != nil {
		return nil, fmt.Errorf("ask the runtime for its pods' usage: %w", err)
	}
	pods := make([]statsapi.PodStats, 0, len(r.GetStats()))
	for _, s := range r.GetStats() {
		sandbox := p.sandboxes[s.GetAttributes().GetId()]
		if sandbox == nil {
			continue // gone, or stopped
		}
		pod := podRef(sandbox)
		linux := s.GetLinux()
		for _, cs := range linux.GetContainers() {
			if container := p.containers[cs.GetAttributes().GetId()]; container != nil {
				pod.Containers = append(pod.Containers, c.criContainer(container, cs))
				at[layerKey(pod.PodRef.UID, container.GetMetadata().GetName())] = cs.GetWritableLayer().GetFsId().GetMountpoint()
			}
		}
		pod.CPU, pod.Memory = c.criCPU("pod/"+sandbox.GetId(), linux.GetCpu()), criMemory(linux.GetMemory())
		pod.IO = criIO(linux.GetIo())
		pod.Network = criNetwork(linux.GetNetwork())
		if n := linux.GetProcess().GetProcessCount(); n != nil {
			pod.ProcessStats = &statsapi.ProcessStats{ProcessCount: value(n)}
		}
		pod.Swap = sumSwap(pod.Containers) // the CRI has none of pods
		pods = append(pods, pod)
	}
	return pods, nil
}

// podStatsOfContainers is for a runtime that measures containers only: a pod's
// own numbers are read from its cgroup.
func (c *Collector) podStatsOfContainers(ctx context.Context, p present, where layers) ([]statsapi.PodStats, error) {
	r, err := c.runtime.ListContainerStats(ctx, &runtimeapi.ListContainerStatsRequest{})
	if err != nil {
		return nil, fmt.Errorf("ask the runtime for its containers' usage: %w", err)
	}
	byPod := map[string][]statsapi.ContainerStats{}
	for _, cs := range r.GetStats() {
		if container := p.containers[cs.GetAttributes().GetId()]; container != nil {
			id := container.GetPodSandboxId()
			byPod[id] = append(byPod[id], c.criContainer(container, cs))
			uid := p.sandboxes[id].GetMetadata().GetUid()
			where[layerKey(uid, container.GetMetadata().GetName())] = cs.GetWritableLayer().GetFsId().GetMountpoint()
		}
	}
	known := map[string]*v1.Pod{}
	for _, pod := range c.pods.Pods() {
		known[string(pod.UID)] = pod
	}
	pods := make([]statsapi.PodStats, 0, len(p.sandboxes))
	for id, sandbox := range p.sandboxes {
		pod := podRef(sandbox)
		pod.Containers = append(pod.Containers, byPod[id]...)
		pod.Swap = sumSwap(pod.Containers)
		if spec := known[pod.PodRef.UID]; spec != nil {
			if u, err := readCgroup(at(c.cgroups.PodPath(spec))); err == nil {
				s := c.container("pod/"+id, u)
				pod.CPU, pod.Memory, pod.IO = s.CPU, s.Memory, s.IO
			}
		}
		pods = append(pods, pod)
	}
	return pods, nil
}

func (c *Collector) present(ctx context.Context) (present, error) {
	p := present{sandboxes: map[string]*runtimeapi.PodSandbox{}, containers: map[string]*runtimeapi.Container{}}
	ready := &runtimeapi.PodSandboxStateValue{State: runtimeapi.PodSandboxState_SANDBOX_READY}
	sandboxes, err := c.runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{Filter: &runtimeapi.PodSandboxFilter{State: ready}})
	if err != nil {
		return p, fmt.Errorf("list the runtime's sandboxes: %w", err)
	}
	newest := map[string]*runtimeapi.PodSandbox{}
	for _, s := range sandboxes.GetItems() {
		uid := s.GetMetadata().GetUid()
		if old := newest[uid]; s.GetState() == runtimeapi.PodSandboxState_SANDBOX_READY && (old == nil || old.GetCreatedAt() < s.GetCreatedAt()) {
			newest[uid] = s
		}
	}
	for _, s := range newest {
		p.sandboxes[s.GetId()] = s
	}
	running := &runtimeapi.ContainerStateValue{State: runtimeapi.ContainerState_CONTAINER_RUNNING}
	containers, err := c.runtime.ListContainers(ctx, &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{State: running}})
	if err != nil {
		return p, fmt.Errorf("list the runtime's containers: %w", err)
	}
	for _, container := range containers.GetContainers() {
		if container.GetState() == runtimeapi.ContainerState_CONTAINER_RUNNING {
			p.containers[container.GetId()] = container
		}
	}
	return p, nil
}

func podRef(s *runtimeapi.PodSandbox) statsapi.PodStats {
	m := s.GetMetadata()
	return statsapi.PodStats{
		PodRef:     statsapi.PodReference{Name: m.GetName(), Namespace: m.GetNamespace(), UID: m.GetUid()},
		StartTime:  metav1.NewTime(time.Unix(0, s.GetCreatedAt())),
		Containers: []statsapi.ContainerStats{},
	}
}

// criContainer is a container without its disk use. What a runtime does not
// measure is zero, as the kubelet's makeContainerStats has it.
func (c *Collector) criContainer(container *runtimeapi.Container, s *runtimeapi.ContainerStats) statsapi.ContainerStats {
	out := statsapi.ContainerStats{
		Name:      container.GetMetadata().GetName(),
		StartTime: metav1.NewTime(time.Unix(0, container.GetCreatedAt())),
		CPU:       c.criCPU("container/"+container.GetId(), s.GetCpu()),
		Memory:    criMemory(s.GetMemory()),
		IO:        criIO(s.GetIo()),
		Swap:      &statsapi.SwapStats{},
		Rootfs:    &statsapi.FsStats{},
	}
	var zero uint64
	now := metav1.Now()
	if out.CPU == nil {
		out.CPU = &statsapi.CPUStats{Time: now, UsageCoreNanoSeconds: &zero, UsageNanoCores: &zero}
	}
	if out.Memory == nil {
		out.Memory = &statsapi.MemoryStats{Time: now, WorkingSetBytes: &zero, UsageBytes: &zero, RSSBytes: &zero}
	}
	if out.IO == nil {
		out.IO = &statsapi.IOStats{Time: now}
	}
	if swap := s.GetSwap(); swap != nil {
		out.Swap.Time = metav1.NewTime(time.Unix(0, swap.GetTimestamp()))
		out.Swap.SwapUsageBytes, out.Swap.SwapAvailableBytes = value(swap.GetSwapUsageBytes()), value(swap.GetSwapAvailableBytes())
	} else {
		out.Swap = &statsapi.SwapStats{Time: now, SwapUsageBytes: &zero, SwapAvailableBytes: &zero}
	}
	if layer := s.GetWritableLayer(); layer != nil {
		out.Rootfs.Time = metav1.NewTime(time.Unix(0, layer.GetTimestamp()))
		out.Rootfs.UsedBytes, out.Rootfs.InodesUsed = value(layer.GetUsedBytes()), value(layer.GetInodesUsed())
	}
	return out
}

func (c *Collector) criCPU(key string, u *runtimeapi.CpuUsage) *statsapi.CPUStats {
	if u == nil {
		return nil
	}
	at := time.Unix(0, u.GetTimestamp())
	s := &statsapi.CPUStats{
		Time: metav1.NewTime(at), UsageCoreNanoSeconds: value(u.GetUsageCoreNanoSeconds()), UsageNanoCores: value(u.GetUsageNanoCores()),
		PSI: criPressure(u.GetPsi()),
	}
	if s.UsageNanoCores == nil && s.UsageCoreNanoSeconds != nil {
		s.UsageNanoCores = c.rates.next(key, at, *s.UsageCoreNanoSeconds)
	}
	return s
}

func criMemory(u *runtimeapi.MemoryUsage) *statsapi.MemoryStats {
	if u == nil {
		return nil
	}
	return &statsapi.MemoryStats{
		Time: metav1.NewTime(time.Unix(0, u.GetTimestamp())), AvailableBytes: value(u.GetAvailableBytes()),
		UsageBytes: value(u.GetUsageBytes()), WorkingSetBytes: value(u.GetWorkingSetBytes()), RSSBytes: value(u.GetRssBytes()),
		PageFaults: value(u.GetPageFaults()), MajorPageFaults: value(u.GetMajorPageFaults()), PSI: criPressure(u.GetPsi()),
	}
}

func criIO(u *runtimeapi.IoUsage) *statsapi.IOStats {
	if u == nil {
		return nil
	}
	return &statsapi.IOStats{Time: metav1.NewTime(time.Unix(0, u.GetTimestamp())), PSI: criPressure(u.GetPsi())}
}

func criNetwork(u *runtimeapi.NetworkUsage) *statsapi.NetworkStats {
	if u == nil {
		return nil
	}
	s := &statsapi.NetworkStats{Time: metav1.NewTime(time.Unix(0, u.GetTimestamp())), InterfaceStats: criInterface(u.GetDefaultInterface())}
	// The CRI leaves the default one out of the list; cAdvisor's list, which
	// readers of the summary know, has it.
	if u.GetDefaultInterface() != nil {
		s.Interfaces = append(s.Interfaces, s.InterfaceStats)
	}
	for _, i := range u.GetInterfaces() {
		if i.GetName() != u.GetDefaultInterface().GetName() {
			s.Interfaces = append(s.Interfaces, criInterface(i))
		}
	}
	return s
}

func criInterface(i *runtimeapi.NetworkInterfaceUsage) statsapi.InterfaceStats {
	return statsapi.InterfaceStats{
		Name: i.GetName(), RxBytes: value(i.GetRxBytes()), RxErrors: value(i.GetRxErrors()),
		TxBytes: value(i.GetTxBytes()), TxErrors: value(i.GetTxErrors()),
	}
}

func criPressure(p *runtimeapi.PsiStats) *statsapi.PSIStats {
	if p == nil {
		return nil
	}
	data := func(d *runtimeapi.PsiData) statsapi.PSIData {
		return statsapi.PSIData{Total: d.GetTotal(), Avg10: d.GetAvg10(), Avg60: d.GetAvg60(), Avg300: d.GetAvg300()}
	}
	return &statsapi.PSIStats{Some: data(p.GetSome()), Full: data(p.GetFull())}
}

// sumSwap is a pod's swap: that of its containers.
func sumSwap(containers []statsapi.ContainerStats) *statsapi.SwapStats {
	var sum statsapi.SwapStats
	var used, available uint64
	for _, c := range containers {
		if c.Swap == nil {
			continue
		}
		sum.Time, sum.SwapUsageBytes, sum.SwapAvailableBytes = c.Swap.Time, &used, &available
		if n := c.Swap.SwapUsageBytes; n != nil {
			used += *n
		}
		if n := c.Swap.SwapAvailableBytes; n != nil {
			available += *n
		}
	}
	if sum.SwapUsageBytes == nil {
		return nil
	}
	return &sum
}

func value(v *runtimeapi.UInt64Value) *uint64 {
	if v == nil {
		return nil
	}
	n := v.GetValue()
	return &n
}
