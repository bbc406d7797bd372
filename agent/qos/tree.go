package qos

import (
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"

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
	// CPUs and MemoryBytes are what all pods together may use; zero leaves
	// kubepods without that setting. MemoryBytes is also the node's memory that
	// oom_score_adj is reckoned from.
	CPUs        int
	MemoryBytes int64
}

// Tree makes, sets and removes the cgroups of pods and their classes. Its
// methods may be called concurrently, for one pod by one caller at a time.
type Tree struct {
	config Config
	host   hierarchies
	info   NodeInfo
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
	t := &Tree{config: config, host: host, pods: root.child(podsLevel)}
	t.info = NodeInfo{MemoryBytes: config.MemoryBytes, CgroupV2: host.unified}
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
	all := settings{memory: t.config.MemoryBytes}
	if t.config.CPUs > 0 {
		all.shares = milliToShares(int64(t.config.CPUs) * milliPerCPU)
	}
	if err := t.ensure(t.pods, all); err != nil {
		return err
	}
	// The shares of the burstable level are left as they are: they follow from
	// the pods, which RefreshClasses is told.
	if err := t.ensure(classNode(t.pods, v1.PodQOSBurstable), settings{}); err != nil {
		return err
	}
	return t.ensure(classNode(t.pods, v1.PodQOSBestEffort), settings{shares: minShares})
}

// EnsurePod makes the pod's cgroup and writes its settings, which is the
// pod's cgroup_parent for the runtime: the absolute path below each hierarchy's
// mount point. Ensure must have succeeded before. It may be repeated.
func (t *Tree) EnsurePod(pod *v1.Pod) (cgroupParent string, err error) {
	if err := checkLevel(string(pod.UID)); err != nil {
		return "", fmt.Errorf("pod UID: %w", err)
	}
	n := classNode(t.pods, Class(pod)).child(podPrefix + string(pod.UID))
	if err := t.ensure(n, podSettings(pod)); err != nil {
		return "", err
	}
	return n.path(t.config.Driver), nil
}

// RefreshClasses weighs the burstable level by what its pods request. Pods are
// all pods that have a cgroup or are about to get one.
func (t *Tree) RefreshClasses(pods []*v1.Pod) error {
	n := classNode(t.pods, v1.PodQOSBurstable)
	return t.set(n, settings{shares: burstableShares(pods)})
}

func (t *Tree) ensure(n node, s settings) error {
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

func (t *Tree) set(n node, s settings) error {
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
func (t *Tree) manager(n node, s settings) (cgroups.Manager, error) {
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

func (t *Tree) resources(s settings) *cgroups.Resources {
	r := &cgroups.Resources{Memory: s.memory, SkipDevices: true, SkipFreezeOnSet: true}
	if s.quota != 0 {
		r.CpuQuota, r.CpuPeriod = s.quota, quotaPeriod
	}
	if t.host.unified {
		r.CpuWeight = sharesToWeight(s.shares)
	} else {
		r.CpuShares = s.shares
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
	for _, class := range []v1.PodQOSClass{v1.PodQOSGuaranteed, v1.PodQOSBurstable, v1.PodQOSBestEffort} {
		parents = append(parents, classNode(t.pods, class))
	}
	return parents
}
