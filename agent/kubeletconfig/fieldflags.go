package kubeletconfig

import (
	"time"

	"github.com/spf13/pflag"
	cliflag "k8s.io/component-base/cli/flag"
	kubeletv1beta1 "k8s.io/kubelet/config/v1beta1"
)

// fieldFlags are the flags that stand for a field of KubeletConfiguration, by
// the field's path. Parsing one writes the field, so c has its defaults already:
// no pointer that a flag writes through is nil then. The kubelet's are in
// cmd/kubelet/app/options/options.go, AddKubeletConfigFlags.
func fieldFlags(fs *pflag.FlagSet, c *kubeletv1beta1.KubeletConfiguration) {
	boolFlags(fs, c)
	stringFlags(fs, c)
	numberFlags(fs, c)
	durationFlags(fs, c)
	listFlags(fs, c)
}

type fieldFlag[T any] struct {
	name, field string
	to          T
}

func boolFlags(fs *pflag.FlagSet, c *kubeletv1beta1.KubeletConfiguration) {
	for _, f := range []fieldFlag[*bool]{
		{"enable-server", "enableServer", c.EnableServer},
		{"fail-swap-on", "failSwapOn", c.FailSwapOn},
		{"fail-cgroupv1", "failCgroupV1", c.FailCgroupV1},
		{"anonymous-auth", "authentication.anonymous.enabled", c.Authentication.Anonymous.Enabled},
		{"authentication-token-webhook", "authentication.webhook.enabled", c.Authentication.Webhook.Enabled},
		{"rotate-server-certificates", "serverTLSBootstrap", &c.ServerTLSBootstrap},
		{"rotate-certificates", "rotateCertificates", &c.RotateCertificates},
		{"enable-debugging-handlers", "enableDebuggingHandlers", c.EnableDebuggingHandlers},
		{"contention-profiling", "enableContentionProfiling", &c.EnableContentionProfiling},
		{"cgroups-per-qos", "cgroupsPerQOS", c.CgroupsPerQOS},
		{"runonce", "runOnce", &c.RunOnce},
		{"cpu-cfs-quota", "cpuCFSQuota", c.CPUCFSQuota},
		{"enable-controller-attach-detach", "enableControllerAttachDetach", c.EnableControllerAttachDetach},
		{"make-iptables-util-chains", "makeIPTablesUtilChains", c.MakeIPTablesUtilChains},
		{"kernel-memcg-notification", "kernelMemcgNotification", &c.KernelMemcgNotification},
		{"local-storage-capacity-isolation", "localStorageCapacityIsolation", c.LocalStorageCapacityIsolation},
		{"serialize-image-pulls", "serializeImagePulls", c.SerializeImagePulls},
		{"protect-kernel-defaults", "protectKernelDefaults", &c.ProtectKernelDefaults},
		{"register-node", "registerNode", c.RegisterNode},
	} {
		fs.BoolVar(f.to, f.name, *f.to, f.field)
	}
}

func stringFlags(fs *pflag.FlagSet, c *kubeletv1beta1.KubeletConfiguration) {
	for _, f := range []fieldFlag[*string]{
		{"pod-manifest-path", "staticPodPath", &c.StaticPodPath},
		{"manifest-url", "staticPodURL", &c.StaticPodURL},
		{"container-runtime-endpoint", "containerRuntimeEndpoint", &c.ContainerRuntimeEndpoint},
		{"image-service-endpoint", "imageServiceEndpoint", &c.ImageServiceEndpoint},
		{"client-ca-file", "authentication.x509.clientCAFile", &c.Authentication.X509.ClientCAFile},
		{"authorization-mode", "authorization.mode", (*string)(&c.Authorization.Mode)},
		{"tls-cert-file", "tlsCertFile", &c.TLSCertFile},
		{"tls-private-key-file", "tlsPrivateKeyFile", &c.TLSPrivateKeyFile},
		{"tls-min-version", "tlsMinVersion", &c.TLSMinVersion},
		{"cluster-domain", "clusterDomain", &c.ClusterDomain},
		{"volume-plugin-dir", "volumePluginDir", &c.VolumePluginDir},
		{"kubelet-cgroups", "kubeletCgroups", &c.KubeletCgroups},
		{"system-cgroups", "systemCgroups", &c.SystemCgroups},
		{"provider-id", "providerID", &c.ProviderID},
		{"cgroup-driver", "cgroupDriver", &c.CgroupDriver},
		{"cgroup-root", "cgroupRoot", &c.CgroupRoot},
		{"cpu-manager-policy", "cpuManagerPolicy", &c.CPUManagerPolicy},
		{"topology-manager-policy", "topologyManagerPolicy", &c.TopologyManagerPolicy},
		{"hairpin-mode", "hairpinMode", &c.HairpinMode},
		{"pod-cidr", "podCIDR", &c.PodCIDR},
		{"resolv-conf", "resolvConf", c.ResolverConfig},
		{"container-log-max-size", "containerLogMaxSize", &c.ContainerLogMaxSize},
		{"kube-api-content-type", "contentType", &c.ContentType},
		{"reserved-cpus", "reservedSystemCPUs", &c.ReservedSystemCPUs},
		{"topology-manager-scope", "topologyManagerScope", &c.TopologyManagerScope},
		{"system-reserved-cgroup", "systemReservedCgroup", &c.SystemReservedCgroup},
		{"kube-reserved-cgroup", "kubeReservedCgroup", &c.KubeReservedCgroup},
		{"memory-manager-policy", "memoryManagerPolicy", &c.MemoryManagerPolicy},
	} {
		fs.StringVar(f.to, f.name, *f.to, f.field)
	}
}

func numberFlags(fs *pflag.FlagSet, c *kubeletv1beta1.KubeletConfiguration) {
	for _, f := range []fieldFlag[*int32]{
		{"port", "port", &c.Port},
		{"read-only-port", "readOnlyPort", &c.ReadOnlyPort},
		{"registry-qps", "registryPullQPS", c.RegistryPullQPS},
		{"registry-burst", "registryBurst", &c.RegistryBurst},
		{"event-qps", "eventRecordQPS", c.EventRecordQPS},
		{"event-burst", "eventBurst", &c.EventBurst},
		{"healthz-port", "healthzPort", c.HealthzPort},
		{"oom-score-adj", "oomScoreAdj", c.OOMScoreAdj},
		{"image-gc-high-threshold", "imageGCHighThresholdPercent", c.ImageGCHighThresholdPercent},
		{"image-gc-low-threshold", "imageGCLowThresholdPercent", c.ImageGCLowThresholdPercent},
		{"max-pods", "maxPods", &c.MaxPods},
		{"container-log-max-files", "containerLogMaxFiles", c.ContainerLogMaxFiles},
		{"node-status-max-images", "nodeStatusMaxImages", c.NodeStatusMaxImages},
		{"kube-api-qps", "kubeAPIQPS", c.KubeAPIQPS},
		{"kube-api-burst", "kubeAPIBurst", &c.KubeAPIBurst},
		{"eviction-max-pod-grace-period", "evictionMaxPodGracePeriod", &c.EvictionMaxPodGracePeriod},
		{"pods-per-core", "podsPerCore", &c.PodsPerCore},
	} {
		fs.Int32Var(f.to, f.name, *f.to, f.field)
	}
	for _, f := range []fieldFlag[*int64]{
		{"pod-max-pids", "podPidsLimit", c.PodPidsLimit},
		{"max-open-files", "maxOpenFiles", &c.MaxOpenFiles},
	} {
		fs.Int64Var(f.to, f.name, *f.to, f.field)
	}
}

func durationFlags(fs *pflag.FlagSet, c *kubeletv1beta1.KubeletConfiguration) {
	for _, f := range []fieldFlag[*time.Duration]{
		{"sync-frequency", "syncFrequency", &c.SyncFrequency.Duration},
		{"file-check-frequency", "fileCheckFrequency", &c.FileCheckFrequency.Duration},
		{"http-check-frequency", "httpCheckFrequency", &c.HTTPCheckFrequency.Duration},
		{"authentication-token-webhook-cache-ttl", "authentication.webhook.cacheTTL", &c.Authentication.Webhook.CacheTTL.Duration},
		{"authorization-webhook-cache-authorized-ttl", "authorization.webhook.cacheAuthorizedTTL", &c.Authorization.Webhook.CacheAuthorizedTTL.Duration},
		{"authorization-webhook-cache-unauthorized-ttl", "authorization.webhook.cacheUnauthorizedTTL", &c.Authorization.Webhook.CacheUnauthorizedTTL.Duration},
		{"streaming-connection-idle-timeout", "streamingConnectionIdleTimeout", &c.StreamingConnectionIdleTimeout.Duration},
		{"node-status-update-frequency", "nodeStatusUpdateFrequency", &c.NodeStatusUpdateFrequency.Duration},
		{"minimum-image-ttl-duration", "imageMinimumGCAge", &c.ImageMinimumGCAge.Duration},
		{"volume-stats-agg-period", "volumeStatsAggPeriod", &c.VolumeStatsAggPeriod.Duration},
		{"cpu-manager-reconcile-period", "cpuManagerReconcilePeriod", &c.CPUManagerReconcilePeriod.Duration},
		{"runtime-request-timeout", "runtimeRequestTimeout", &c.RuntimeRequestTimeout.Duration},
		{"cpu-cfs-quota-period", "cpuCFSQuotaPeriod", &c.CPUCFSQuotaPeriod.Duration},
		{"eviction-pressure-transition-period", "evictionPressureTransitionPeriod", &c.EvictionPressureTransitionPeriod.Duration},
	} {
		fs.DurationVar(f.to, f.name, *f.to, f.field)
	}
}

func listFlags(fs *pflag.FlagSet, c *kubeletv1beta1.KubeletConfiguration) {
	for _, f := range []fieldFlag[*[]string]{
		{"tls-cipher-suites", "tlsCipherSuites", &c.TLSCipherSuites},
		{"cluster-dns", "clusterDNS", &c.ClusterDNS},
		{"allowed-unsafe-sysctls", "allowedUnsafeSysctls", &c.AllowedUnsafeSysctls},
		{"enforce-node-allocatable", "enforceNodeAllocatable", &c.EnforceNodeAllocatable},
	} {
		fs.StringSliceVar(f.to, f.name, *f.to, f.field)
	}
	for _, f := range []fieldFlag[pflag.Value]{
		{"manifest-url-header", "staticPodURLHeader", cliflag.NewColonSeparatedMultimapStringString(&c.StaticPodURLHeader)},
		{"address", "address", ipValue{&c.Address}},
		{"healthz-bind-address", "healthzBindAddress", ipValue{&c.HealthzBindAddress}},
		{"feature-gates", "featureGates", cliflag.NewMapStringBool(&c.FeatureGates)},
		{"cpu-manager-policy-options", "cpuManagerPolicyOptions", cliflag.NewMapStringStringNoSplit(&c.CPUManagerPolicyOptions)},
		{"qos-reserved", "qosReserved", cliflag.NewMapStringString(&c.QOSReserved)},
		{"eviction-hard", "evictionHard", cliflag.NewLangleSeparatedMapStringString(&c.EvictionHard)},
		{"eviction-soft", "evictionSoft", cliflag.NewLangleSeparatedMapStringString(&c.EvictionSoft)},
		{"eviction-soft-grace-period", "evictionSoftGracePeriod", cliflag.NewMapStringString(&c.EvictionSoftGracePeriod)},
		{"eviction-minimum-reclaim", "evictionMinimumReclaim", cliflag.NewMapStringString(&c.EvictionMinimumReclaim)},
		{"topology-manager-policy-options", "topologyManagerPolicyOptions", cliflag.NewMapStringString(&c.TopologyManagerPolicyOptions)},
		{"system-reserved", "systemReserved", cliflag.NewMapStringString(&c.SystemReserved)},
		{"kube-reserved", "kubeReserved", cliflag.NewMapStringString(&c.KubeReserved)},
		{"reserved-memory", "reservedMemory", &reservedMemoryValue{list: &c.ReservedMemory}},
		{"register-with-taints", "registerWithTaints", taintsValue{&c.RegisterWithTaints}},
	} {
		fs.Var(f.to, f.name, f.field)
	}
}
