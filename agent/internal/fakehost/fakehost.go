// Package fakehost is what the agent's parts need of a host beside a runtime
// (agent/internal/fakecri), in memory: volumes, cgroups, hooks, logs. Zero values are
// ready to use.
package fakehost

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/berth-io/berth/agent/qos"
	"github.com/berth-io/berth/csi/volume"
)

// Volumes is a volume manager without volumes.
type Volumes struct {
	mu    sync.Mutex
	up    map[string]bool // pod UIDs
	fail  error           // of SetUp
	hang  bool            // TearDown waits for its caller to leave
	setUp int
}

// SetUp remembers the pod.
func (v *Volumes) SetUp(_ context.Context, p volume.Pod) (map[string]volume.Mounted, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.setUp++
	v.mark(string(p.UID))
	return map[string]volume.Mounted{}, v.fail
}

// SubPath fails: there is nothing to have a path in.
func (v *Volumes) SubPath(context.Context, volume.Pod, string, int, volume.Mounted, string, bool) (string, error) {
	return "", errors.New("there are no volumes")
}

// CleanSubPaths has nothing to do.
func (v *Volumes) CleanSubPaths(context.Context, string, string) error { return nil }

// TearDown forgets the pod.
func (v *Volumes) TearDown(ctx context.Context, uid string) error {
	v.mu.Lock()
	hang := v.hang
	v.mu.Unlock()
	if hang {
		<-ctx.Done()
		return fmt.Errorf("unmount: has not returned: %w", context.Cause(ctx))
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	delete(v.up, uid)
	return nil
}

// Tries is how often SetUp was called.
func (v *Volumes) Tries() int {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.setUp
}

// UIDs lists the pods that have volumes; they are all Orphans knows of.
func (v *Volumes) UIDs() []string {
	v.mu.Lock()
	defer v.mu.Unlock()
	return slices.Sorted(maps.Keys(v.up))
}

// Orphans lists the pods that have volumes.
func (v *Volumes) Orphans() ([]string, error) { return v.UIDs(), nil }

// Leave is volumes that an agent before this one left.
func (v *Volumes) Leave(uid string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.mark(uid)
}

func (v *Volumes) mark(uid string) {
	if v.up == nil {
		v.up = map[string]bool{}
	}
	v.up[uid] = true
}

// Set makes SetUp fail, and TearDown hang until its caller leaves.
func (v *Volumes) Set(fail error, hang bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.fail, v.hang = fail, hang
}

// Cgroups is a cgroup tree without cgroups.
type Cgroups struct {
	// Note is told of each SetPod; nil: nobody is.
	Note func(format string, args ...any)

	mu   sync.Mutex
	made map[string]bool
	set  map[string]qos.Settings // by pod UID
}

// PodSettings are those of a pod on this node.
func (c *Cgroups) PodSettings(p *v1.Pod) qos.Settings { return qos.PodSettings(p, false, c.Node()) }

// SetPod changes the settings that are not zero.
func (c *Cgroups) SetPod(p *v1.Pod, s qos.Settings) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.set[string(p.UID)]
	now.CPUShares = cmp.Or(s.CPUShares, now.CPUShares)
	now.CPUQuota, now.CPUPeriod = cmp.Or(s.CPUQuota, now.CPUQuota), cmp.Or(s.CPUPeriod, now.CPUPeriod)
	now.MemoryBytes = cmp.Or(s.MemoryBytes, now.MemoryBytes)
	c.set[string(p.UID)] = now
	if c.Note != nil {
		c.Note("SetPod %s shares %d quota %d memory %d", p.Name, s.CPUShares, s.CPUQuota, s.MemoryBytes)
	}
	return nil
}

// Settings are what a pod's cgroup is set to.
func (c *Cgroups) Settings(uid string) qos.Settings {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.set[uid]
}

// EnsurePod remembers the pod.
func (c *Cgroups) EnsurePod(p *v1.Pod) (string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mark(string(p.UID))
	c.set[string(p.UID)] = c.PodSettings(p)
	return c.PodParent(p)
}

// PodParent is the pod's cgroup, whether it is there or not.
func (c *Cgroups) PodParent(p *v1.Pod) (string, error) { return "/kubepods/pod" + string(p.UID), nil }

// RemovePod forgets the pod.
func (c *Cgroups) RemovePod(_ context.Context, uid string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.made, uid)
	delete(c.set, uid)
	return nil
}

// UIDs lists the pods that have a cgroup.
func (c *Cgroups) UIDs() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Sorted(maps.Keys(c.made))
}

// Orphans lists the pods that have a cgroup.
func (c *Cgroups) Orphans() ([]string, error) { return c.UIDs(), nil }

// Leave is a cgroup that an agent before this one left.
func (c *Cgroups) Leave(uid string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mark(uid)
}

func (c *Cgroups) mark(uid string) {
	if c.made == nil {
		c.made, c.set = map[string]bool{}, map[string]qos.Settings{}
	}
	c.made[uid] = true
}

// Node is a node without limits.
func (c *Cgroups) Node() qos.NodeInfo { return qos.NodeInfo{} }

// Hooks runs handlers that take as long as their command says, or fail.
type Hooks struct {
	mu  sync.Mutex
	ran []string
}

// Run waits as long as the command says; the command "fail" fails.
func (h *Hooks) Run(ctx context.Context, _ *v1.Pod, c *v1.Container, handler *v1.LifecycleHandler, _, _ string) (string, error) {
	command := handler.Exec.Command[0]
	h.mu.Lock()
	h.ran = append(h.ran, c.Name+" "+command)
	h.mu.Unlock()
	if command == "fail" {
		return "", errors.New("exited with 1")
	}
	d, err := time.ParseDuration(command)
	if err != nil {
		return "", err
	}
	select {
	case <-time.After(d):
		return "", nil
	case <-ctx.Done():
		return "", ctx.Err()
	}
}

// Ran lists "CONTAINER COMMAND" of all hooks so far.
func (h *Hooks) Ran() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.ran)
}

// NoObjects is an API without objects.
type NoObjects struct{}

// ConfigMap finds nothing.
func (NoObjects) ConfigMap(_ context.Context, _ *v1.Pod, name string) (*v1.ConfigMap, error) {
	return nil, volume.NotFound("configmap", name)
}

// Secret finds nothing.
func (NoObjects) Secret(_ context.Context, _ *v1.Pod, name string) (*v1.Secret, error) {
	return nil, volume.NotFound("secret", name)
}

// Claim finds nothing.
func (NoObjects) Claim(_ context.Context, _ *v1.Pod, name string) (string, bool, error) {
	return "", false, volume.NotFound("persistentvolumeclaim", name)
}

// Token finds no service account.
func (NoObjects) Token(_ context.Context, pod *v1.Pod, _ *v1.ServiceAccountTokenProjection) (string, error) {
	return "", volume.NotFound("serviceaccount", pod.Spec.ServiceAccountName)
}

// TrustBundle finds nothing.
func (NoObjects) TrustBundle(context.Context, *v1.Pod, *v1.ClusterTrustBundleProjection) ([]byte, error) {
	return nil, volume.ErrNotFound
}

// Logs has logs that were never rotated.
type Logs struct{}

// Remove removes the log.
func (Logs) Remove(_ context.Context, log string) error { return os.RemoveAll(log) }
