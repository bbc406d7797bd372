package manifest

import (
	"fmt"
	"strings"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	resourcehelper "k8s.io/component-helpers/resource"
)

func validateResources(r *v1.ResourceRequirements, path *field.Path) field.ErrorList {
	errs := validateResourceList(r.Limits, path.Child("limits"))
	own := v1.ResourceList{} // without those defaulted from a limit: its faults are said once
	for name, q := range r.Requests {
		if limit, ok := r.Limits[name]; !ok || q.Cmp(limit) != 0 {
			own[name] = q
		}
	}
	errs = append(errs, validateResourceList(own, path.Child("requests"))...)
	errs = append(errs, validateRequestsWithin(r, path)...)
	if len(r.Claims) > 0 {
		errs = append(errs, field.Forbidden(path.Child("claims"), unsupported))
	}
	return errs
}

func validateResourceList(list v1.ResourceList, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	for name, q := range list {
		at := path.Key(string(name))
		errs = append(errs, validateResourceName(name, at)...)
		if q.Sign() < 0 {
			errs = append(errs, field.Invalid(at, q.String(), "must be greater than or equal to 0"))
		} else if !overcommits(name) && q.MilliValue()%1000 != 0 {
			errs = append(errs, field.Invalid(at, q.String(), "must be an integer"))
		} else if size, err := resource.ParseQuantity(pageSize(name)); err == nil && size.Sign() > 0 && q.Value()%size.Value() != 0 {
			errs = append(errs, field.Invalid(at, q.String(), fmt.Sprintf("is not positive integer multiple of %s", name)))
		}
	}
	return errs
}

func validateResourceName(name v1.ResourceName, path *field.Path) field.ErrorList {
	if strings.Contains(string(name), "/") {
		// Extended resources: they come from device plugins; whether the node
		// has any is for admission to say.
		return invalidWith(validation.IsQualifiedName(string(name)), path, name)
	}
	switch name {
	case v1.ResourceCPU, v1.ResourceMemory, v1.ResourceEphemeralStorage:
		return nil
	}
	if size, err := resource.ParseQuantity(pageSize(name)); err == nil && size.Sign() > 0 && size.MilliValue()%1000 == 0 {
		return nil
	}
	return field.ErrorList{field.Invalid(path, name, "must be a standard resource for containers (cpu, memory, ephemeral-storage, hugepages-SIZE)")}
}

// pageSize is that of huge pages; empty: the resource is another.
func pageSize(name v1.ResourceName) string {
	size, _ := strings.CutPrefix(string(name), v1.ResourceHugePagesPrefix)
	if size == string(name) {
		return ""
	}
	return size
}

// overcommits: of these a container may get less than its limit.
func overcommits(name v1.ResourceName) bool {
	return name == v1.ResourceCPU || name == v1.ResourceMemory || name == v1.ResourceEphemeralStorage
}

func validateRequestsWithin(r *v1.ResourceRequirements, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	hugePages, compute := false, false
	for name := range r.Limits {
		hugePages = hugePages || strings.HasPrefix(string(name), v1.ResourceHugePagesPrefix)
		compute = compute || name == v1.ResourceCPU || name == v1.ResourceMemory
	}
	for name, q := range r.Requests {
		compute = compute || name == v1.ResourceCPU || name == v1.ResourceMemory
		at := path.Child("requests").Key(string(name))
		limit, ok := r.Limits[name]
		switch {
		case !ok && !overcommits(name):
			errs = append(errs, field.Required(path.Child("limits").Key(string(name)), "Limit must be set for non overcommitable resources"))
		case ok && !overcommits(name) && q.Cmp(limit) != 0:
			errs = append(errs, field.Invalid(at, q.String(), fmt.Sprintf("must be equal to %s limit of %s", name, limit.String())))
		case ok && q.Cmp(limit) > 0:
			errs = append(errs, field.Invalid(at, q.String(), fmt.Sprintf("must be less than or equal to %s limit of %s", name, limit.String())))
		}
	}
	if hugePages && !compute {
		errs = append(errs, field.Forbidden(path, "HugePages require cpu or memory"))
	}
	return errs
}

// validatePodResources checks resources of the pod as a whole: they must hold
// what its containers ask for together.
func validatePodResources(pod *v1.Pod, spec *field.Path) field.ErrorList {
	r := pod.Spec.Resources
	if r == nil {
		return nil
	}
	path := spec.Child("resources")
	errs := validateResources(r, path)
	for _, list := range []struct {
		name      string
		resources v1.ResourceList
	}{{"limits", r.Limits}, {"requests", r.Requests}} {
		for name := range list.resources {
			if !resourcehelper.IsSupportedPodLevelResource(name) {
				errs = append(errs, field.Invalid(path.Child(list.name).Key(string(name)), name, "not a resource a pod as a whole can have"))
			}
		}
	}
	for name, sum := range resourcehelper.AggregateContainerRequests(pod, resourcehelper.PodResourcesOptions{}) {
		if q, ok := r.Requests[name]; ok && sum.Cmp(q) > 0 {
			errs = append(errs, field.Invalid(path.Child("requests").Key(string(name)), q.String(),
				fmt.Sprintf("must be greater than or equal to aggregate container requests of %s", sum.String())))
		}
	}
	// Of huge pages a container has its limit, whatever the others use.
	for name, sum := range resourcehelper.AggregateContainerLimits(pod, resourcehelper.PodResourcesOptions{}) {
		if q, ok := r.Limits[name]; ok && pageSize(name) != "" && sum.Cmp(q) > 0 {
			errs = append(errs, field.Invalid(path.Child("limits").Key(string(name)), q.String(),
				fmt.Sprintf("must be greater than or equal to aggregate container limits of %s", sum.String())))
		}
	}
	for i, c := range pod.Spec.Containers {
		for name, q := range c.Resources.Limits {
			if limit, ok := r.Limits[name]; ok && q.Cmp(limit) > 0 {
				errs = append(errs, field.Invalid(spec.Child("containers").Index(i).Child("resources", "limits").Key(string(name)), q.String(),
					fmt.Sprintf("must be less than or equal to pod limits of %s", limit.String())))
			}
		}
	}
	return errs
}

// setPodResourceDefaults fills in requests of the pod as a whole where it has
// limits: what its containers request together, else the limit.
func setPodResourceDefaults(pod *v1.Pod) {
	r := pod.Spec.Resources
	if r == nil || len(r.Limits) == 0 {
		return
	}
	requests := v1.ResourceList{}
	for name, sum := range resourcehelper.AggregateContainerRequests(pod, resourcehelper.PodResourcesOptions{}) {
		if resourcehelper.IsSupportedPodLevelResource(name) && overcommits(name) {
			requests[name] = sum.DeepCopy()
		}
	}
	for name, limit := range r.Limits {
		if _, ok := requests[name]; !ok && resourcehelper.IsSupportedPodLevelResource(name) {
			requests[name] = limit.DeepCopy()
		}
	}
	for name, q := range r.Requests {
		requests[name] = q
	}
	r.Requests = requests
}
