package kubeletconfig

import (
	"fmt"
	"math"
	"path/filepath"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/opencontainers/cgroups"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	cliflag "k8s.io/component-base/cli/flag"
	logsapi "k8s.io/component-base/logs/api/v1"
	kubeletv1beta1 "k8s.io/kubelet/config/v1beta1"
	netutils "k8s.io/utils/net"
)

// checker collects what is wrong, by the path of its field.
type checker struct {
	c     *kubeletv1beta1.KubeletConfiguration
	gates gates
	errs  field.ErrorList
}

func at(path string) *field.Path {
	parts := strings.Split(path, ".")
	return field.NewPath(parts[0], parts[1:]...)
}

// ok adds an error unless the value of the field at path is right.
func (k *checker) ok(right bool, path string, value any, format string, args ...any) {
	if !right {
		k.errs = append(k.errs, field.Invalid(at(path), value, fmt.Sprintf(format, args...)))
	}
}

// validate is pkg/kubelet/apis/config/validation, ValidateKubeletConfiguration,
// and what a kubelet finds wrong only later, when it starts. Every field has a
// value, from setDefaults.
func validate(c *kubeletv1beta1.KubeletConfiguration, g gates) field.ErrorList {
	k := &checker{c: c, gates: g}
	k.numbers()
	k.choices()
	k.servers()
	k.images()
	k.shutdown()
	k.taints()
	k.resources()
	k.eviction()
	k.memory()
	k.host()
	k.logging()
	return k.errs
}

func (k *checker) numbers() {
	c := k.c
	for _, n := range []struct {
		path     string
		value    int64
		min, max int64
	}{
		{"nodeLeaseDurationSeconds", int64(c.NodeLeaseDurationSeconds), 1, math.MaxInt32},
		{"eventBurst", int64(c.EventBurst), 0, math.MaxInt32},
		{"eventRecordQPS", int64(*c.EventRecordQPS), 0, math.MaxInt32},
		{"healthzPort", int64(*c.HealthzPort), 0, 65535},
		{"port", int64(c.Port), 1, 65535},
		{"readOnlyPort", int64(c.ReadOnlyPort), 0, 65535},
		{"imageGCHighThresholdPercent", int64(*c.ImageGCHighThresholdPercent), 0, 100},
		{"imageGCLowThresholdPercent", int64(*c.ImageGCLowThresholdPercent), 0, 100},
		{"iptablesDropBit", int64(*c.IPTablesDropBit), 0, 31},
		{"iptablesMasqueradeBit", int64(*c.IPTablesMasqueradeBit), 0, 31},
		{"kubeAPIBurst", int64(c.KubeAPIBurst), 0, math.MaxInt32},
		{"kubeAPIQPS", int64(*c.KubeAPIQPS), 0, math.MaxInt32},
		{"nodeStatusMaxImages", int64(*c.NodeStatusMaxImages), -1, math.MaxInt32},
		{"maxOpenFiles", c.MaxOpenFiles, 0, math.MaxInt64},
		{"maxPods", int64(c.MaxPods), 0, math.MaxInt32},
		{"oomScoreAdj", int64(*c.OOMScoreAdj), -1000, 1000},
		{"podsPerCore", int64(c.PodsPerCore), 0, math.MaxInt32},
		{"registryBurst", int64(c.RegistryBurst), 0, math.MaxInt32},
		{"registryPullQPS", int64(*c.RegistryPullQPS), 0, math.MaxInt32},
		{"containerLogMaxWorkers", int64(*c.ContainerLogMaxWorkers), 1, math.MaxInt32},
		{"containerLogMaxFiles", int64(*c.ContainerLogMaxFiles), 2, math.MaxInt32},
	} {
		if n.max == math.MaxInt32 || n.max == math.MaxInt64 {
			k.ok(n.value >= n.min, n.path, n.value, "must be at least %d", n.min)
		} else {
			k.ok(n.value >= n.min && n.value <= n.max, n.path, n.value, "must be between %d and %d", n.min, n.max)
		}
	}
	low, high := *c.ImageGCLowThresholdPercent, *c.ImageGCHighThresholdPercent
	k.ok(low < high, "imageGCLowThresholdPercent", low, "must be less than imageGCHighThresholdPercent (%d)", high)
	k.ok(c.ContainerLogMonitorInterval.Duration >= 3*time.Second, "containerLogMonitorInterval", c.ContainerLogMonitorInterval.Duration.String(), "must be at least 3s")
	period := c.CPUCFSQuotaPeriod.Duration
	if k.gates.enabled("CustomCPUCFSQuotaPeriod") {
		k.ok(period >= time.Millisecond && period <= time.Second, "cpuCFSQuotaPeriod", period.String(), "must be between 1ms and 1s")
	} else {
		k.ok(period == 100*time.Millisecond, "cpuCFSQuotaPeriod", period.String(), "requires feature gate CustomCPUCFSQuotaPeriod")
	}
	if longest := c.CrashLoopBackOff.MaxContainerRestartPeriod; longest != nil {
		path := "crashLoopBackOff.maxContainerRestartPeriod"
		k.ok(k.gates.enabled("KubeletCrashLoopBackOffMax"), path, longest.Duration.String(), "requires feature gate KubeletCrashLoopBackOffMax")
		k.ok(longest.Duration >= time.Second && longest.Duration <= 5*time.Minute, path, longest.Duration.String(), "must be between 1s and 5m")
	}
}

// choices are fields with one of a few words.
func (k *checker) choices() {
	c := k.c
	for _, f := range []struct {
		path, value string
		of          []string
	}{
		{"topologyManagerPolicy", c.TopologyManagerPolicy, []string{"none", "best-effort", "restricted", "single-numa-node"}},
		{"topologyManagerScope", c.TopologyManagerScope, []string{"container", "pod"}},
		{"cpuManagerPolicy", c.CPUManagerPolicy, []string{"none", "static"}},
		{"memoryManagerPolicy", c.MemoryManagerPolicy, []string{"None", "Static"}},
		{"hairpinMode", c.HairpinMode, []string{"promiscuous-bridge", "hairpin-veth", "none"}},
		{"cgroupDriver", c.CgroupDriver, []string{"cgroupfs", "systemd"}},
		{"authorization.mode", string(c.Authorization.Mode), []string{"AlwaysAllow", "Webhook"}},
		{"configMapAndSecretChangeDetectionStrategy", string(c.ConfigMapAndSecretChangeDetectionStrategy), []string{"Get", "Cache", "Watch"}},
		{"memoryReservationPolicy", string(c.MemoryReservationPolicy), []string{"None", "TieredReservation"}},
		{"memorySwap.swapBehavior", c.MemorySwap.SwapBehavior, []string{"", "LimitedSwap", "NoSwap"}},
		{"logging.format", c.Logging.Format, []string{"text", "json"}},
	} {
		if !slices.Contains(f.of, f.value) {
			k.errs = append(k.errs, field.NotSupported(at(f.path), f.value, f.of))
		}
	}
	k.ok(!c.RunOnce, "runOnce", c.RunOnce, "was removed from the kubelet: run berth node with a directory of manifests")
	k.ok(c.SystemCgroups == "" || c.CgroupRoot != "", "systemCgroups", c.SystemCgroups, "needs cgroupRoot")
	k.ok(!c.ServerTLSBootstrap || k.gates.enabled("RotateKubeletServerCertificate"), "serverTLSBootstrap", true, "requires feature gate RotateKubeletServerCertificate")
	k.ok(c.MemoryReservationPolicy != "TieredReservation" || k.gates.enabled("MemoryQoS"), "memoryReservationPolicy", c.MemoryReservationPolicy, "requires feature gate MemoryQoS")
	query := c.EnableSystemLogQuery != nil && *c.EnableSystemLogQuery
	k.ok(!query || k.gates.enabled("NodeLogQuery"), "enableSystemLogQuery", true, "requires feature gate NodeLogQuery")
	k.ok(!query || *c.EnableSystemLogHandler, "enableSystemLogQuery", true, "needs enableSystemLogHandler")
}

// servers are addresses, ports and TLS.
func (k *checker) servers() {
	c := k.c
	for _, a := range []struct{ path, value string }{{"address", c.Address}, {"healthzBindAddress", c.HealthzBindAddress}} {
		k.ok(netutils.ParseIPSloppy(a.value) != nil, a.path, a.value, "must be an IP address")
	}
	for i, ip := range c.ClusterDNS {
		if netutils.ParseIPSloppy(ip) == nil {
			k.errs = append(k.errs, field.Invalid(at("clusterDNS").Index(i), ip, "must be an IP address"))
		}
	}
	if c.ClusterDomain != "" {
		errs := validation.IsDNS1123Subdomain(strings.TrimSuffix(c.ClusterDomain, "."))
		k.ok(len(errs) == 0, "clusterDomain", c.ClusterDomain, "%s", strings.Join(errs, "; "))
	}
	if _, err := cliflag.TLSVersion(c.TLSMinVersion); err != nil {
		k.ok(false, "tlsMinVersion", c.TLSMinVersion, "must be one of %s", strings.Join(cliflag.TLSPossibleVersions(), ", "))
	}
	for i, name := range c.TLSCipherSuites {
		if _, err := cliflag.TLSCipherSuites([]string{name}); err != nil {
			k.errs = append(k.errs, field.NotSupported(at("tlsCipherSuites").Index(i), name, cliflag.TLSCipherPossibleValues()))
		}
	}
	k.ok((c.TLSCertFile == "") == (c.TLSPrivateKeyFile == ""), "tlsCertFile", c.TLSCertFile, "tlsCertFile and tlsPrivateKeyFile: either both are set or none")
	if c.Authentication.X509.ClientCAFile != "" {
		k.ok(filepath.IsAbs(c.Authentication.X509.ClientCAFile), "authentication.x509.clientCAFile", c.Authentication.X509.ClientCAFile, "must be an absolute path")
	}
}

func (k *checker) images() {
	c := k.c
	least, most := c.ImageMinimumGCAge.Duration, c.ImageMaximumGCAge.Duration
	k.ok(least >= 0, "imageMinimumGCAge", least.String(), "must not be negative")
	k.ok(most >= 0, "imageMaximumGCAge", most.String(), "must not be negative")
	k.ok(most == 0 || k.gates.enabled("ImageMaximumGCAge"), "imageMaximumGCAge", most.String(), "requires feature gate ImageMaximumGCAge")
	k.ok(most <= 0 || most > least, "imageMaximumGCAge", most.String(), "must be greater than imageMinimumGCAge (%s)", least)
	if n := c.MaxParallelImagePulls; n != nil {
		k.ok(*n >= 1, "maxParallelImagePulls", *n, "must be at least 1")
		k.ok(*n <= 1 || !*c.SerializeImagePulls, "maxParallelImagePulls", *n, "must be 1 where serializeImagePulls is true")
	}
	policy := c.ImagePullCredentialsVerificationPolicy
	if !k.gates.enabled("KubeletEnsureSecretPulledImages") {
		k.ok(policy == "", "imagePullCredentialsVerificationPolicy", policy, "requires feature gate KubeletEnsureSecretPulledImages")
		k.ok(len(c.PreloadedImagesVerificationAllowlist) == 0, "preloadedImagesVerificationAllowlist", c.PreloadedImagesVerificationAllowlist, "requires feature gate KubeletEnsureSecretPulledImages")
		return
	}
	policies := []kubeletv1beta1.ImagePullCredentialsVerificationPolicy{
		kubeletv1beta1.NeverVerify, kubeletv1beta1.NeverVerifyPreloadedImages, kubeletv1beta1.NeverVerifyAllowlistedImages, kubeletv1beta1.AlwaysVerify,
	}
	if !slices.Contains(policies, policy) {
		k.errs = append(k.errs, field.NotSupported(at("imagePullCredentialsVerificationPolicy"), policy, policies))
	}
	k.ok(len(c.PreloadedImagesVerificationAllowlist) == 0 || policy == kubeletv1beta1.NeverVerifyAllowlistedImages,
		"preloadedImagesVerificationAllowlist", c.PreloadedImagesVerificationAllowlist, "needs imagePullCredentialsVerificationPolicy NeverVerifyAllowlistedImages")
	for i, pattern := range c.PreloadedImagesVerificationAllowlist {
		if problem := checkImagePattern(pattern); problem != "" {
			k.errs = append(k.errs, field.Invalid(at("preloadedImagesVerificationAllowlist").Index(i), pattern, problem))
		}
	}
}

// checkImagePattern allows a * only as the last part of a path
// (pkg/kubelet/images/pullmanager, ValidateAllowlistImagesPatterns).
func checkImagePattern(pattern string) string {
	switch rest := strings.TrimSuffix(pattern, "/*"); {
	case strings.TrimSpace(pattern) != pattern || pattern == "":
		return "must be an image or its beginning, without spaces"
	case strings.Contains(rest, "*"):
		return "a * may only be the last part of a path"
	case strings.ContainsAny(rest, "@"), strings.Contains(rest[strings.LastIndex(rest, "/")+1:], ":"):
		return "must have no tag and no digest"
	default:
		return ""
	}
}

func (k *checker) shutdown() {
	c := k.c
	all, critical := c.ShutdownGracePeriod.Duration, c.ShutdownGracePeriodCriticalPods.Duration
	if !k.gates.enabled("GracefulNodeShutdown") {
		k.ok(all <= 0 && critical <= 0, "shutdownGracePeriod", all.String(), "requires feature gate GracefulNodeShutdown")
	} else {
		k.ok(critical <= all, "shutdownGracePeriodCriticalPods", critical.String(), "must not be greater than shutdownGracePeriod (%s)", all)
		k.ok(all == 0 || all >= time.Second, "shutdownGracePeriod", all.String(), "must be 0 or at least 1s")
		k.ok(critical == 0 || critical >= time.Second, "shutdownGracePeriodCriticalPods", critical.String(), "must be 0 or at least 1s")
	}
	if len(c.ShutdownGracePeriodByPodPriority) == 0 {
		return
	}
	path, value := "shutdownGracePeriodByPodPriority", c.ShutdownGracePeriodByPodPriority
	k.ok(k.gates.enabled("GracefulNodeShutdownBasedOnPodPriority"), path, value, "requires feature gate GracefulNodeShutdownBasedOnPodPriority")
	k.ok(all <= 0 && critical <= 0, path, value, "must not be set beside shutdownGracePeriod")
}

func (k *checker) taints() {
	for i, taint := range k.c.RegisterWithTaints {
		path := at("registerWithTaints").Index(i)
		if problem := checkTaint(taint); problem != "" {
			k.errs = append(k.errs, field.Invalid(path, taint.ToString(), problem))
		}
		if taint.TimeAdded != nil {
			k.errs = append(k.errs, field.Forbidden(path.Child("timeAdded"), "it is not the configuration's to say"))
		}
	}
}

// host is what depends on this machine (validation_linux.go), and paths.
func (k *checker) host() {
	c := k.c
	unified := cgroups.IsCgroup2UnifiedMode()
	k.ok(unified || !*c.FailCgroupV1, "failCgroupV1", true, "this host has cgroup v1: set it to false, or boot with cgroup v2")
	k.ok(unified || c.SingleProcessOOMKill == nil || *c.SingleProcessOOMKill, "singleProcessOOMKill", false, "cannot be false on a host with cgroup v1")
	if u := c.UserNamespaces; u != nil && u.IDsPerPod != nil {
		const unit = 65536
		n := *u.IDsPerPod
		k.ok(n >= unit && n%unit == 0 && n <= math.MaxUint32, "userNamespaces.idsPerPod", n, "must be a multiple of %d that is at most %d", unit, uint32(math.MaxUint32))
	}
	ascii := strings.IndexFunc(c.PodLogsDir, func(r rune) bool { return r > unicode.MaxASCII }) < 0
	k.ok(filepath.IsAbs(c.PodLogsDir) && filepath.Clean(c.PodLogsDir) == c.PodLogsDir && ascii, "podLogsDir", c.PodLogsDir,
		"must be an absolute path without . and .. and with ASCII characters only")
	for _, e := range []struct{ path, value string }{
		{"containerRuntimeEndpoint", c.ContainerRuntimeEndpoint}, {"imageServiceEndpoint", c.ImageServiceEndpoint},
	} {
		socket := strings.TrimPrefix(e.value, "unix://")
		k.ok(e.value == "" || filepath.IsAbs(socket), e.path, e.value, "must be a socket such as unix:///run/berth/cri.sock")
	}
	k.ok(c.CgroupRoot == "" || filepath.IsAbs(c.CgroupRoot), "cgroupRoot", c.CgroupRoot, "must be an absolute path below the cgroup mount")
}

func (k *checker) logging() {
	l := &k.c.Logging
	k.ok(l.FlushFrequency.Duration.Duration > 0, "logging.flushFrequency", l.FlushFrequency.Duration.Duration.String(), "must be greater than 0")
	k.ok(l.Verbosity <= math.MaxInt32, "logging.verbosity", l.Verbosity, "must be at most %d", math.MaxInt32)
	k.ok(len(l.VModule) == 0 || l.Format == "text", "logging.vmodule", l.VModule, "needs logging.format text")
	for i, item := range l.VModule {
		if item.FilePattern == "" || strings.ContainsAny(item.FilePattern, "=,") {
			k.errs = append(k.errs, field.Invalid(at("logging.vmodule").Index(i), item.FilePattern, "must be a file pattern without = and ,"))
		}
	}
	alpha := k.gates.enabled("LoggingAlphaOptions")
	for format, o := range map[string]logsapi.OutputRoutingOptions{"text": l.Options.Text.OutputRoutingOptions, "json": l.Options.JSON.OutputRoutingOptions} {
		k.ok(alpha || !o.SplitStream, "logging.options."+format+".splitStream", true, "requires feature gate LoggingAlphaOptions")
		k.ok(alpha || o.InfoBufferSize.Value() == 0, "logging.options."+format+".infoBufferSize", o.InfoBufferSize.String(), "requires feature gate LoggingAlphaOptions")
	}
	if t := k.c.Tracing; t != nil && t.SamplingRatePerMillion != nil {
		n := *t.SamplingRatePerMillion
		k.ok(n >= 0 && n <= 1_000_000, "tracing.samplingRatePerMillion", n, "must be between 0 and 1000000")
	}
}
