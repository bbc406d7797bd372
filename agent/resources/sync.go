package resources

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"google.golang.org/grpc"
	v1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	// resync is how often running containers are looked at although nothing has
	// told that their CPUs are others (cpuManagerReconcilePeriod's default).
	resync = 10 * time.Second
	// updateTimeout bounds one call of the runtime.
	updateTimeout = 2 * time.Minute
)

// Runtime is the part of the CRI that a running container's CPUs are changed with.
type Runtime interface {
	UpdateContainerResources(context.Context, *runtimeapi.UpdateContainerResourcesRequest, ...grpc.CallOption) (*runtimeapi.UpdateContainerResourcesResponse, error)
}

// Running is a container that runs.
type Running struct{ ID, PodUID, Name string }

// World is what Run needs to know of the node.
type World struct {
	// Pods are all that hold resources, as for Admit. Nil: they are not known
	// yet, and nothing is taken back.
	Pods    []*v1.Pod
	Running []Running

	// admissions is how many there had been before anybody looked; nil: it does
	// not matter.
	admissions *uint64
}

// Poke makes Run look at the node at once: a container was started, or a pod has
// gone. It never blocks.
func (a *Allocator) Poke() {
	select {
	case a.poke <- struct{}{}:
	default:
	}
}

// Run keeps running containers on their CPUs until ctx ends. With policies that
// give nobody anything to himself it only waits.
func (a *Allocator) Run(ctx context.Context, look func() World) error {
	if a.cpus == nil && a.memory == nil {
		<-ctx.Done()
		return nil
	}
	tick := time.NewTicker(resync)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-a.poke:
		}
		before := a.admissions.Load()
		world := look()
		world.admissions = &before
		if err := a.Sync(ctx, world); err != nil && ctx.Err() == nil {
			a.config.Log.Warn("containers are not all on the CPUs that they should be on; it is tried again", "error", err)
		}
	}
}

// Sync takes back what pods had that are gone, and brings each container that
// runs to its CPUs: those that all share become fewer when a pod gets some to
// itself, and more when it ends. It is level driven and may be called at any time.
func (a *Allocator) Sync(ctx context.Context, w World) error {
	a.syncing.Lock()
	defer a.syncing.Unlock()
	if err := a.takeBack(w); err != nil {
		return err
	}
	if a.cpus == nil {
		return nil
	}
	state, _ := a.states()
	var failed []error
	seen := map[string]bool{}
	for _, c := range w.Running {
		seen[c.ID] = true
		want := state.Of(c.PodUID, c.Name).String()
		if want == "" || a.applied[c.ID] == want {
			continue
		}
		if err := a.update(ctx, c.ID, want); err != nil {
			failed = append(failed, fmt.Errorf("container %s of pod %s: %w", c.Name, c.PodUID, err))
			continue
		}
		a.applied[c.ID] = want
	}
	for id := range a.applied {
		if !seen[id] {
			delete(a.applied, id)
		}
	}
	return errors.Join(failed...)
}

func (a *Allocator) update(ctx context.Context, id, cpus string) error {
	ctx, cancel := context.WithTimeout(ctx, updateTimeout)
	defer cancel()
	_, err := a.runtime.UpdateContainerResources(ctx, &runtimeapi.UpdateContainerResourcesRequest{
		ContainerId: id, Linux: &runtimeapi.LinuxContainerResources{CpusetCpus: cpus}})
	return err
}

// takeBack releases what pods had that are gone, and the memory of init
// containers once a later container of their pod runs.
func (a *Allocator) takeBack(w World) error {
	if w.Pods == nil {
		return nil
	}
	a.deciding.Lock()
	defer a.deciding.Unlock()
	if w.admissions != nil && *w.admissions != a.admissions.Load() {
		a.Poke() // a pod that was admitted since is not among them
		return nil
	}
	if err := a.keep(w.Pods); err != nil {
		return err
	}
	if a.memory == nil {
		return nil
	}
	d := a.draft()
	for _, pod := range w.Pods {
		for _, name := range endedInit(pod, w.Running) {
			d.memory.Release(string(pod.UID), name)
		}
	}
	return a.commit(d)
}

// endedInit are the init containers before the last container that runs, but
// for sidecars and those that run.
func endedInit(pod *v1.Pod, running []Running) []string {
	var ended, before []string
	for _, c := range containers(pod) {
		if slices.ContainsFunc(running, func(r Running) bool { return r.PodUID == string(pod.UID) && r.Name == c.Name }) {
			ended = slices.Clone(before)
			continue
		}
		isSidecar := c.RestartPolicy != nil && *c.RestartPolicy == v1.ContainerRestartPolicyAlways
		if !isSidecar && slices.ContainsFunc(pod.Spec.InitContainers, func(i v1.Container) bool { return i.Name == c.Name }) {
			before = append(before, c.Name)
		}
	}
	return ended
}
