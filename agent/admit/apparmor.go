package admit

import (
	"fmt"
	"strings"

	v1 "k8s.io/api/core/v1"
)

// checkAppArmor rejects a pod whose profile could not be enforced
// (pkg/security/apparmor). Whether a profile is loaded shows when a container
// is created.
func (c *Checker) checkAppArmor(in Input) *Rejection {
	if !needsAppArmor(in.Pod) {
		return nil
	}
	if !c.appArmor {
		return &Rejection{Reason: AppArmor, Message: "Cannot enforce AppArmor: AppArmor is not enabled on the host"}
	}
	var rejection *Rejection
	eachContainer(in.Pod, func(name string, sc *v1.SecurityContext) {
		p := appArmorProfile(in.Pod, name, sc)
		if rejection == nil && p != nil && p.Type == v1.AppArmorProfileTypeLocalhost &&
			(p.LocalhostProfile == nil || strings.TrimSpace(*p.LocalhostProfile) == "") {
			rejection = &Rejection{Reason: AppArmor, Message: fmt.Sprintf("Cannot enforce AppArmor: invalid empty AppArmor profile name: %q", p)}
		}
	})
	return rejection
}

// needsAppArmor tells whether the pod names any profile but "unconfined".
func needsAppArmor(pod *v1.Pod) bool {
	confined := func(p *v1.AppArmorProfile) bool { return p != nil && p.Type != v1.AppArmorProfileTypeUnconfined }
	needs := pod.Spec.SecurityContext != nil && confined(pod.Spec.SecurityContext.AppArmorProfile)
	eachContainer(pod, func(_ string, sc *v1.SecurityContext) {
		needs = needs || sc != nil && confined(sc.AppArmorProfile)
	})
	for key, value := range pod.Annotations {
		needs = needs || strings.HasPrefix(key, v1.DeprecatedAppArmorBetaContainerAnnotationKeyPrefix) &&
			value != v1.DeprecatedAppArmorBetaProfileNameUnconfined
	}
	return needs
}

// appArmorProfile is the container's own profile, in the field or in the
// annotation that static pods may still have, or else the pod's.
func appArmorProfile(pod *v1.Pod, container string, sc *v1.SecurityContext) *v1.AppArmorProfile {
	if sc != nil && sc.AppArmorProfile != nil {
		return sc.AppArmorProfile
	}
	value := pod.Annotations[v1.DeprecatedAppArmorBetaContainerAnnotationKeyPrefix+container]
	if name, found := strings.CutPrefix(value, v1.DeprecatedAppArmorBetaProfileNamePrefix); found {
		return &v1.AppArmorProfile{Type: v1.AppArmorProfileTypeLocalhost, LocalhostProfile: &name}
	}
	switch value {
	case v1.DeprecatedAppArmorBetaProfileRuntimeDefault:
		return &v1.AppArmorProfile{Type: v1.AppArmorProfileTypeRuntimeDefault}
	case v1.DeprecatedAppArmorBetaProfileNameUnconfined:
		return &v1.AppArmorProfile{Type: v1.AppArmorProfileTypeUnconfined}
	}
	if pod.Spec.SecurityContext != nil {
		return pod.Spec.SecurityContext.AppArmorProfile
	}
	return nil
}

func eachContainer(pod *v1.Pod, do func(name string, sc *v1.SecurityContext)) {
	for i := range pod.Spec.InitContainers {
		do(pod.Spec.InitContainers[i].Name, pod.Spec.InitContainers[i].SecurityContext)
	}
	for i := range pod.Spec.Containers {
		do(pod.Spec.Containers[i].Name, pod.Spec.Containers[i].SecurityContext)
	}
	for i := range pod.Spec.EphemeralContainers {
		do(pod.Spec.EphemeralContainers[i].Name, pod.Spec.EphemeralContainers[i].SecurityContext)
	}
}
