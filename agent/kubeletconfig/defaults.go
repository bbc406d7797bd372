package kubeletconfig

import (
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	logsapi "k8s.io/component-base/logs/api/v1"
	kubeletv1beta1 "k8s.io/kubelet/config/v1beta1"
	"k8s.io/utils/ptr"
)

// defaultEvictionHard is pkg/kubelet/eviction, DefaultEvictionHard of Linux.
func defaultEvictionHard() map[string]string {
	return map[string]string{
		"memory.available":   "100Mi",
		"nodefs.available":   "10%",
		"nodefs.inodesFree":  "5%",
		"imagefs.available":  "15%",
		"imagefs.inodesFree": "5%",
	}
}

// setDefaults gives every field that nothing was said about the kubelet's
// default (pkg/kubelet/apis/config/v1beta1, SetDefaults_KubeletConfiguration).
// One differs: containerRuntimeEndpoint stays empty, which is Berth's own.
func setDefaults(c *kubeletv1beta1.KubeletConfiguration, gates gates) {
	if c.SerializeImagePulls == nil {
		c.SerializeImagePulls = ptr.To(c.MaxParallelImagePulls == nil || *c.MaxParallelImagePulls < 2)
	}
	if c.NodeStatusReportFrequency.Duration == 0 {
		c.NodeStatusReportFrequency = c.NodeStatusUpdateFrequency
	}
	if c.PodPidsLimit != nil && *c.PodPidsLimit < 0 {
		*c.PodPidsLimit = -1
	}
	defaultSwitches(c)
	defaultNumbers(c)
	defaultStrings(c)
	defaultDurations(c)
	if c.EnforceNodeAllocatable == nil {
		c.EnforceNodeAllocatable = []string{"pods"}
	}
	logsapi.SetRecommendedLoggingConfiguration(&c.Logging)
	if gates.enabled("KubeletCrashLoopBackOffMax") {
		orPtr(&c.CrashLoopBackOff.MaxContainerRestartPeriod, metav1.Duration{Duration: 5 * time.Minute})
	}
	if gates.enabled("KubeletEnsureSecretPulledImages") {
		or(&c.ImagePullCredentialsVerificationPolicy, kubeletv1beta1.NeverVerifyPreloadedImages)
	}
}

func defaultSwitches(c *kubeletv1beta1.KubeletConfiguration) {
	for _, on := range []**bool{
		&c.EnableServer, &c.Authentication.Webhook.Enabled, &c.EnableDebuggingHandlers, &c.CgroupsPerQOS, &c.CPUCFSQuota,
		&c.EnableControllerAttachDetach, &c.MakeIPTablesUtilChains, &c.FailSwapOn, &c.EnableSystemLogHandler,
		&c.EnableProfilingHandler, &c.EnableDebugFlagsHandler, &c.FailCgroupV1, &c.RegisterNode, &c.LocalStorageCapacityIsolation,
	} {
		orPtr(on, true)
	}
	for _, off := range []**bool{&c.Authentication.Anonymous.Enabled, &c.MergeDefaultEvictionSettings, &c.SeccompDefault} {
		orPtr(off, false)
	}
}

func defaultNumbers(c *kubeletv1beta1.KubeletConfiguration) {
	or(&c.Port, 10250)
	orPtr(&c.RegistryPullQPS, 5)
	or(&c.RegistryBurst, 10)
	orPtr(&c.EventRecordQPS, 50)
	or(&c.EventBurst, 100)
	orPtr(&c.HealthzPort, 10248)
	orPtr(&c.OOMScoreAdj, -999)
	or(&c.NodeLeaseDurationSeconds, 40)
	orPtr(&c.ImageGCHighThresholdPercent, 85)
	orPtr(&c.ImageGCLowThresholdPercent, 80)
	or(&c.MaxPods, 110)
	orPtr(&c.PodPidsLimit, -1)
	orPtr(&c.NodeStatusMaxImages, 50)
	or(&c.MaxOpenFiles, 1_000_000)
	orPtr(&c.KubeAPIQPS, 50)
	or(&c.KubeAPIBurst, 100)
	orPtr(&c.IPTablesMasqueradeBit, 14)
	orPtr(&c.IPTablesDropBit, 15)
	orPtr(&c.ContainerLogMaxFiles, 5)
	orPtr(&c.ContainerLogMaxWorkers, 1)
	orPtr(&c.MemoryThrottlingFactor, 0.9)
}

func defaultStrings(c *kubeletv1beta1.KubeletConfiguration) {
	or(&c.Address, "0.0.0.0")
	or(&c.Authorization.Mode, kubeletv1beta1.KubeletAuthorizationModeWebhook)
	or(&c.HealthzBindAddress, "127.0.0.1")
	or(&c.CgroupDriver, "cgroupfs")
	or(&c.CPUManagerPolicy, "none")
	or(&c.MemoryManagerPolicy, kubeletv1beta1.NoneMemoryManagerPolicy)
	or(&c.TopologyManagerPolicy, kubeletv1beta1.NoneTopologyManagerPolicy)
	or(&c.TopologyManagerScope, kubeletv1beta1.ContainerTopologyManagerScope)
	or(&c.HairpinMode, kubeletv1beta1.PromiscuousBridge)
	orPtr(&c.ResolverConfig, "/etc/resolv.conf")
	or(&c.ContentType, "application/vnd.kubernetes.protobuf")
	or(&c.ContainerLogMaxSize, "10Mi")
	or(&c.ConfigMapAndSecretChangeDetectionStrategy, kubeletv1beta1.WatchChangeDetectionStrategy)
	or(&c.VolumePluginDir, "/usr/libexec/kubernetes/kubelet-plugins/volume/exec/")
	or(&c.MemoryReservationPolicy, kubeletv1beta1.NoneMemoryReservationPolicy)
	or(&c.PodLogsDir, "/var/log/pods")
}

func defaultDurations(c *kubeletv1beta1.KubeletConfiguration) {
	for _, d := range []struct {
		field *metav1.Duration
		value time.Duration
	}{
		{&c.SyncFrequency, time.Minute},
		{&c.FileCheckFrequency, 20 * time.Second},
		{&c.HTTPCheckFrequency, 20 * time.Second},
		{&c.Authentication.Webhook.CacheTTL, 2 * time.Minute},
		{&c.Authorization.Webhook.CacheAuthorizedTTL, 5 * time.Minute},
		{&c.Authorization.Webhook.CacheUnauthorizedTTL, 30 * time.Second},
		{&c.StreamingConnectionIdleTimeout, 4 * time.Hour},
		{&c.NodeStatusReportFrequency, 5 * time.Minute},
		{&c.NodeStatusUpdateFrequency, 10 * time.Second},
		{&c.ImageMinimumGCAge, 2 * time.Minute},
		{&c.VolumeStatsAggPeriod, time.Minute},
		{&c.CPUManagerReconcilePeriod, 10 * time.Second},
		{&c.RuntimeRequestTimeout, 2 * time.Minute},
		{&c.EvictionPressureTransitionPeriod, 5 * time.Minute},
	} {
		or(&d.field.Duration, d.value)
	}
	orPtr(&c.CPUCFSQuotaPeriod, metav1.Duration{Duration: 100 * time.Millisecond})
	orPtr(&c.ContainerLogMonitorInterval, metav1.Duration{Duration: 10 * time.Second})
}

// setLegacyDefaults are those of a kubelet without a --config file, which are
// less safe (cmd/kubelet/app/options, applyLegacyDefaults).
func setLegacyDefaults(c *kubeletv1beta1.KubeletConfiguration) {
	c.Authentication.Anonymous.Enabled = ptr.To(true)
	c.Authentication.Webhook.Enabled = ptr.To(false)
	c.Authorization.Mode = kubeletv1beta1.KubeletAuthorizationModeAlwaysAllow
	c.ReadOnlyPort = 10255
}

func or[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

func orPtr[T any](field **T, value T) {
	if *field == nil {
		*field = &value
	}
}
