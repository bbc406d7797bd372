package qos

import (
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"time"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/cgroups/fs"
	"github.com/opencontainers/cgroups/fs2"
	"github.com/opencontainers/cgroups/systemd"
	v1 "k8s.io/api/core/v1"

	"github.com/berth-io/berth/internal/failpoint"
)

// Config is what a Tree is made from.
type Config struct {
	// Root is the cgroup under which kubepods hangs, "/" unless the node itself
	// is confined.
	Root   string
	Driver Driver
	// CPUs and MemoryBytes are the node's. All pods together may use that much
	// unless Allocatable says less; zero leaves kubepods without that setting.
	// oom_score_adj is reckoned from MemoryBytes, too.
	CPUs        int
	MemoryBytes int64
	SwapBytes   int64
	// Allocatable, where not nil, is what all pods together may use: cpu, memory,
	// pid and hugepages-*. It is the node's capacity without what is reserved,
	// with "pods" in enforceNodeAllocatable, and the capacity otherwise.
	Allocatable v1.ResourceList
	// PodPIDs limits the processes of each pod (podPidsLimit); zero or less does
	// not.
	PodPIDs int64
	// NoClasses is cgroupsPerQOS: false. Pods then have no cgroups of their own;
	// their containers hang below Root.
	NoClasses   bool
	Enforcement Enforcement
	// Changed is told what was done to a pod's cgroup, "create", "update" or
	// "destroy", and how long it took; nil: nobody counts.
	Changed func(operation string, took time.Duration)
	// Protected is told, with MemoryQoS, how much memory of guaranteed and of
	// burstable pods is protected, in bytes; nil: nobody counts.
	Protected func(guaranteed, burstable int64)
	// ExclusiveCPUs says whether a pod has CPUs to itself and is not throttled;
	// nil means that none has. It is asked whenever a pod's cgroup is set.
	ExclusiveCPUs func(*v1.Pod) bool
}

// Tree makes, sets and removes the cgroups of pods and their classes. Its
// methods may be called concurrently, for one pod by one caller at a time.
type Tree struct {
	config Config
	host   hierarchies
	info   NodeInfo
	root   node
	pods   node // ROOT/kubepods
}

// NewTree looks at the host's cgroups and changes nothing.
func NewTree(config Config) (*Tree, error) {
	if config.Driver != Cgroupfs && config.Driver != Systemd {
		return nil, fmt.Errorf("cgroup driver %q: must be %q or %q", config.Driver, Cgroupfs, Systemd)
	}
	if config.Driver == Systemd && !systemd.IsRunningSystemd() {
		return nil, errors.New("cgroup driver systemd: this host was not booted with systemd; use the cgroupfs driver")
	}
	root, err := parseRoot(config.Root)
	if err != nil {
		return nil, err
	}
	host, err := findHierarchies()
	if err != nil {
		return nil, err
	}
	t := &Tree{config: config, host: host, root: root, pods: root.child(podsLevel)}
	t.info = NodeInfo{Enforcement: config.Enforcement, MemoryBytes: config.MemoryBytes, SwapBytes: config.SwapBytes, CgroupV2: host.unified}
	if t.info.SwapLimits, err = host.limitsSwap(); err != nil {
		return nil, err
	}
	if t.info.HugePageSizes, err = host.hugePageSizes(); err != nil {
		return nil, err
	}
	return t, nil
}

// Node is what the host means for container resources.
func (t *Tree) Node() NodeInfo { return t.info }

// Ensure makes kubepods and its classes, with their controllers enabled, and
// sets what does not depend on pods. It may be repeated.
func (t *Tree) Ensure() error {
	if t.config.NoClasses {
		return nil
	}
	all := Settings{MemoryBytes: t.config.MemoryBytes}
	if t.config.CPUs > 0 {
		all.CPUShares = milliToShares(int64(t.config.CPUs) * milliPerCPU)
	}
	if t.config.Allocatable != nil {
		all = allocatableSettings(t.config.Allocatable)
	}
	if err := t.ensure(t.pods, all); err != nil {
		return err
	}
	// The shares of the burstable level are left as they are: they follow from
	// the pods, which RefreshClasses is told. Huge pages are limited above and
	// below the classes.
	unbounded := map[string]uint64{}
	for _, size := range t.info.HugePageSizes {
		unbounded[size] = 1 << 62
	}
	if err := t.ensure(classNode(t.pods, v1.PodQOSBurstable), Settings{HugePages: unbounded}); err != nil {
		return err
	}
	return t.ensure(classNode(t.pods, v1.PodQOSBestEffort), Settings{CPUShares: minShares, HugePages: unbounded})
}

// EnsurePod makes the pod's cgroup and writes its Settings, which is the
// pod's cgroup_parent for the runtime: the absolute path below each hierarchy's
// mount point. Ensure must have succeeded before. It may be repeated.
func (t *Tree) EnsurePod(pod *v1.Pod) (cgroupParent string, err error) {
	n, err := t.podNode(pod)
	if err != nil || t.config.NoClasses {
		return n.path(t.config.Driver), err
	}
	defer t.changed("create", time.Now())
	if err := t.ensure(n, t.PodSettings(pod)); err != nil {
		return "", err
	}
	return n.path(t.config.Driver), nil
}

// PodSettings are what EnsurePod sets the pod's cgroup to.
func (t *Tree) PodSettings(pod *v1.Pod) Settings {
	s := PodSettings(pod, t.config.ExclusiveCPUs != nil && t.config.ExclusiveCPUs(pod), t.info)
	if t.config.PodPIDs > 0 {
		s.PIDs = t.config.PodPIDs
	}
	return s
}

// SetPod sets the cgroup of a pod that runs, at once: for a resize, which grows
// the pod before its containers and shrinks it after them. A setting that is
// zero stays as it is. The pod's class cannot change.
func (t *Tree) SetPod(pod *v1.Pod, s Settings) error {
	n, err := t.podNode(pod)
	if err != nil || t.config.NoClasses {
		return err
	}
	defer t.changed("update", time.Now())
	return t.set(n, s)
}

// changed counts a change of a pod's cgroup that began then.
func (t *Tree) changed(operation string, began time.Time) {
	if t.config.Changed != nil {
		t.config.Changed(operation, time.Since(began))
	}
}

func (t *Tree) podNode(pod *v1.Pod) (node, error) {
	if t.config.NoClasses {
		return t.root, nil
	}
	if err := checkLevel(string(pod.UID)); err != nil {
		return nil, fmt.Errorf("pod UID: %w", err)
	}
	return classNode(t.pods, Class(pod)).child(podPrefix + string(pod.UID)), nil
}

// RefreshClasses weighs the burstable level by what its pods request, and
// protects the memory that pods request where that is asked for. Pods are all
// pods that have a cgroup or are about to get one.
func (t *Tree) RefreshClasses(pods []*v1.Pod) error {
	if t.config.NoClasses {
		return nil
	}
	c := classSettings(pods, t.info)
	if c.kubepods.Unified != nil {
		if err := t.set(t.pods, c.kubepods); err != nil {
			return err
		}
		if t.config.Protected != nil {
			t.config.Protected(c.guaranteedBytes, c.burstableBytes)
		}
	}
	return t.set(classNode(t.pods, v1.PodQOSBurstable), c.burstable)
}

func (t *Tree) ensure(n node, s Settings) error {
	m, err := t.manager(n, s)
	if err != nil {
		return err
	}
	if err := m.Apply(-1); err != nil {
		return fmt.Errorf("make cgroup %s: %w", n.path(t.config.Driver), err)
	}
	failpoint.Hit("qos/made")
	return t.set(n, s)
}

func (t *Tree) set(n node, s Settings) error {
	m, err := t.manager(n, s)
	if err != nil {
		return err
	}
	if err := m.Set(t.resources(s)); err != nil {
		return fmt.Errorf("set resources of cgroup %s: %w", n.path(t.config.Driver), err)
	}
	return nil
}

// manager is cheap: paths are given, so it looks nothing up.
func (t *Tree) manager(n node, s Settings) (cgroups.Manager, error) {
	cgroupPath := n.path(t.config.Driver)
	cg := &cgroups.Cgroup{Resources: t.resources(s)}
	if t.config.Driver == Cgroupfs {
		cg.Path = cgroupPath
		if t.host.unified {
			return fs2.NewManager(cg, filepath.Join(cgroupMount, cgroupPath))
		}
		return fs.NewManager(cg, t.host.dirs(cgroupPath))
	}
	cg.Systemd = true
	cg.Name, cg.Parent = path.Base(cgroupPath), "-.slice"
	if parent := path.Dir(cgroupPath); parent != "/" {
		cg.Parent = path.Base(parent)
	}
	if t.host.unified {
		return systemd.NewUnifiedManager(cg, filepath.Join(cgroupMount, cgroupPath))
	}
	return systemd.NewLegacyManager(cg, t.host.dirs(cgroupPath))
}

func (t *Tree) resources(s Settings) *cgroups.Resources {
	r := &cgroups.Resources{Memory: s.MemoryBytes, SkipDevices: true, SkipFreezeOnSet: true}
	if s.CPUQuota != 0 {
		r.CpuQuota, r.CpuPeriod = s.CPUQuota, uint64(s.CPUPeriod)
	}
	if s.PIDs != 0 {
		r.PidsLimit = &s.PIDs
	}
	if s.HugePages != nil {
		for _, size := range t.info.HugePageSizes {
			r.HugetlbLimit = append(r.HugetlbLimit, &cgroups.HugepageLimit{Pagesize: size, Limit: s.HugePages[size]})
		}
	}
	if t.host.unified {
		r.CpuWeight, r.Unified = sharesToWeight(s.CPUShares), s.Unified
	} else {
		r.CpuShares = s.CPUShares
	}
	return r
}

// Pods lists the UIDs that have a cgroup in any hierarchy, of any class, for
// clean-up after a crash.
func (t *Tree) Pods() ([]string, error) {
	seen := map[string]bool{}
	var uids []string
	for _, parent := range t.podParents() {
		for _, dir := range t.host.places(parent.path(t.config.Driver)) {
			entries, err := os.ReadDir(dir)
			if err != nil && !errors.Is(err, os.ErrNotExist) {
				return nil, fmt.Errorf("list pod cgroups: %w", err)
			}
			for _, entry := range entries {
				uid, isPod := podUID(t.config.Driver, parent, entry.Name())
				if entry.IsDir() && isPod && !seen[uid] {
					seen[uid] = true
					uids = append(uids, uid)
				}
			}
		}
	}
	return uids, nil
}

func (t *Tree) podParents() []node {
	var parents []node
	if t.config.NoClasses {
		return nil
	}
	for _, class := range []v1.PodQOSClass{v1.PodQOSGuaranteed, v1.PodQOSBurstable, v1.PodQOSBestEffort} {
		parents = append(parents, classNode(t.pods, class))
	}
	return parents
}
