package nri

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/nri/pkg/runtime-tools/generate"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// adjust applies what plugins want of a specification. The library decides
// what an adjustment means; editor does it.
func (n *NRI) adjust(s *specs.Spec, want *api.ContainerAdjustment) error {
	initialize(s)
	g := generate.SpecGenerator(&editor{s},
		generate.WithResourceChecker(n.checkResources),
		generate.WithRdtResolver(func(class string) (*specs.LinuxIntelRdt, error) {
			return &specs.LinuxIntelRdt{ClosID: class}, nil
		}),
		generate.WithBlockIOResolver(func(class string) (*specs.LinuxBlockIO, error) {
			return nil, fmt.Errorf("block I/O class %q: classes are not configured on this node", class)
		}),
		generate.WithCDIDeviceInjector(n.injectCDI),
	)
	if err := g.Adjust(want); err != nil {
		return fmt.Errorf("adjust the container as NRI plugins want it: %w", err)
	}
	return nil
}

// initialize makes what the library expects of a specification.
func initialize(s *specs.Spec) {
	if s.Process == nil {
		s.Process = &specs.Process{}
	}
	if s.Linux == nil {
		s.Linux = &specs.Linux{}
	}
	if s.Linux.Resources == nil {
		s.Linux.Resources = &specs.LinuxResources{}
	}
	if s.Linux.Resources.CPU == nil {
		s.Linux.Resources.CPU = &specs.LinuxCPU{}
	}
	if s.Linux.Resources.Memory == nil {
		s.Linux.Resources.Memory = &specs.LinuxMemory{}
	}
	if s.Hooks == nil {
		s.Hooks = &specs.Hooks{}
	}
}

// checkResources drops what this host has no controller for, as is done with
// the limits of a request.
func (n *NRI) checkResources(r *specs.LinuxResources) error {
	if r.Memory != nil && !n.cfg.Host.Swap {
		r.Memory.Swap = nil
	}
	if !n.cfg.Host.Hugetlb {
		r.HugepageLimits = nil
	}
	if !n.cfg.Host.Unified {
		r.Unified = nil
	}
	return nil
}

func (n *NRI) injectCDI(s *specs.Spec, devices []string) error {
	if n.cfg.CDI == nil {
		return fmt.Errorf("CDI devices %s: %w", strings.Join(devices, ", "), errors.New("CDI is not supported"))
	}
	return n.cfg.CDI(s, devices)
}

// editor changes a specification one field at a time, by the names of
// generate.UnderlyingGenerator.
type editor struct{ s *specs.Spec }

func (e *editor) Spec() *specs.Spec { return e.s }

func (e *editor) AddAnnotation(key, value string) {
	if e.s.Annotations == nil {
		e.s.Annotations = map[string]string{}
	}
	e.s.Annotations[key] = value
}

func (e *editor) RemoveAnnotation(key string) { delete(e.s.Annotations, key) }

func (e *editor) SetProcessArgs(args []string) { e.s.Process.Args = args }
func (e *editor) ClearProcessEnv()             { e.s.Process.Env = nil }

func (e *editor) AddProcessEnv(name, value string) {
	entry := name + "=" + value
	for i, old := range e.s.Process.Env {
		if strings.HasPrefix(old, name+"=") {
			e.s.Process.Env[i] = entry
			return
		}
	}
	e.s.Process.Env = append(e.s.Process.Env, entry)
}

func (e *editor) SetProcessOOMScoreAdj(adj int) { e.s.Process.OOMScoreAdj = &adj }

func (e *editor) AddPreStartHook(h specs.Hook) {
	//lint:ignore SA1019 plugins may still ask for them, and runtimes still run them
	e.s.Hooks.Prestart = append(e.s.Hooks.Prestart, h)
}

func (e *editor) AddPostStartHook(h specs.Hook) {
	e.s.Hooks.Poststart = append(e.s.Hooks.Poststart, h)
}

func (e *editor) AddPostStopHook(h specs.Hook) {
	e.s.Hooks.Poststop = append(e.s.Hooks.Poststop, h)
}

func (e *editor) Mounts() []specs.Mount  { return e.s.Mounts }
func (e *editor) ClearMounts()           { e.s.Mounts = nil }
func (e *editor) AddMount(m specs.Mount) { e.s.Mounts = append(e.s.Mounts, m) }
func (e *editor) RemoveMount(path string) {
	e.s.Mounts = slices.DeleteFunc(e.s.Mounts, func(m specs.Mount) bool { return m.Destination == path })
}

func (e *editor) SetLinuxRootPropagation(p string) error {
	e.s.Linux.RootfsPropagation = p
	return nil
}

func (e *editor) AddDevice(d specs.LinuxDevice) {
	e.RemoveDevice(d.Path)
	e.s.Linux.Devices = append(e.s.Linux.Devices, d)
}

func (e *editor) RemoveDevice(path string) {
	e.s.Linux.Devices = slices.DeleteFunc(e.s.Linux.Devices, func(d specs.LinuxDevice) bool { return d.Path == path })
}

func (e *editor) AddOrReplaceLinuxNamespace(kind, path string) error {
	// NRI has the names of the specification.
	want := specs.LinuxNamespace{Type: specs.LinuxNamespaceType(kind), Path: path}
	for i, have := range e.s.Linux.Namespaces {
		if have.Type == want.Type {
			e.s.Linux.Namespaces[i] = want
			return nil
		}
	}
	e.s.Linux.Namespaces = append(e.s.Linux.Namespaces, want)
	return nil
}

func (e *editor) RemoveLinuxNamespace(kind string) error {
	e.s.Linux.Namespaces = slices.DeleteFunc(e.s.Linux.Namespaces, func(n specs.LinuxNamespace) bool {
		return n.Type == specs.LinuxNamespaceType(kind)
	})
	return nil
}

func (e *editor) AddLinuxSysctl(key, value string) {
	if e.s.Linux.Sysctl == nil {
		e.s.Linux.Sysctl = map[string]string{}
	}
	e.s.Linux.Sysctl[key] = value
}

func (e *editor) RemoveLinuxSysctl(key string) { delete(e.s.Linux.Sysctl, key) }

func (e *editor) SetLinuxCgroupsPath(path string) { e.s.Linux.CgroupsPath = path }

func (e *editor) AddLinuxResourcesDevice(allow bool, kind string, major, minor *int64, access string) {
	r := e.s.Linux.Resources
	r.Devices = append(r.Devices, specs.LinuxDeviceCgroup{Allow: allow, Type: kind, Major: major, Minor: minor, Access: access})
}

func (e *editor) AddLinuxResourcesHugepageLimit(size string, limit uint64) {
	r := e.s.Linux.Resources
	for i := range r.HugepageLimits {
		if r.HugepageLimits[i].Pagesize == size {
			r.HugepageLimits[i].Limit = limit
			return
		}
	}
	r.HugepageLimits = append(r.HugepageLimits, specs.LinuxHugepageLimit{Pagesize: size, Limit: limit})
}

func (e *editor) AddLinuxResourcesUnified(key, value string) {
	if e.s.Linux.Resources.Unified == nil {
		e.s.Linux.Resources.Unified = map[string]string{}
	}
	e.s.Linux.Resources.Unified[key] = value
}

func (e *editor) SetLinuxResourcesCPUShares(v uint64) { e.s.Linux.Resources.CPU.Shares = &v }
func (e *editor) SetLinuxResourcesCPUQuota(v int64)   { e.s.Linux.Resources.CPU.Quota = &v }
func (e *editor) SetLinuxResourcesCPUPeriod(v uint64) { e.s.Linux.Resources.CPU.Period = &v }
func (e *editor) SetLinuxResourcesCPURealtimeRuntime(v int64) {
	e.s.Linux.Resources.CPU.RealtimeRuntime = &v
}
func (e *editor) SetLinuxResourcesCPURealtimePeriod(v uint64) {
	e.s.Linux.Resources.CPU.RealtimePeriod = &v
}
func (e *editor) SetLinuxResourcesCPUCpus(v string)    { e.s.Linux.Resources.CPU.Cpus = v }
func (e *editor) SetLinuxResourcesCPUMems(v string)    { e.s.Linux.Resources.CPU.Mems = v }
func (e *editor) SetLinuxResourcesMemoryLimit(v int64) { e.s.Linux.Resources.Memory.Limit = &v }
func (e *editor) SetLinuxResourcesMemorySwap(v int64)  { e.s.Linux.Resources.Memory.Swap = &v }
