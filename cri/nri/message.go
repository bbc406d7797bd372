package nri

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/nri/pkg/api"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-io/berth/cri/ns"
	"github.com/berth-io/berth/cri/store"
)

// pod is a sandbox as plugins see it. It has no process of its own: who wants
// into its namespaces takes their paths.
func (n *NRI) pod(sb store.Sandbox) *api.PodSandbox {
	meta, linux := sb.Config.GetMetadata(), sb.Config.GetLinux()
	m := &api.PodSandbox{
		Id: sb.ID, Name: meta.GetName(), Uid: meta.GetUid(), Namespace: meta.GetNamespace(),
		Labels: sb.Config.GetLabels(), Annotations: sb.Config.GetAnnotations(),
		RuntimeHandler: sb.Handler, Ips: sb.IPs,
		Linux: &api.LinuxPodSandbox{
			PodOverhead: fromCRI(linux.GetOverhead()), PodResources: fromCRI(linux.GetResources()),
			CgroupParent: linux.GetCgroupParent(), CgroupsPath: sb.Cgroup,
		},
	}
	dir := filepath.Join(n.cfg.NamespaceDir, sb.ID)
	for _, kind := range []struct {
		kind ns.Kind
		oci  specs.LinuxNamespaceType
	}{{ns.Net, specs.NetworkNamespace}, {ns.IPC, specs.IPCNamespace}, {ns.UTS, specs.UTSNamespace}, {ns.PID, specs.PIDNamespace}} {
		if path := ns.Path(dir, kind.kind); ns.Pinned(path) {
			m.Linux.Namespaces = append(m.Linux.Namespaces, &api.LinuxNamespace{Type: string(kind.oci), Path: path})
		}
	}
	return m
}

// recorded is a container with the specification in its bundle; of one that
// has no bundle yet, what plugins were told before.
func (n *NRI) recorded(c store.Container) (*api.Container, error) {
	n.mu.Lock()
	if t := n.told[c.ID]; t != nil && t.container != nil {
		n.mu.Unlock()
		return t.container, nil
	}
	n.mu.Unlock()
	data, err := os.ReadFile(filepath.Join(n.cfg.ContainerDir, c.ID, "config.json"))
	if err != nil {
		return nil, fmt.Errorf("read the OCI configuration: %w", err)
	}
	var s specs.Spec
	if err := json.Unmarshal(data, &s); err != nil {
		return nil, fmt.Errorf("parse the OCI configuration: %w", err)
	}
	return n.container(c, &s), nil
}

// container is a container as plugins see it.
func (n *NRI) container(c store.Container, s *specs.Spec) *api.Container {
	m := &api.Container{
		Id: c.ID, PodSandboxId: c.SandboxID, Name: c.Config.GetMetadata().GetName(), State: state(c),
		Labels: c.Config.GetLabels(), Annotations: maps.Clone(s.Annotations),
		Mounts: api.FromOCIMounts(s.Mounts), Hooks: api.FromOCIHooks(s.Hooks),
		Pid: uint32(c.Pid), CreatedAt: c.CreatedAt.UnixNano(), ExitCode: int32(c.ExitCode),
		StatusReason: c.Reason, StatusMessage: c.Message, Linux: &api.LinuxContainer{},
		Image: &api.Image{Name: c.Config.GetImage().GetImage(), ConfigDigest: c.ImageID},
	}
	if m.Annotations == nil {
		m.Annotations = map[string]string{}
	}
	maps.Copy(m.Annotations, c.Config.GetAnnotations())
	if !c.StartedAt.IsZero() {
		m.StartedAt = c.StartedAt.UnixNano()
	}
	if !c.FinishedAt.IsZero() {
		m.FinishedAt = c.FinishedAt.UnixNano()
	}
	if _, digest, ok := strings.Cut(c.ImageRef, "@"); ok {
		m.Image.Digest = digest
	}
	for _, d := range c.Config.GetCDIDevices() {
		m.CDIDevices = append(m.CDIDevices, &api.CDIDevice{Name: d.GetName()})
	}
	if p := s.Process; p != nil {
		m.Args, m.Env = p.Args, p.Env
		m.User = &api.User{Uid: p.User.UID, Gid: p.User.GID, AdditionalGids: p.User.AdditionalGids}
		for _, l := range p.Rlimits {
			m.Rlimits = append(m.Rlimits, &api.POSIXRlimit{Type: l.Type, Hard: l.Hard, Soft: l.Soft})
		}
		m.Linux.OomScoreAdj = api.Int(p.OOMScoreAdj)
		m.Linux.IoPriority = api.FromOCILinuxIOPriority(p.IOPriority)
		if p.Scheduler != nil {
			m.Linux.Scheduler = api.FromOCILinuxScheduler(p.Scheduler)
		}
	}
	if l := s.Linux; l != nil {
		linuxContainer(m.Linux, l)
	}
	m.Linux.SeccompProfile = securityProfile(c.Config.GetLinux().GetSecurityContext().GetSeccomp())
	return m
}

func linuxContainer(m *api.LinuxContainer, l *specs.Linux) {
	m.Namespaces = api.FromOCILinuxNamespaces(l.Namespaces)
	m.Devices = api.FromOCILinuxDevices(l.Devices)
	m.Resources = api.FromOCILinuxResources(l.Resources, nil)
	m.CgroupsPath = l.CgroupsPath
	m.Sysctl = l.Sysctl
	m.NetDevices = api.FromOCILinuxNetDevices(l.NetDevices)
	if l.Seccomp != nil {
		m.SeccompPolicy = api.FromOCILinuxSeccomp(l.Seccomp)
	}
	if r := l.IntelRdt; r != nil {
		m.Rdt = &api.LinuxRdt{
			ClosId: api.String(r.ClosID), Schemata: api.RepeatedString(r.Schemata), EnableMonitoring: api.Bool(r.EnableMonitoring),
		}
	}
}

func securityProfile(p *runtimeapi.SecurityProfile) *api.SecurityProfile {
	if p == nil {
		return nil
	}
	kind := api.SecurityProfile_UNCONFINED
	switch p.GetProfileType() {
	case runtimeapi.SecurityProfile_RuntimeDefault:
		kind = api.SecurityProfile_RUNTIME_DEFAULT
	case runtimeapi.SecurityProfile_Localhost:
		kind = api.SecurityProfile_LOCALHOST
	}
	return &api.SecurityProfile{ProfileType: kind, LocalhostRef: p.GetLocalhostRef()}
}

func state(c store.Container) api.ContainerState {
	switch c.CRIState() {
	case runtimeapi.ContainerState_CONTAINER_CREATED:
		return api.ContainerState_CONTAINER_CREATED
	case runtimeapi.ContainerState_CONTAINER_RUNNING:
		return api.ContainerState_CONTAINER_RUNNING
	case runtimeapi.ContainerState_CONTAINER_EXITED:
		return api.ContainerState_CONTAINER_STOPPED
	}
	return api.ContainerState_CONTAINER_UNKNOWN
}

// fromCRI: what is zero is not set.
func fromCRI(r *runtimeapi.LinuxContainerResources) *api.LinuxResources {
	if r == nil {
		return nil
	}
	m := &api.LinuxResources{
		Cpu:     &api.LinuxCPU{Cpus: r.GetCpusetCpus(), Mems: r.GetCpusetMems()},
		Memory:  &api.LinuxMemory{},
		Unified: maps.Clone(r.GetUnified()),
	}
	if v := r.GetCpuShares(); v != 0 {
		m.Cpu.Shares = api.UInt64(uint64(v))
	}
	if v := r.GetCpuQuota(); v != 0 {
		m.Cpu.Quota = api.Int64(v)
	}
	if v := r.GetCpuPeriod(); v != 0 {
		m.Cpu.Period = api.UInt64(uint64(v))
	}
	if v := r.GetMemoryLimitInBytes(); v != 0 {
		m.Memory.Limit = api.Int64(v)
	}
	if v := r.GetMemorySwapLimitInBytes(); v != 0 {
		m.Memory.Swap = api.Int64(v)
	}
	for _, h := range r.GetHugepageLimits() {
		m.HugepageLimits = append(m.HugepageLimits, &api.HugepageLimit{PageSize: h.GetPageSize(), Limit: h.GetLimit()})
	}
	return m
}

// toCRI is the inverse, as far as the CRI knows the limit.
func toCRI(m *api.LinuxResources) *runtimeapi.LinuxContainerResources {
	if m == nil {
		return nil
	}
	r := &runtimeapi.LinuxContainerResources{
		CpuShares: int64(m.GetCpu().GetShares().GetValue()), CpuQuota: m.GetCpu().GetQuota().GetValue(),
		CpuPeriod:  int64(m.GetCpu().GetPeriod().GetValue()),
		CpusetCpus: m.GetCpu().GetCpus(), CpusetMems: m.GetCpu().GetMems(),
		MemoryLimitInBytes: m.GetMemory().GetLimit().GetValue(), MemorySwapLimitInBytes: m.GetMemory().GetSwap().GetValue(),
		Unified: maps.Clone(m.GetUnified()),
	}
	for _, h := range m.GetHugepageLimits() {
		r.HugepageLimits = append(r.HugepageLimits, &runtimeapi.HugepageLimit{PageSize: h.GetPageSize(), Limit: h.GetLimit()})
	}
	return r
}
