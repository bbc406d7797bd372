package node

import (
	"slices"

	"github.com/berth-io/berth/agent"
	"github.com/berth-io/berth/agent/evict"
	"github.com/berth-io/berth/agent/gc"
	"github.com/berth-io/berth/agent/kubeletconfig"
	"github.com/berth-io/berth/agent/shutdown"
)

// alone is a node without a cluster of which no kubelet's configuration says
// when it is short. A pod that is evicted there has no other node to go to, and
// the disk is often not the node's own: a tenth of it free is no reason.
func alone() *kubeletconfig.Config {
	k := kubeletconfig.Default()
	k.EnforceNodeAllocatable = nil
	k.EvictionHard = map[string]string{
		"memory.available": "100Mi", "nodefs.available": "1Gi", "nodefs.inodesFree": "1%", "imagefs.available": "1Gi", "imagefs.inodesFree": "1%",
	}
	return k
}

// pressureSettings are when pods are evicted and garbage is collected, and how
// pods end when the host goes down.
func pressureSettings(k *kubeletconfig.Config) (agent.Pressure, error) {
	if k == nil {
		k = alone()
	}
	thresholds, err := evict.Settings{
		Hard: k.EvictionHard, Soft: k.EvictionSoft, SoftGracePeriod: k.EvictionSoftGracePeriod, MinimumReclaim: k.EvictionMinimumReclaim,
		MergeDefaults: k.MergeDefaultEvictionSettings != nil && *k.MergeDefaultEvictionSettings,
		PodsEnforced:  slices.Contains(k.EnforceNodeAllocatable, "pods"),
	}.Thresholds()
	if err != nil {
		return agent.Pressure{}, err
	}
	s := shutdown.Settings{GracePeriod: k.ShutdownGracePeriod.Duration, GracePeriodCriticalPods: k.ShutdownGracePeriodCriticalPods.Duration}
	for _, p := range k.ShutdownGracePeriodByPodPriority {
		s.ByPriority = append(s.ByPriority, shutdown.Period{Priority: p.Priority, Seconds: p.ShutdownGracePeriodSeconds})
	}
	periods, err := s.Periods()
	if err != nil {
		return agent.Pressure{}, err
	}
	return agent.Pressure{
		Evict: evict.Config{
			Thresholds: thresholds, Transition: k.EvictionPressureTransitionPeriod.Duration, MaxPodGrace: int64(k.EvictionMaxPodGracePeriod),
			LocalStorage: k.LocalStorageCapacityIsolation == nil || *k.LocalStorageCapacityIsolation,
		},
		Images: gc.ImagePolicy{
			HighPercent: int(*k.ImageGCHighThresholdPercent), LowPercent: int(*k.ImageGCLowThresholdPercent),
			MinAge: k.ImageMinimumGCAge.Duration, MaxAge: k.ImageMaximumGCAge.Duration,
		},
		Containers:      gc.ContainerPolicy{MinAge: k.MinDeadAge, MaxPerPodContainer: int(k.MaxDeadPerContainer), MaxContainers: int(k.MaxDead)},
		ShutdownPeriods: periods,
	}, nil
}
