package plan

import (
	"slices"

	v1 "k8s.io/api/core/v1"

	"github.com/berth-io/berth/agent/observed"
)

// Stop decides for a pod that shall stop. All containers are killed in one
// decision; a sidecar gets its signal only after the containers and the
// sidecars that were started after it have ended, so that they can use it to
// the last. Complete means that nothing of the pod runs and its sandboxes are
// stopped.
func Stop(pod *v1.Pod, obs *observed.Pod, reason, message string) Decision {
	var d Decision
	var later []string // IDs of running containers that must end first
	kill := func(c *observed.Container, after []string) {
		d.act(KillContainer{ID: c.ID, Name: c.Name, Reason: reason, Message: message, After: slices.Clone(after)})
	}
	sidecars := sidecarNames(pod)
	for i := range obs.Containers {
		c := &obs.Containers[i]
		if runs(c) && !slices.Contains(sidecars, c.Name) {
			kill(c, nil)
			later = append(later, c.ID)
		}
	}
	for _, name := range slices.Backward(sidecars) {
		for i := range obs.Containers {
			if c := &obs.Containers[i]; c.Name == name && runs(c) {
				kill(c, later)
				later = append(later, c.ID)
			}
		}
	}
	if len(d.Actions) > 0 {
		return d
	}
	for _, s := range obs.Sandboxes {
		if s.Ready {
			d.act(StopSandbox{ID: s.ID})
		}
	}
	d.Complete = len(d.Actions) == 0
	return d
}

// Remove decides for a pod that nobody wants any more: nothing of it stays.
func Remove(obs *observed.Pod) Decision {
	var d Decision
	for i := range obs.Containers {
		d.act(RemoveContainer{ID: obs.Containers[i].ID, Name: obs.Containers[i].Name})
	}
	for _, s := range obs.Sandboxes {
		d.act(RemoveSandbox{ID: s.ID})
	}
	d.Complete = len(d.Actions) == 0
	return d
}

func runs(c *observed.Container) bool {
	return c.State == observed.Running || c.State == observed.Unknown
}

// sidecarNames lists the restartable init containers in the order they start.
// A pod known only from the runtime has no spec: then none is special.
func sidecarNames(pod *v1.Pod) []string {
	var names []string
	if pod == nil {
		return nil
	}
	for i := range pod.Spec.InitContainers {
		if c := &pod.Spec.InitContainers[i]; Sidecar(c) {
			names = append(names, c.Name)
		}
	}
	return names
}
