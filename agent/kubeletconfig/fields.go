package kubeletconfig

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"
)

// Effect is what a field of KubeletConfiguration does in Berth.
type Effect string

const (
	// Honoured fields do what the kubelet does with them.
	Honoured Effect = "honoured"
	// NoEffect fields are accepted; a warning names one that is not at its default.
	NoEffect Effect = "without effect"
	// NotYet fields are NoEffect until the part that they are for reads them.
	NotYet Effect = "not yet"
	// Refused fields are an error where they are not at their default, since
	// going on without them would not be what was asked for.
	Refused Effect = "refused"
)

// Field is one field of KubeletConfiguration by its path.
type Field struct {
	Path   string
	Effect Effect
	Note   string // for users
}

const (
	watched   = "Berth acts when something changes; it does not look from time to time"
	byUnit    = "the service manager's: set it in the unit"
	noStatic  = "pods come from a directory or the API server, not from a URL"
	proxyBits = "the kubelet does nothing with it either"
	logBuffer = "nothing is buffered"
)

// Fields returns every field of KubeletConfiguration, with what it does. The
// table is the one place that says so; docs/agent/kubelet-configuration.md is
// made from it.
func Fields() []Field {
	return slices.Concat(podFields(), serverFields(), nodeFields(), resourceFields(), hostFields())
}

func podFields() []Field {
	return []Field{
		{"staticPodPath", Honoured, "a directory"},
		{"podLogsDir", Honoured, ""},
		{"syncFrequency", NoEffect, watched},
		{"fileCheckFrequency", Honoured, "beside notices of changes; at least 1s"},
		{"httpCheckFrequency", NoEffect, noStatic},
		{"staticPodURL", Refused, noStatic},
		{"staticPodURLHeader", NoEffect, noStatic},
		{"clusterDomain", Honoured, ""},
		{"clusterDNS", Honoured, ""},
		{"resolvConf", Honoured, ""},
		{"registryPullQPS", Honoured, ""},
		{"registryBurst", Honoured, ""},
		{"serializeImagePulls", Honoured, "of the pods of a cluster"},
		{"maxParallelImagePulls", Honoured, "of Berth's runtime too, where images.maxParallelPulls of berth.yaml is its default"},
		{"imagePullCredentialsVerificationPolicy", Honoured, ""},
		{"preloadedImagesVerificationAllowlist", Honoured, ""},
		{"imageMinimumGCAge", Honoured, ""},
		{"imageMaximumGCAge", Honoured, ""},
		{"imageGCHighThresholdPercent", Honoured, ""},
		{"imageGCLowThresholdPercent", Honoured, ""},
		{"runOnce", Refused, "the kubelet refuses it too"},
		{"containerLogMaxSize", Honoured, "a negative one: logs are not rotated"},
		{"containerLogMaxFiles", Honoured, ""},
		{"containerLogMaxWorkers", Honoured, ""},
		{"containerLogMonitorInterval", Honoured, ""},
		{"configMapAndSecretChangeDetectionStrategy", Honoured, ""},
		{"allowedUnsafeSysctls", Honoured, ""},
		{"volumePluginDir", NotYet, "FlexVolume is not there yet"},
		{"crashLoopBackOff.maxContainerRestartPeriod", Honoured, ""},
		{"seccompDefault", Honoured, ""},
		{"userNamespaces.idsPerPod", Honoured, "pods keep what they had under another"},
		{"localStorageCapacityIsolation", Honoured, ""},
		{"shutdownGracePeriod", NotYet, ""},
		{"shutdownGracePeriodCriticalPods", NotYet, ""},
		{"shutdownGracePeriodByPodPriority", NotYet, ""},
	}
}

func serverFields() []Field {
	return []Field{
		{"enableServer", Honoured, "also without it, readOnlyPort and healthzPort are served"},
		{"address", Honoured, ""},
		{"port", Honoured, ""},
		{"readOnlyPort", Honoured, ""},
		{"tlsCertFile", Honoured, "read again when it changes"},
		{"tlsPrivateKeyFile", Honoured, "read again when it changes"},
		{"tlsCipherSuites", Honoured, ""},
		{"tlsCurvePreferences", Honoured, ""},
		{"tlsMinVersion", Honoured, ""},
		{"rotateCertificates", Honoured, ""},
		{"serverTLSBootstrap", Honoured, ""},
		{"authentication.x509.clientCAFile", Honoured, ""},
		{"authentication.webhook.enabled", Honoured, ""},
		{"authentication.webhook.cacheTTL", Honoured, ""},
		{"authentication.anonymous.enabled", Honoured, ""},
		{"authorization.mode", Honoured, ""},
		{"authorization.webhook.cacheAuthorizedTTL", Honoured, ""},
		{"authorization.webhook.cacheUnauthorizedTTL", Honoured, ""},
		{"enableDebuggingHandlers", Honoured, ""},
		{"enableContentionProfiling", Honoured, ""},
		{"enableProfilingHandler", Honoured, ""},
		{"enableDebugFlagsHandler", Honoured, ""},
		{"enableSystemLogHandler", Honoured, ""},
		{"enableSystemLogQuery", Honoured, ""},
		{"healthzPort", Honoured, ""},
		{"healthzBindAddress", Honoured, ""},
		{"streamingConnectionIdleTimeout", NoEffect, "the kubelet does nothing with it either: streams are the runtime's"},
		{"showHiddenMetricsForVersion", NoEffect, "no metric is hidden"},
		{"volumeStatsAggPeriod", Honoured, ""},
		{"tracing.endpoint", NoEffect, "Berth exports no traces"},
		{"tracing.samplingRatePerMillion", NoEffect, "Berth exports no traces"},
	}
}

func nodeFields() []Field {
	return []Field{
		{"registerNode", Honoured, ""},
		{"registerWithTaints", Honoured, ""},
		{"providerID", Honoured, ""},
		{"nodeStatusUpdateFrequency", Honoured, ""},
		{"nodeStatusReportFrequency", Honoured, ""},
		{"nodeLeaseDurationSeconds", Honoured, ""},
		{"nodeStatusMaxImages", Honoured, ""},
		{"eventRecordQPS", Honoured, ""},
		{"eventBurst", Honoured, ""},
		{"kubeAPIQPS", Honoured, ""},
		{"kubeAPIBurst", Honoured, ""},
		{"contentType", Honoured, ""},
		{"maxPods", Honoured, ""},
		{"podsPerCore", Honoured, ""},
		{"podCIDR", Honoured, "where network.podCIDRs of berth.yaml says nothing"},
		{"enableControllerAttachDetach", Refused, "volumes are attached by the controller only"},
		{"featureGates", Honoured, "each that has no effect is named in a warning"},
	}
}

func resourceFields() []Field {
	return []Field{
		{"cgroupRoot", Honoured, ""},
		{"cgroupDriver", Honoured, ""},
		{"cgroupsPerQOS", Refused, "pods always have cgroups of their own below their QoS class"},
		{"kubeletCgroups", NoEffect, byUnit + "; it is named in statistics"},
		{"systemCgroups", NoEffect, byUnit + "; it is named in statistics"},
		{"cpuManagerPolicy", Honoured, ""},
		{"cpuManagerPolicyOptions", Honoured, ""},
		{"cpuManagerReconcilePeriod", NoEffect, "containers are put on their CPUs when something has changed"},
		{"memoryManagerPolicy", Honoured, ""},
		{"topologyManagerPolicy", Honoured, ""},
		{"topologyManagerScope", Honoured, ""},
		{"topologyManagerPolicyOptions", Honoured, ""},
		{"reservedMemory", Honoured, ""},
		{"singleProcessOOMKill", Honoured, ""},
		{"qosReserved", NoEffect, "alpha since 1.11, and not used"},
		{"podPidsLimit", Honoured, ""},
		{"cpuCFSQuota", Honoured, ""},
		{"cpuCFSQuotaPeriod", Honoured, ""},
		{"memoryThrottlingFactor", Honoured, ""},
		{"memoryReservationPolicy", Honoured, ""},
		{"memorySwap.swapBehavior", Honoured, ""},
		{"systemReserved", Honoured, ""},
		{"kubeReserved", Honoured, ""},
		{"reservedSystemCPUs", Honoured, ""},
		{"systemReservedCgroup", Honoured, ""},
		{"kubeReservedCgroup", Honoured, ""},
		{"enforceNodeAllocatable", Honoured, ""},
		{"evictionHard", Honoured, ""},
		{"evictionSoft", Honoured, ""},
		{"evictionSoftGracePeriod", Honoured, ""},
		{"evictionPressureTransitionPeriod", Honoured, ""},
		{"evictionMaxPodGracePeriod", Honoured, ""},
		{"evictionMinimumReclaim", Honoured, ""},
		{"mergeDefaultEvictionSettings", Honoured, "of the --config file, as in the kubelet"},
		{"kernelMemcgNotification", NoEffect, "the kernel is always asked to tell"},
	}
}

func hostFields() []Field {
	return []Field{
		{"containerRuntimeEndpoint", Honoured, "default: Berth's own runtime; another runtime's socket leaves the role agent only"},
		{"imageServiceEndpoint", Honoured, "default: containerRuntimeEndpoint"},
		{"runtimeRequestTimeout", Honoured, ""},
		{"hairpinMode", NoEffect, "the network plugin's; the kubelet does nothing with it either"},
		{"oomScoreAdj", NoEffect, byUnit},
		{"maxOpenFiles", NoEffect, byUnit},
		{"protectKernelDefaults", Honoured, "without it, the kernel is set up as the kubelet does"},
		{"makeIPTablesUtilChains", NoEffect, "no chains are made"},
		{"iptablesMasqueradeBit", NoEffect, proxyBits},
		{"iptablesDropBit", NoEffect, proxyBits},
		{"failSwapOn", Honoured, ""},
		{"failCgroupV1", Honoured, ""},
		{"logging.format", Honoured, "text is that of Go's slog"},
		{"logging.verbosity", Honoured, "4 and more is the level debug"},
		{"logging.flushFrequency", NoEffect, logBuffer},
		{"logging.vmodule", NoEffect, "verbosity is the same for all files"},
		{"logging.options.text.splitStream", NoEffect, "all goes to standard error"},
		{"logging.options.text.infoBufferSize", NoEffect, logBuffer},
		{"logging.options.json.splitStream", NoEffect, "all goes to standard error"},
		{"logging.options.json.infoBufferSize", NoEffect, logBuffer},
	}
}

// changed are the fields that differ between two configurations.
func changed(c, base *Config) ([]Field, error) {
	var trees [2]map[string]any
	for i, config := range []*Config{c, base} {
		data, err := json.Marshal(config.KubeletConfiguration)
		if err != nil {
			return nil, fmt.Errorf("encode the kubelet configuration: %w", err)
		}
		if err := json.Unmarshal(data, &trees[i]); err != nil {
			return nil, fmt.Errorf("decode the kubelet configuration: %w", err)
		}
	}
	var out []Field
	for _, f := range Fields() {
		if !reflect.DeepEqual(lookup(trees[0], f.Path), lookup(trees[1], f.Path)) {
			out = append(out, f)
		}
	}
	return out, nil
}

func lookup(tree map[string]any, path string) any {
	var at any = tree
	for key := range strings.SplitSeq(path, ".") {
		m, ok := at.(map[string]any)
		if !ok {
			return nil
		}
		at = m[key]
	}
	if empty(at) {
		return nil // said to be empty is not said at all
	}
	return at
}

func empty(v any) bool {
	switch v := v.(type) {
	case map[string]any:
		return len(v) == 0
	case []any:
		return len(v) == 0
	default:
		return v == nil || v == false || v == "" || v == 0.0
	}
}

// judge splits what was changed into what cannot be and what a user should know.
func judge(fields []Field) (refused []error, warnings []string) {
	for _, f := range fields {
		note := ""
		if f.Note != "" {
			note = ": " + f.Note
		}
		switch f.Effect {
		case Refused:
			refused = append(refused, fmt.Errorf("%s: Berth cannot do this%s; leave it at its default", f.Path, note))
		case NoEffect:
			warnings = append(warnings, fmt.Sprintf("%s has no effect%s", f.Path, note))
		case NotYet:
			warnings = append(warnings, fmt.Sprintf("%s has no effect yet%s", f.Path, note))
		case Honoured:
		}
	}
	return refused, warnings
}
