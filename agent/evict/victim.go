package evict

import (
	"fmt"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
	apiresource "k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/component-helpers/resource"

	"github.com/berth-io/berth/agent/disruption"
	"github.com/berth-io/berth/agent/usage"
)

// Evicted is the reason in the status of evicted pods, and of the event.
const Evicted = "Evicted"

// graceNow, in seconds, is what a pod is left when there is no time.
const graceNow = 1

// Limits that a pod can exceed, as the kubelet's metric evictions labels them.
const (
	emptyDirLimit  = "emptydirfs.limit"
	podLimit       = "ephemeralpodfs.limit"
	containerLimit = "ephemeralcontainerfs.limit"
)

// Victim is a pod that must end.
type Victim struct {
	Pod *v1.Pod
	// Signal is the label of the kubelet's metric evictions.
	Signal string
	Stop   disruption.Stop
}

// Victim chooses one pod to end for the most urgent of the thresholds that are
// due. Those that are spared are never chosen; found is false when there are no
// others.
func (p Policy) Victim(due []Threshold, o Observations, pods []*v1.Pod, used Usage) (v Victim, found bool) {
	if len(due) == 0 {
		return Victim{}, false
	}
	t := due[0]
	for _, pod := range p.rank(t.Signal, pods, used) {
		if p.spared(pod) {
			continue
		}
		grace := int64(graceNow)
		if !t.hard() {
			grace = p.maxGrace
			if own := pod.Spec.TerminationGracePeriodSeconds; own != nil {
				grace = min(grace, *own)
			}
		}
		u, known := used[pod.UID]
		message, annotations := lowMessage(t.Signal, due, o, pod, u, known)
		return Victim{Pod: pod, Signal: string(t.Signal), Stop: disruption.Stop{
			Reason: Evicted, Message: message, Grace: &grace,
			Conditions: []v1.PodCondition{disruption.Target(pod, message)},
			Event:      &disruption.Event{Reason: Evicted, Message: message, Annotations: annotations},
		}}, true
	}
	return Victim{}, false
}

// lowMessage says what was short and who took more of it than it asked for
// (evictionMessage). The annotations say it to programs.
func lowMessage(s Signal, due []Threshold, o Observations, pod *v1.Pod, u usage.Pod, known bool) (string, map[string]string) {
	what := meanings[s].resource
	var b strings.Builder
	fmt.Fprintf(&b, "The node was low on resource: %v. ", what)
	if quantity, available, found := shortage(what, due, o); found {
		fmt.Fprintf(&b, "Threshold quantity: %v, available: %v. ", quantity, available)
	}
	annotations := map[string]string{}
	if !known {
		return b.String(), annotations
	}
	if what == v1.ResourceMemory && resource.IsPodLevelResourcesSet(pod) {
		if q, found := pod.Spec.Resources.Requests[what]; found {
			used := write(what, int64(u.WorkingSet))
			fmt.Fprintf(&b, "Pod %s was using %s, request is %s, has larger consumption of %v. ", pod.Name, used, q.String(), what)
			annotations["offending_pod"], annotations["offending_pod_usage"] = pod.Name, used
		}
	}
	var names, amounts []string
	for _, c := range slices.Concat(pod.Spec.Containers, pod.Spec.InitContainers) {
		used, found := containerConsumption(what, c.Name, u)
		request := c.Resources.Requests[what]
		if !found || used <= request.Value() {
			continue
		}
		fmt.Fprintf(&b, "Container %s was using %s, request is %s, has larger consumption of %v. ", c.Name, write(what, used), request.String(), what)
		names, amounts = append(names, c.Name), append(amounts, write(what, used))
	}
	annotations["offending_containers"] = strings.Join(names, ",")
	annotations["offending_containers_usage"] = strings.Join(amounts, ",")
	annotations["starved_resource"] = string(what)
	return b.String(), annotations
}

// shortage is of the first threshold for that resource.
func shortage(what v1.ResourceName, due []Threshold, o Observations) (quantity, available string, found bool) {
	for _, t := range due {
		seen, observed := o[t.Signal]
		if meanings[t.Signal].resource != what || !observed {
			continue
		}
		quantity = t.Value.Text
		if t.Value.Fraction > 0 {
			quantity = write(v1.ResourceMemory, t.Value.of(seen.Capacity)) // the kubelet writes pieces so too
		}
		return quantity, write(what, seen.Available), true
	}
	return "", "", false
}

// containerConsumption is what the message compares with the request.
func containerConsumption(what v1.ResourceName, name string, u usage.Pod) (amount int64, known bool) {
	i := slices.IndexFunc(u.Containers, func(c usage.Container) bool { return c.Name == name })
	if i < 0 {
		return 0, false
	}
	c := u.Containers[i]
	switch what {
	case v1.ResourceMemory:
		return int64(c.WorkingSet), true
	case v1.ResourceEphemeralStorage:
		if c.Rootfs != nil && c.Logs != nil {
			return int64(c.Rootfs.Plus(*c.Logs).Bytes), true
		}
	}
	return 0, false
}

// Limited tells whether the pod has a limit on local storage.
func Limited(pod *v1.Pod) bool {
	if _, found := podStorageLimit(pod); found {
		return true
	}
	return slices.ContainsFunc(pod.Spec.Volumes, func(v v1.Volume) bool { return sizeLimit(v) != nil })
}

// Overstepped returns the pods that take more local storage than they may, those
// that are spared apart (localStorageEviction). Whoever cannot be measured is
// let be.
func (p Policy) Overstepped(pods []*v1.Pod, used Usage) []Victim {
	var victims []Victim
	for _, pod := range pods {
		u, known := used[pod.UID]
		if !known || p.spared(pod) {
			continue
		}
		signal, message := p.overstep(pod, u)
		if signal == "" {
			continue
		}
		grace := int64(graceNow)
		victims = append(victims, Victim{Pod: pod, Signal: signal, Stop: disruption.Stop{
			Reason: Evicted, Message: message, Grace: &grace,
			Event: &disruption.Event{Reason: Evicted, Message: message},
		}})
	}
	return victims
}

func (p Policy) overstep(pod *v1.Pod, u usage.Pod) (signal, message string) {
	for _, v := range pod.Spec.Volumes {
		limit := sizeLimit(v)
		if in, measured := u.Volumes[v.Name]; measured && limit != nil && int64(in.Bytes) > limit.Value() {
			return emptyDirLimit, fmt.Sprintf("Usage of EmptyDir volume %q exceeds the limit %q. ", v.Name, limit.String())
		}
	}
	if limit, found := podStorageLimit(pod); found && int64(u.EphemeralStorage().Bytes) > limit.Value() {
		return podLimit, fmt.Sprintf("Pod ephemeral local storage usage exceeds the total limit of containers %s. ", limit.String())
	}
	for _, c := range pod.Spec.Containers {
		limit := c.Resources.Limits.StorageEphemeral()
		if limit.IsZero() {
			continue
		}
		if used, measured := p.onNode(c.Name, u); measured && int64(used) > limit.Value() {
			return containerLimit, fmt.Sprintf("Container %s exceeded its local ephemeral storage limit %q. ", c.Name, limit.String())
		}
	}
	return "", ""
}

// onNode is what a container takes of the node's file system: its writable
// layer only where that is not apart.
func (p Policy) onNode(container string, u usage.Pod) (bytes uint64, measured bool) {
	for _, c := range u.Containers {
		if c.Name != container {
			continue
		}
		var d usage.Disk
		if c.Logs != nil {
			d = d.Plus(*c.Logs)
		}
		if c.Rootfs != nil && p.layout == usage.Single {
			d = d.Plus(*c.Rootfs)
		}
		return d.Bytes, true
	}
	return 0, false
}

func sizeLimit(v v1.Volume) *apiresource.Quantity {
	if v.EmptyDir == nil || v.EmptyDir.SizeLimit == nil || v.EmptyDir.SizeLimit.Sign() <= 0 {
		return nil
	}
	return v.EmptyDir.SizeLimit
}

// podStorageLimit is the sum of the containers' limits.
func podStorageLimit(pod *v1.Pod) (apiresource.Quantity, bool) {
	limit, found := resource.PodLimits(pod, resource.PodResourcesOptions{})[v1.ResourceEphemeralStorage]
	return limit, found
}
