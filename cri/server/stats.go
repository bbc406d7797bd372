package server

import (
	"errors"
	"path"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-io/berth/cri/ns"
	"github.com/berth-io/berth/cri/spec"
	"github.com/berth-io/berth/cri/stats"
	"github.com/berth-io/berth/cri/store"
)

// This file has what the calls about statistics share: where the numbers of a
// pod and of a container are, and how they look in the CRI.

// sample is what the statistics remember of a container or a sandbox.
type sample struct {
	cpu   stats.Rate
	layer stats.Layer
}

// sampleOf returns the sample of an ID. That of an ID without a record, which
// was removed meanwhile, is not kept: records go before forget is called.
func (s *Server) sampleOf(id string) *sample {
	s.mu.Lock()
	defer s.mu.Unlock()
	known := s.samples[id]
	if known == nil {
		known = &sample{}
		_, isContainer := s.containers.Get(id)
		_, isSandbox := s.sandboxes.Get(id)
		if isContainer || isSandbox {
			s.samples[id] = known
		}
	}
	return known
}

// podCgroup is the cgroup that all of a pod is in, empty when it shares one
// with others.
func (s *Server) podCgroup(sb store.Sandbox) string {
	if sb.Config.GetLinux().GetCgroupParent() == "" && !sb.OwnCgroup {
		return ""
	}
	c, err := spec.ContainerCgroup(sb.Cgroup, sb.ID, s.cfg.Host)
	if err != nil {
		return "" // it was refused when the sandbox was made
	}
	return path.Dir(c.Path)
}

// podReadings are those of a pod that are not of one container.
type podReadings struct {
	sandbox    store.Sandbox
	containers []store.Container // those that run
	network    stats.Network
}

// readPods gathers the ready sandboxes that want lets through, and reads their
// networks.
func (s *Server) readPods(want func(store.Sandbox) bool) []podReadings {
	running := map[string][]store.Container{}
	for _, c := range s.containers.List() {
		if c.State == store.ContainerRunning {
			running[c.SandboxID] = append(running[c.SandboxID], c)
		}
	}
	var pods []podReadings
	var paths []string
	var networked []int
	for _, sb := range s.sandboxes.List() {
		if !sb.Ready() || !want(sb) {
			continue
		}
		if !sb.HostNetwork() {
			networked = append(networked, len(pods))
			paths = append(paths, ns.Path(s.nsDir(sb.ID), ns.Net))
		}
		pods = append(pods, podReadings{sandbox: sb, containers: running[sb.ID]})
	}
	for i, n := range stats.Networks(paths) {
		pods[networked[i]].network = n
	}
	return pods
}

// ignoreGone: what ends while it is read has no numbers, and that is no error.
func ignoreGone(err error) error {
	if errors.Is(err, stats.ErrGone) {
		return nil
	}
	return err
}

// writableLayer measures a container's writable layer.
func (s *Server) writableLayer(id string) (stats.LayerUsage, bool, error) {
	u, known, err := s.layers.Usage(&s.sampleOf(id).layer, s.layer(id).Upper())
	return u, known, ignoreGone(err)
}

func criCPU(u stats.Usage, rate *stats.Rate) *runtimeapi.CpuUsage {
	if u.CPU == nil {
		return nil
	}
	c := &runtimeapi.CpuUsage{
		Timestamp: u.At.UnixNano(), UsageCoreNanoSeconds: criNumber(uint64(u.CPU.Total)), Psi: criPressure(u.CPUPressure),
	}
	if nanoCores, ok := rate.Update(u.At, u.CPU.Total); ok {
		c.UsageNanoCores = criNumber(nanoCores)
	}
	return c
}

func criMemory(u stats.Usage) *runtimeapi.MemoryUsage {
	m := u.Memory
	if m == nil {
		return nil
	}
	usage := &runtimeapi.MemoryUsage{
		Timestamp: u.At.UnixNano(), Psi: criPressure(u.MemoryPressure),
		UsageBytes: criNumber(m.Usage), WorkingSetBytes: criNumber(m.WorkingSet), RssBytes: criNumber(m.RSS),
		PageFaults: criNumber(m.PageFaults), MajorPageFaults: criNumber(m.MajorPageFaults),
	}
	// Without a limit there is no answer.
	if m.Limit != stats.Unlimited {
		usage.AvailableBytes = criNumber(m.Limit - min(m.Limit, m.WorkingSet))
	}
	return usage
}

func criSwap(u stats.Usage) *runtimeapi.SwapUsage {
	if u.Swap == nil {
		return nil
	}
	swap := &runtimeapi.SwapUsage{Timestamp: u.At.UnixNano(), SwapUsageBytes: criNumber(u.Swap.Usage)}
	if u.Swap.Limit != stats.Unlimited {
		swap.SwapAvailableBytes = criNumber(u.Swap.Limit - min(u.Swap.Limit, u.Swap.Usage))
	}
	return swap
}

// criIO: the CRI has nothing but the pressure.
func criIO(u stats.Usage) *runtimeapi.IoUsage {
	if u.IOPressure == nil {
		return nil
	}
	return &runtimeapi.IoUsage{Timestamp: u.At.UnixNano(), Psi: criPressure(u.IOPressure)}
}

func criPressure(p *stats.Pressure) *runtimeapi.PsiStats {
	if p == nil {
		return nil
	}
	data := func(s stats.Stall) *runtimeapi.PsiData {
		return &runtimeapi.PsiData{Total: uint64(s.Total / time.Nanosecond), Avg10: s.Avg10, Avg60: s.Avg60, Avg300: s.Avg300}
	}
	return &runtimeapi.PsiStats{Full: data(p.Full), Some: data(p.Some)}
}

// defaultInterface is the pod's interface by every CNI plugin's habit.
const defaultInterface = "eth0"

// criNetwork is nil for a pod without an interface: the kubelet expects a
// default one in all that is not.
func criNetwork(n stats.Network) *runtimeapi.NetworkUsage {
	if len(n.Interfaces) == 0 {
		return nil
	}
	usage := &runtimeapi.NetworkUsage{Timestamp: n.At.UnixNano()}
	first := 0
	for i := range n.Interfaces {
		if n.Interfaces[i].Name == defaultInterface {
			first = i
		}
	}
	for i, dev := range n.Interfaces {
		u := &runtimeapi.NetworkInterfaceUsage{
			Name: dev.Name, RxBytes: criNumber(dev.RxBytes), RxErrors: criNumber(dev.RxErrors),
			TxBytes: criNumber(dev.TxBytes), TxErrors: criNumber(dev.TxErrors),
		}
		if i == first {
			usage.DefaultInterface = u
		} else {
			usage.Interfaces = append(usage.Interfaces, u)
		}
	}
	return usage
}

func criNumber(n uint64) *runtimeapi.UInt64Value { return &runtimeapi.UInt64Value{Value: n} }
