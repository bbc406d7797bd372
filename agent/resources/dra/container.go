package dra

import (
	"fmt"
	"maps"
	"slices"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/sets"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/dynamic-resource-allocation/resourceclaim"
)

// CDIDevices are what the container needs of its pod's claims: of those that it
// refers to, or of some of their requests, and of the claim for its extended
// resources (kubelet: cm/dra/manager.go, GetResources).
func (c *Claims) CDIDevices(pod *v1.Pod, container *v1.Container) ([]*runtimeapi.CDIDevice, error) {
	uses, err := usesOf(pod, container)
	if err != nil {
		return nil, err
	}
	known := c.current()
	var devices []*runtimeapi.CDIDevice
	seen := sets.New[string]()
	for _, use := range uses {
		info := known[keyOf(pod.Namespace, use.claim)]
		if info == nil {
			return nil, fmt.Errorf("internal error: unable to get claim info for ResourceClaim %s in namespace %s", use.claim, pod.Namespace)
		}
		for _, request := range use.requests {
			for _, d := range info.devices() {
				if request != "" && len(d.RequestNames) > 0 && !slices.Contains(d.RequestNames, request) {
					continue
				}
				for _, id := range d.CDIDeviceIDs {
					if !seen.Has(id) {
						seen.Insert(id)
						devices = append(devices, &runtimeapi.CDIDevice{Name: id})
					}
				}
			}
		}
	}
	return devices, nil
}

// use is a claim that a container uses, and which of its requests: "" is all.
type use struct {
	claim    string
	requests []string
}

func usesOf(pod *v1.Pod, container *v1.Container) ([]use, error) {
	var uses []use
	for i := range pod.Spec.ResourceClaims {
		podClaim := &pod.Spec.ResourceClaims[i]
		var requests []string
		for _, r := range container.Resources.Claims {
			if r.Name == podClaim.Name {
				requests = append(requests, r.Request)
			}
		}
		if len(requests) == 0 {
			continue
		}
		name, _, err := resourceclaim.Name(pod, podClaim)
		if err != nil {
			return nil, err
		}
		if name != nil { // none was needed
			uses = append(uses, use{*name, requests})
		}
	}
	if extended := pod.Status.ExtendedResourceClaimStatus; extended != nil {
		var requests []string
		for _, m := range extended.RequestMappings {
			amount := container.Resources.Requests[v1.ResourceName(m.ResourceName)]
			if m.ContainerName == container.Name && !amount.IsZero() {
				requests = append(requests, m.RequestName)
			}
		}
		if len(requests) > 0 {
			uses = append(uses, use{extended.ResourceClaimName, requests})
		}
	}
	return uses, nil
}

// driverDevice is a device with the name of its driver.
type driverDevice struct {
	driver string
	device
}

// devices are in the order of the drivers' names.
func (i *claim) devices() []driverDevice {
	var all []driverDevice
	for _, driver := range slices.Sorted(maps.Keys(i.DriverState)) {
		for _, d := range i.DriverState[driver].Devices {
			all = append(all, driverDevice{driver, d})
		}
	}
	return all
}

// Claim is a claim that a container uses, with all its devices.
type Claim struct {
	Namespace, Name string
	Devices         []Device
}

// Device is a device of a claim. ShareID is nil unless others share it.
type Device struct {
	Driver, Pool, Name string
	ShareID            *types.UID
	CDIDeviceIDs       []string
}

// Of are the container's claims, whichever of their requests it uses. One that is
// not prepared is an error.
func (c *Claims) Of(pod *v1.Pod, container *v1.Container) ([]Claim, error) {
	uses, err := usesOf(pod, container)
	if err != nil {
		return nil, err
	}
	known := c.current()
	var claims []Claim
	for _, use := range uses {
		info := known[keyOf(pod.Namespace, use.claim)]
		if info == nil {
			return nil, fmt.Errorf("unable to get information for ResourceClaim %s", use.claim)
		}
		to := Claim{Namespace: info.Namespace, Name: info.ClaimName}
		for _, d := range info.devices() {
			to.Devices = append(to.Devices, Device{Driver: d.driver, Pool: d.PoolName, Name: d.DeviceName, ShareID: d.ShareID, CDIDeviceIDs: d.CDIDeviceIDs})
		}
		claims = append(claims, to)
	}
	return claims, nil
}

// Health is the part of the container status's allocatedResourcesStatus that is
// about claims. It has the pod's containers proper only (kubelet:
// cm/dra/manager.go, UpdateAllocatedResourcesStatus).
func (c *Claims) Health(pod *v1.Pod, containerName string) []v1.ResourceStatus {
	at := slices.IndexFunc(pod.Spec.Containers, func(c v1.Container) bool { return c.Name == containerName })
	if at < 0 {
		return nil
	}
	known := c.current()
	var all []v1.ResourceStatus
	for _, ref := range pod.Spec.Containers[at].Resources.Claims {
		info := known[keyOf(pod.Namespace, claimNameOf(pod, ref.Name))]
		if info == nil {
			continue
		}
		name := "claim:" + ref.Name
		if ref.Request != "" {
			name += "/" + ref.Request
		}
		if list := c.healthOf(info, ref.Request); len(list) > 0 {
			all = append(all, v1.ResourceStatus{Name: v1.ResourceName(name), Resources: list})
		}
	}
	return all
}

// claimNameOf is empty where there is no claim, or none yet.
func claimNameOf(pod *v1.Pod, podClaim string) string {
	for i := range pod.Spec.ResourceClaims {
		if pod.Spec.ResourceClaims[i].Name == podClaim {
			if name, _, err := resourceclaim.Name(pod, &pod.Spec.ResourceClaims[i]); err == nil && name != nil {
				return *name
			}
		}
	}
	return ""
}

func (c *Claims) healthOf(info *claim, request string) []v1.ResourceHealth {
	var list []v1.ResourceHealth
	for _, d := range info.devices() {
		if request != "" && len(d.RequestNames) > 0 && !slices.Contains(d.RequestNames, resourceclaim.BaseRequestRef(request)) {
			continue
		}
		id := d.driver + "/" + d.PoolName + "/" + d.DeviceName
		if len(d.CDIDeviceIDs) > 0 {
			id = d.CDIDeviceIDs[0]
		}
		if slices.ContainsFunc(list, func(h v1.ResourceHealth) bool { return h.ResourceID == v1.ResourceID(id) }) {
			continue
		}
		h := v1.ResourceHealth{ResourceID: v1.ResourceID(id)}
		h.Health, h.Message = c.health.of(d.driver, d.PoolName, d.DeviceName)
		list = append(list, h)
	}
	return list
}
