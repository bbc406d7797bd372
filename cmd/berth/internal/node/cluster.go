package node

import (
	"crypto/tls"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/cgroups"
	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes"
	cliflag "k8s.io/component-base/cli/flag"
	kubeletv1beta1 "k8s.io/kubelet/config/v1beta1"
	statsapi "k8s.io/kubelet/pkg/apis/stats/v1alpha1"

	"github.com/berth-io/berth/agent"
	"github.com/berth-io/berth/agent/admit"
	"github.com/berth-io/berth/agent/bootstrap"
	"github.com/berth-io/berth/agent/credentials"
	"github.com/berth-io/berth/agent/images"
	"github.com/berth-io/berth/agent/kubeletapi"
	"github.com/berth-io/berth/agent/kubeletapi/access"
	"github.com/berth-io/berth/agent/kubeletconfig"
	"github.com/berth-io/berth/agent/metrics"
	"github.com/berth-io/berth/agent/node"
	"github.com/berth-io/berth/agent/objects"
	"github.com/berth-io/berth/agent/podspec"
	"github.com/berth-io/berth/agent/resources/machine"
	"github.com/berth-io/berth/agent/stats"
)

// newCluster is how the node belongs to the kubelet's cluster; nil: there is
// none, or only a configuration without a kubeconfig. It waits for nobody.
func newCluster(k *kubeletconfig.Config, host podspec.Node, own agent.Resources, resources machine.Resources, log *slog.Logger) (*agent.Cluster, error) {
	if k == nil || k.Kubeconfig == "" {
		return nil, nil
	}
	counts := metrics.NewEvents()
	identity, err := bootstrap.New(bootstrap.Config{
		NodeName: host.Name, Kubeconfig: k.Kubeconfig, BootstrapKubeconfig: k.BootstrapKubeconfig, CertDir: k.CertDir,
		Rotate: k.RotateCertificates, ServerTLSBootstrap: k.ServerTLSBootstrap,
		TLSCertFile: k.TLSCertFile, TLSPrivateKeyFile: k.TLSPrivateKeyFile,
		Addresses:   func() []v1.NodeAddress { return addresses(host) },
		ContentType: k.ContentType, QPS: float32(*k.KubeAPIQPS), Burst: int(k.KubeAPIBurst),
		ClientFailures: counts.ClientRenewals(), ServerFailures: counts.ServerRenewals(), ServerRotation: counts.ServerRotations(),
		UserAgent: "kubelet/" + node.KubeletVersion + " berth", Log: log,
	})
	if err != nil {
		return nil, err
	}
	client, err := kubernetes.NewForConfig(identity.Client())
	if err != nil {
		return nil, fmt.Errorf("kubeconfig %s: %w", k.Kubeconfig, err)
	}
	forHeartbeats := identity.Client() // cmd/kubelet/app, run: without limits, for a node that is busy is alive
	forHeartbeats.QPS = -1
	forHeartbeats.Timeout = min(k.NodeStatusUpdateFrequency.Duration, time.Duration(k.NodeLeaseDurationSeconds)*time.Second)
	heartbeats, err := kubernetes.NewForConfig(forHeartbeats)
	if err != nil {
		return nil, fmt.Errorf("kubeconfig %s: %w", k.Kubeconfig, err)
	}
	forEvents := identity.Client() // with limits of its own
	forEvents.QPS, forEvents.Burst = float32(*k.EventRecordQPS), int(k.EventBurst)
	events, err := kubernetes.NewForConfig(forEvents)
	if err != nil {
		return nil, fmt.Errorf("kubeconfig %s: %w", k.Kubeconfig, err)
	}
	info, err := hostInfo(own.Allocator.Machine.SwapBytes)
	if err != nil {
		return nil, err
	}
	api, err := kubeletAPI(k, identity, client, host, info)
	if err != nil {
		return nil, err
	}
	api.Metrics.Events = counts
	checks, err := admission(k, info)
	if err != nil {
		return nil, err
	}
	registration, err := registration(k, host)
	if err != nil {
		return nil, err
	}
	return &agent.Cluster{
		Client: client, Heartbeats: heartbeats, Identity: identity, Events: events.CoreV1().Events(""), MaxImages: int(*k.NodeStatusMaxImages),
		Node: registration,
		Facts: node.Facts{
			Addresses: statusAddresses(k, host), CloudAddresses: cloudProvided(k),
			Capacity: resources.Capacity, Allocatable: resources.Allocatable, Info: info, Port: k.Port,
		},
		Objects:   objects.Config{Strategy: string(k.ConfigMapAndSecretChangeDetectionStrategy)},
		API:       api,
		Images:    imageSettings(k),
		Admit:     checks,
		Resources: own,
	}, nil
}

// registration is how the node registers. One that an external cloud provider
// has yet to say more of is tainted, and tells it the addresses that were
// configured (pkg/kubelet/kubelet_node_status.go, initialNode;
// pkg/kubelet/nodestatus, NodeAddress).
func registration(k *kubeletconfig.Config, host podspec.Node) (node.Config, error) {
	c := node.Config{
		Labels: hostLabels(host.Name), Annotations: map[string]string{}, Taints: slices.Clone(k.RegisterWithTaints),
		Register: *k.RegisterNode, ProviderID: k.ProviderID,
		Every: k.NodeStatusUpdateFrequency.Duration, Report: k.NodeStatusReportFrequency.Duration,
		Lease: time.Duration(k.NodeLeaseDurationSeconds) * time.Second,
	}
	maps.Copy(c.Labels, k.NodeLabels)
	if *k.EnableControllerAttachDetach {
		c.Annotations["volumes.kubernetes.io/controller-managed-attach-detach"] = "true"
	}
	if !cloudProvided(k) {
		return c, nil
	}
	c.Taints = append(c.Taints, v1.Taint{Key: "node.cloudprovider.kubernetes.io/uninitialized", Value: "true", Effect: v1.TaintEffectNoSchedule})
	ips, err := k.NodeIPs()
	if err != nil {
		return c, err
	}
	if len(ips) > 0 && !ips[0].IsUnspecified() {
		c.Annotations["alpha.kubernetes.io/provided-node-ip"] = strings.Join(host.HostIPs, ",")
	}
	return c, nil
}

// cloudProvided tells whether an external cloud provider says what the node's
// addresses are.
func cloudProvided(k *kubeletconfig.Config) bool { return k.CloudProvider == "external" }

// statusAddresses are those of the node's status. Where none was configured, an
// external cloud provider is not forestalled.
func statusAddresses(k *kubeletconfig.Config, host podspec.Node) []v1.NodeAddress {
	if cloudProvided(k) && k.NodeIP == "" {
		return []v1.NodeAddress{{Type: v1.NodeHostName, Address: host.Name}}
	}
	return addresses(host)
}

// kubeletAPI is how the kubelet's API is served.
func kubeletAPI(k *kubeletconfig.Config, identity *bootstrap.Identity, client kubernetes.Interface, host podspec.Node, info v1.NodeSystemInfo) (agent.API, error) {
	minVersion, ciphers, curves, err := tlsLimits(k)
	if err != nil {
		return agent.API{}, err
	}
	c := agent.API{
		Server: kubeletapi.Config{
			EnableServer: *k.EnableServer,
			Address:      k.Address, Port: int(k.Port), ReadOnlyPort: int(k.ReadOnlyPort),
			HealthzBindAddress: k.HealthzBindAddress, HealthzPort: int(*k.HealthzPort),
			Certificate: identity.ServingCertificate, MinVersion: minVersion, CipherSuites: ciphers, Curves: curves,
			EnableDebuggingHandlers: *k.EnableDebuggingHandlers, EnableSystemLogHandler: *k.EnableSystemLogHandler,
			EnableSystemLogQuery: k.EnableSystemLogQuery != nil && *k.EnableSystemLogQuery, EnableProfilingHandler: *k.EnableProfilingHandler,
			EnableContentionProfiling: k.EnableContentionProfiling, EnableDebugFlagsHandler: *k.EnableDebugFlagsHandler,
			KubeletConfig: &k.KubeletConfiguration, Statusz: k.Enabled("ComponentStatusz"), Version: node.KubeletVersion, KubeletDir: host.KubeletDir, LogDir: "/var/log",
		},
		Authn: access.AuthnConfig{
			Anonymous: *k.Authentication.Anonymous.Enabled, ClientCAFile: k.Authentication.X509.ClientCAFile,
			TokenTTL: k.Authentication.Webhook.CacheTTL.Duration,
		},
		Authz: access.AuthzConfig{
			NodeName: host.Name, AllowTTL: k.Authorization.Webhook.CacheAuthorizedTTL.Duration,
			DenyTTL: k.Authorization.Webhook.CacheUnauthorizedTTL.Duration,
		},
		Stats: stats.Config{
			NodeName: host.Name, KubeletDir: host.KubeletDir, PodLogsDir: host.PodLogsDir, DiskAge: k.VolumeStatsAggPeriod.Duration,
			System: systemCgroups(k),
		},
		Metrics: metrics.Config{
			NodeName: host.Name, Version: node.KubeletVersion, MachineID: info.MachineID, SystemUUID: info.SystemUUID, BootID: info.BootID,
			CgroupVersion: cgroupVersion(), Gates: gates(k),
		},
	}
	if k.RotateCertificates {
		c.Metrics.ClientExpiry = func() time.Time { return expiry(identity.ClientCertificate()) }
	}
	if k.ServerTLSBootstrap {
		c.Metrics.ServerExpiry = func() time.Time {
			pair, err := identity.ServingCertificate()
			if err != nil {
				return time.Time{} // the cluster has not signed one yet
			}
			return expiry(pair)
		}
	}
	if k.Enabled("ComponentFlagz") {
		c.Server.Flags = k.Given
	}
	if *k.Authentication.Webhook.Enabled {
		c.Authn.Tokens = client.AuthenticationV1().TokenReviews()
	}
	if k.Authorization.Mode == kubeletv1beta1.KubeletAuthorizationModeWebhook {
		c.Authz.Reviews = client.AuthorizationV1().SubjectAccessReviews()
	}
	return c, nil
}

// expiry is when a certificate ends; zero: there is none.
func expiry(pair *tls.Certificate) time.Time {
	if pair == nil || pair.Leaf == nil {
		return time.Time{}
	}
	return pair.Leaf.NotAfter
}

// gates are the feature gates as the kubelet's metric writes them.
func gates(k *kubeletconfig.Config) []metrics.Gate {
	var out []metrics.Gate
	for _, g := range k.Gates() {
		stage := strings.ToUpper(g.Stage)
		if stage == "GA" {
			stage = ""
		}
		out = append(out, metrics.Gate{Name: g.Name, Stage: stage, On: g.On})
	}
	return out
}

func cgroupVersion() int {
	if cgroups.IsCgroup2UnifiedMode() {
		return 2
	}
	return 1
}

// systemCgroups are the cgroups of the node's own processes, where the
// configuration names them.
func systemCgroups(k *kubeletconfig.Config) map[string]string {
	named := map[string]string{}
	for name, cgroup := range map[string]string{statsapi.SystemContainerKubelet: k.KubeletCgroups, statsapi.SystemContainerMisc: k.SystemCgroups} {
		if cgroup != "" {
			named[name] = cgroup
		}
	}
	return named
}

// tlsLimits reads tlsMinVersion, tlsCipherSuites and tlsCurvePreferences.
func tlsLimits(k *kubeletconfig.Config) (minVersion uint16, suites []uint16, curves []tls.CurveID, err error) {
	if minVersion, err = cliflag.TLSVersion(k.TLSMinVersion); err != nil {
		return 0, nil, nil, fmt.Errorf("tlsMinVersion: %w", err)
	}
	if suites, err = cliflag.TLSCipherSuites(k.TLSCipherSuites); err != nil {
		return 0, nil, nil, fmt.Errorf("tlsCipherSuites: %w", err)
	}
	if curves, err = cliflag.TLSCurvePreferences(k.TLSCurvePreferences); err != nil {
		return 0, nil, nil, fmt.Errorf("tlsCurvePreferences: %w", err)
	}
	return minVersion, suites, curves, nil
}

func admission(k *kubeletconfig.Config, info v1.NodeSystemInfo) (*admit.Checker, error) {
	return admit.New(admit.Config{
		AllowedUnsafeSysctls: k.AllowedUnsafeSysctls, KernelVersion: info.KernelVersion,
		AppArmor: admit.AppArmorEnabled(), KubernetesVersion: node.KubeletVersion,
	})
}

// imageSettings is how images are pulled, and for whom.
func imageSettings(k *kubeletconfig.Config) agent.Images {
	parallel := 0
	switch {
	case k.SerializeImagePulls == nil || *k.SerializeImagePulls:
		parallel = 1
	case k.MaxParallelImagePulls != nil:
		parallel = int(*k.MaxParallelImagePulls)
	}
	return agent.Images{
		Pulls: images.Config{Parallel: parallel, QPS: float64(*k.RegistryPullQPS), Burst: int(k.RegistryBurst)},
		Credentials: credentials.Config{
			Docker:         credentials.DockerDirs(k.RootDir),
			ProviderConfig: k.CredentialProviderConfig, ProviderBinDir: k.CredentialProviderBinDir,
		},
		Records: credentials.RecordsConfig{
			KubeletDir: k.RootDir, Policy: k.ImagePullCredentialsVerificationPolicy, Allowed: k.PreloadedImagesVerificationAllowlist,
		},
	}
}

func hostLabels(name string) map[string]string {
	return map[string]string{
		v1.LabelHostname: name, v1.LabelOSStable: runtime.GOOS, v1.LabelArchStable: runtime.GOARCH,
		"beta.kubernetes.io/os": runtime.GOOS, "beta.kubernetes.io/arch": runtime.GOARCH,
	}
}

func addresses(host podspec.Node) []v1.NodeAddress {
	var out []v1.NodeAddress
	for _, ip := range host.HostIPs {
		out = append(out, v1.NodeAddress{Type: v1.NodeInternalIP, Address: ip})
	}
	return append(out, v1.NodeAddress{Type: v1.NodeHostName, Address: host.Name})
}

// hostInfo is what the host says of itself. Like the kubelet
// (nodestatus.MachineInfo), it does not mention swap where there is none.
func hostInfo(swapBytes int64) (v1.NodeSystemInfo, error) {
	boot, err := bootID()
	if err != nil {
		return v1.NodeSystemInfo{}, err
	}
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return v1.NodeSystemInfo{}, fmt.Errorf("ask the kernel for its version: %w", err)
	}
	info := v1.NodeSystemInfo{
		MachineID:       firstOf("/etc/machine-id", "/var/lib/dbus/machine-id"),
		SystemUUID:      strings.ToLower(firstOf("/sys/class/dmi/id/product_uuid", "/proc/device-tree/vm,uuid", "/etc/machine-id")),
		BootID:          boot,
		KernelVersion:   unix.ByteSliceToString(uts.Release[:]),
		OSImage:         osImage(),
		KubeletVersion:  node.KubeletVersion,
		OperatingSystem: runtime.GOOS,
		Architecture:    runtime.GOARCH,
	}
	if swapBytes > 0 {
		info.Swap = &v1.NodeSwapStatus{Capacity: &swapBytes}
	}
	return info, nil
}

// firstOf is the content of the first of the files that has some. A host that
// has none of them has no such name.
func firstOf(paths ...string) string {
	for _, path := range paths {
		if data, err := os.ReadFile(path); err == nil {
			if text := strings.TrimRight(strings.TrimSpace(string(data)), "\x00"); text != "" {
				return text
			}
		}
	}
	return ""
}

// osImage is the PRETTY_NAME of os-release(5).
func osImage() string {
	for line := range strings.Lines(firstOf("/etc/os-release", "/usr/lib/os-release")) {
		if value, ok := strings.CutPrefix(strings.TrimSpace(line), "PRETTY_NAME="); ok {
			return strings.Trim(value, `"'`)
		}
	}
	return "Unknown"
}
