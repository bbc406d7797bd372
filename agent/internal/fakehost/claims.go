package fakehost

import (
	"context"
	"sync"

	v1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Claims gives every pod that has a ResourceClaim a device of its name.
type Claims struct {
	mu   sync.Mutex
	held map[string]bool // pod UIDs
	fail error           // of Prepare and Unprepare
}

// Set makes Prepare and Unprepare fail.
func (c *Claims) Set(fail error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fail = fail
}

// Prepare remembers the pod, whether it works or not.
func (c *Claims) Prepare(_ context.Context, pod *v1.Pod) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(pod.Spec.ResourceClaims) == 0 {
		return nil
	}
	if c.held == nil {
		c.held = map[string]bool{}
	}
	c.held[string(pod.UID)] = true
	return c.fail
}

// Unprepare forgets the pod.
func (c *Claims) Unprepare(_ context.Context, uid string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.held[uid] {
		return nil
	}
	if c.fail == nil {
		delete(c.held, uid)
	}
	return c.fail
}

// Holds tells whether the pod was prepared and not unprepared.
func (c *Claims) Holds(uid string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.held[uid]
}

// CDIDevices is one of the pod's name.
func (c *Claims) CDIDevices(pod *v1.Pod, _ *v1.Container) ([]*runtimeapi.CDIDevice, error) {
	if !c.Holds(string(pod.UID)) {
		return nil, nil
	}
	return []*runtimeapi.CDIDevice{{Name: "example.com/gpu=" + pod.Name}}, nil
}
