package spec

import (
	"fmt"
	"path"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Resources translates limits; zero means that nothing is set. Without a swap
// limit of its own a container may use no swap beyond its memory limit.
func Resources(r *runtimeapi.LinuxContainerResources, host Host) *specs.LinuxResources {
	o := &specs.LinuxResources{}
	if r == nil {
		return o
	}
	cpu := &specs.LinuxCPU{Cpus: r.GetCpusetCpus(), Mems: r.GetCpusetMems()}
	if v := uint64(r.GetCpuShares()); v != 0 {
		cpu.Shares = &v
	}
	if v := r.GetCpuQuota(); v != 0 {
		cpu.Quota = &v
	}
	if v := uint64(r.GetCpuPeriod()); v != 0 {
		cpu.Period = &v
	}
	o.CPU = cpu
	memory := &specs.LinuxMemory{}
	if v := r.GetMemoryLimitInBytes(); v != 0 {
		memory.Limit = &v
	}
	if swap := r.GetMemorySwapLimitInBytes(); swap != 0 && host.Swap {
		memory.Swap = &swap
	} else if host.Swap {
		memory.Swap = memory.Limit
	}
	o.Memory = memory
	if host.Hugetlb {
		for _, h := range r.GetHugepageLimits() {
			o.HugepageLimits = append(o.HugepageLimits, specs.LinuxHugepageLimit{Pagesize: h.GetPageSize(), Limit: h.GetLimit()})
		}
	}
	if host.Unified {
		o.Unified = r.GetUnified()
	}
	return o
}

// SetLimits replaces the limits of a specification. What the CRI does not know
// of stays: device rules, and what plugins have set.
func SetLimits(s *specs.Spec, limits *specs.LinuxResources, r *runtimeapi.LinuxContainerResources, host Host) {
	if s.Linux == nil {
		s.Linux = &specs.Linux{}
	}
	if s.Linux.Resources == nil {
		s.Linux.Resources = &specs.LinuxResources{}
	}
	had := s.Linux.Resources
	had.CPU, had.Memory, had.HugepageLimits = limits.CPU, limits.Memory, limits.HugepageLimits
	had.Unified = limits.Unified
	if s.Process != nil && s.Process.OOMScoreAdj != nil && r != nil {
		adj := max(int(r.GetOomScoreAdj()), host.MinOOMScoreAdj)
		s.Process.OOMScoreAdj = &adj
	}
}

// oomScoreAdj clamps to what the daemon may set: lowering it below one's own
// takes CAP_SYS_RESOURCE, and the container is worth more than its score.
func oomScoreAdj(c *runtimeapi.ContainerConfig, host Host) *int {
	r := c.GetLinux().GetResources()
	if r == nil {
		return nil
	}
	adj := max(int(r.GetOomScoreAdj()), host.MinOOMScoreAdj)
	return &adj
}

// Cgroup says where a container's cgroup is: as the OCI runtime takes it, and
// as a path in the cgroup file systems.
type Cgroup struct {
	OCI, Path string
}

// CgroupOf is a cgroup as an OCI runtime takes it, by its two names.
func CgroupOf(oci string, host Host) (Cgroup, error) {
	if !host.SystemdCgroup {
		return Cgroup{OCI: oci, Path: path.Join("/", oci)}, nil
	}
	parts := strings.Split(oci, ":")
	if len(parts) != 3 || !strings.HasSuffix(parts[0], ".slice") {
		return Cgroup{}, fmt.Errorf("cgroup path %q: with the systemd cgroup driver it is SLICE:PREFIX:NAME", oci)
	}
	return Cgroup{OCI: oci, Path: path.Join(slicePath(parts[0]), parts[1]+"-"+parts[2]+".scope")}, nil
}

// ContainerCgroup places a container below its pod's cgroup, by the rules of
// the cgroup driver.
func ContainerCgroup(parent, id string, host Host) (Cgroup, error) {
	if !host.SystemdCgroup {
		if strings.HasSuffix(parent, ".slice") {
			return Cgroup{}, fieldError("linux.cgroup_parent", "%s is a systemd slice, but the cgroup driver is cgroupfs", parent)
		}
		p := path.Join("/", parent, id)
		return Cgroup{OCI: p, Path: p}, nil
	}
	slice := path.Base(parent)
	if !strings.HasSuffix(slice, ".slice") {
		return Cgroup{}, fieldError("linux.cgroup_parent", "%s is not a systemd slice, but the cgroup driver is systemd", parent)
	}
	return Cgroup{
		OCI:  slice + ":berth:" + id,
		Path: path.Join(slicePath(slice), "berth-"+id+".scope"),
	}, nil
}

// slicePath is where systemd puts a slice: a-b.slice is below a.slice
// (systemd.slice(5)).
func slicePath(slice string) string {
	name := strings.TrimSuffix(slice, ".slice")
	if name == "-" {
		return "/"
	}
	p := "/"
	for i, r := range name {
		if r == '-' {
			p = path.Join(p, name[:i]+".slice")
		}
	}
	return path.Join(p, slice)
}
