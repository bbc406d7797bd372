// Package dra has the devices of ResourceClaims made ready for pods: the
// kubelet's part of dynamic resource allocation (kubelet: cm/dra). Which devices
// a claim has is decided by the scheduler; a driver on this node prepares them and
// says, as CDI device IDs, what a container needs to use them.
//
//	dra.go         which claims pods of this node have
//	prepare.go     before a pod's sandbox
//	unprepare.go   after a pod's last container
//	container.go   what a container gets of its pod's claims, and who is told
//	checkpoint.go  the file with all that
//	drivers.go     registration of drivers, and calls to them
//	slices.go      ResourceSlices of drivers that are not there
//	health.go      what drivers say of their devices' health
//	metrics.go     the kubelet's metrics
//
// A pod's worker calls Prepare and Unprepare through agent/act, and pluginwatch
// registers drivers at Drivers. Claims are asked for one by one: a node may see
// those of its pods only.
package dra

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	resourcev1 "k8s.io/client-go/kubernetes/typed/resource/v1"
)

// Config is what Claims are made from.
type Config struct {
	// Dir is the kubelet's directory, where the state files are.
	Dir string
	// Node is the node's name.
	Node string
	// Client reads ResourceClaims and deletes ResourceSlices, as the node.
	Client resourcev1.ResourceV1Interface
	// HealthChanged is called with the pods whose devices became healthy or
	// unhealthy; nil: nobody wants to know. It must not block for long.
	HealthChanged func(podUIDs []string)
	// DriverCame is called when a driver can be called that could not before: pods
	// may have waited for it. nil: they find out by themselves.
	DriverCame func()
	Log        *slog.Logger
}

// Claims are the ResourceClaims of this node's pods. Its methods may be called
// concurrently. Run is called once.
type Claims struct {
	config  Config
	drivers *Drivers
	health  *health
	metrics *metrics

	// writing serialises changes of claims, the file included; mu is held for a
	// moment only.
	writing sync.Mutex
	mu      sync.Mutex
	// claims are by namespace/name. Neither the map nor what is in it is changed:
	// another takes its place.
	claims map[string]*claim
	// busy are claims that drivers are being asked about, by namespace/name; the
	// channel is closed when that is over.
	busy map[string]chan struct{}
}

// New reads the state file and starts nothing. A file that is damaged is an
// error, as with the kubelet: which devices drivers hold ready is known from
// nowhere else.
func New(config Config) (*Claims, error) {
	c := &Claims{config: config, metrics: newMetrics(), busy: map[string]chan struct{}{}}
	var err error
	if c.claims, err = load(c.file()); err != nil {
		return nil, fmt.Errorf("%s: %w; please drain this node and delete the file before restarting", c.file(), err)
	}
	c.health = newHealth(config.Dir, config.Log, c.devicesChanged)
	c.drivers = newDrivers(config, c.health, c.metrics)
	return c, nil
}

// Drivers are registered there.
func (c *Claims) Drivers() *Drivers { return c.drivers }

// Run watches over the drivers until ctx ends.
func (c *Claims) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return c.drivers.run(ctx) })
	group.Go(func() error { return c.health.run(ctx) })
	group.Go(func() error { return c.welcome(ctx) })
	return group.Wait()
}

// welcome tells of drivers that have come, until ctx ends.
func (c *Claims) welcome(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-c.drivers.came:
			if c.config.DriverCame != nil {
				c.config.DriverCame()
			}
		}
	}
}

// current are the claims as they are now.
func (c *Claims) current() map[string]*claim {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.claims
}

// change puts other claims in force once they are on disk. What edit does to its
// map is forgotten when that fails.
func (c *Claims) change(edit func(claims map[string]*claim)) error {
	c.writing.Lock()
	defer c.writing.Unlock()
	next := maps.Clone(c.current())
	edit(next)
	if err := save(c.file(), next); err != nil {
		return err
	}
	c.mu.Lock()
	c.claims = next
	c.mu.Unlock()
	return nil
}

// hold waits until nobody else has drivers asked about any of the claims, and
// keeps others from it until release is called: who lets go of a claim and who
// comes to it do not meet.
func (c *Claims) hold(ctx context.Context, keys []string) (release func(), err error) {
	for {
		wait := c.tryHold(keys)
		if wait == nil {
			return func() { c.release(keys) }, nil
		}
		select {
		case <-wait:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// tryHold is nil, or what to wait for.
func (c *Claims) tryHold(keys []string) (wait <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, key := range keys {
		if over, busy := c.busy[key]; busy {
			return over
		}
	}
	for _, key := range keys {
		c.busy[key] = make(chan struct{})
	}
	return nil
}

func (c *Claims) release(keys []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, key := range keys {
		close(c.busy[key])
		delete(c.busy, key)
	}
}

// of are the keys of the pod's claims in order.
func (c *Claims) of(podUID string) []string {
	var keys []string
	for key, info := range c.current() {
		if info.PodUIDs.Has(podUID) {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	return keys
}

// Holds tells whether the pod has claims that have to be unprepared. Until then
// neither its end may be told nor its object go (kubelet:
// PodMightNeedToUnprepareResources).
func (c *Claims) Holds(podUID string) bool { return len(c.of(podUID)) > 0 }

// Orphans lists the UIDs of all pods that hold claims: those that nobody knows
// any more went while no agent ran.
func (c *Claims) Orphans() ([]string, error) {
	uids := sets.New[string]()
	for _, info := range c.current() {
		uids = uids.Union(info.PodUIDs)
	}
	return sets.List(uids), nil
}

// devicesChanged tells whom the health of the driver's devices concerns.
func (c *Claims) devicesChanged(driver string, changed []deviceHealth) {
	pods := sets.New[string]()
	for _, info := range c.current() {
		if slices.ContainsFunc(info.DriverState[driver].Devices, func(d device) bool {
			return slices.ContainsFunc(changed, func(h deviceHealth) bool { return h.PoolName == d.PoolName && h.DeviceName == d.DeviceName })
		}) {
			pods = pods.Union(info.PodUIDs)
		}
	}
	if pods.Len() > 0 && c.config.HealthChanged != nil {
		c.config.HealthChanged(sets.List(pods))
	}
}

// podClaims are the claims that the pod's containers may refer to: those of its
// spec, and the one that the scheduler made for extended resources.
func podClaims(pod *v1.Pod) []v1.PodResourceClaim {
	extended := pod.Status.ExtendedResourceClaimStatus
	if extended == nil {
		return pod.Spec.ResourceClaims
	}
	return append(slices.Clip(pod.Spec.ResourceClaims), v1.PodResourceClaim{ResourceClaimName: &extended.ResourceClaimName})
}

func keyOf(namespace, name string) string { return namespace + "/" + name }
