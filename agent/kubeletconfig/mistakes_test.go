package kubeletconfig

import (
	"path/filepath"
	"strings"
	"testing"
)

func TestMistakesInAFileAreNamedByFileAndField(t *testing.T) {
	for _, c := range []struct{ content, want string }{
		{"", "it is empty: it must have apiVersion and kind at least"},
		{"maxPods: 3\n", "apiVersion: it is missing and must be kubelet.config.k8s.io/v1beta1"},
		{"apiVersion: v1\nkind: Pod\n", "apiVersion: v1 must be kubelet.config.k8s.io/v1beta1"},
		{"apiVersion: kubelet.config.k8s.io/v1beta1\nkind: CredentialProviderConfig\n", "kind: CredentialProviderConfig must be KubeletConfiguration"},
		{"- a\n", "it must be a map of fields"},
		{header + "maxpods: 3\n", "maxpods: unknown field"},
		{header + "maxPods: 3\nmaxPods: 4\n", `key "maxPods" already set`},
		{header + "maxPods: many\n", "maxPods: it must be an integer (int32), not string"},
		{header + "maxPods: 3000000000\n", "maxPods: it must be an integer (int32), not number 3000000000"},
		{header + "authentication: {anonymous: {enable: true}}\n", "authentication.anonymous.enable: unknown field"},
		{header + "authentication: {anonymous: {enabled: 1}}\n", "authentication.anonymous.enabled: it must be true or false, not number"},
		{header + "syncFrequency: 5\n", "syncFrequency: it must be a string, not number"},
		{header + "syncFrequency: soon\n", `syncFrequency: time: invalid duration "soon"`},
		{header + "registerWithTaints:\n- {key: a, effect: NoSchedule}\n- {key: a, effects: NoSchedule}\n", "registerWithTaints[1].effects: unknown field"},
		{header + "reservedMemory: [{numaNode: 0, limits: {memory: lots}}]\n", "reservedMemory[0].limits.memory: quantities must match the regular expression"},
		{header + "---\n" + header, "it has more than one document"},
		{header + "featureGates: {NoSuch: true}\n", "featureGates: unrecognized feature gate: NoSuch"},
		{header + "featureGates: {GracefulNodeShutdown: false}\n", "featureGates: GracefulNodeShutdownBasedOnPodPriority is enabled, but depends on features that are disabled: [GracefulNodeShutdown]"},
		{header + "port: 70000\n", "port: Invalid value: 70000: must be between 1 and 65535"},
		{header + "imageGCLowThresholdPercent: 90\n", "imageGCLowThresholdPercent: Invalid value: 90: must be less than imageGCHighThresholdPercent (85)"},
		{header + "topologyManagerPolicy: best\n", `topologyManagerPolicy: Unsupported value: "best": supported values: "none", "best-effort", "restricted", "single-numa-node"`},
		{header + "clusterDNS: [10.0.0.10, dns]\n", `clusterDNS[1]: Invalid value: "dns": must be an IP address`},
		{header + "tlsMinVersion: VersionTLS14\n", "tlsMinVersion: Invalid value"},
		{header + "tlsCipherSuites: [TLS_FAST]\n", "tlsCipherSuites[0]: Unsupported value"},
		{header + "tlsCertFile: /a\n", "tlsCertFile and tlsPrivateKeyFile: either both are set or none"},
		{header + "registerWithTaints: [{key: a, effect: Never}]\n", `registerWithTaints[0]: Invalid value: "a:Never": effect "Never" must be NoSchedule, PreferNoSchedule or NoExecute`},
		{header + "enforceNodeAllocatable: [pods, system-reserved]\n", "systemReservedCgroup: Invalid value"},
		{header + "enforceNodeAllocatable: [pods, pods]\n", `enforceNodeAllocatable[1]: Duplicate value: "pods"`},
		{header + "enforceNodeAllocatable: [none, pods]\n", "must have nothing beside none"},
		{header + "systemReserved: {gpu: 1}\n", "systemReserved.gpu: it must be a string, not number"},
		{header + "systemReserved: {gpu: '1'}\n", `systemReserved[gpu]: Unsupported value: "gpu"`},
		{header + "kubeReserved: {cpu: -1}\n", "kubeReserved.cpu: it must be a string, not number"},
		{header + "kubeReserved: {cpu: '-1'}\n", `kubeReserved[cpu]: Invalid value: "-1"`},
		{header + "evictionHard: {disk: 10%}\n", `evictionHard[disk]: Unsupported value: "disk"`},
		{header + "evictionHard: {memory.available: 110%}\n", `evictionHard[memory.available]: Invalid value: "110%"`},
		{header + "evictionHard: {memory.available: '0'}\n", `evictionHard[memory.available]: Invalid value: "0"`},
		{header + "evictionSoft: {memory.available: 5%}\n", "evictionSoftGracePeriod[memory.available]: Required value"},
		{header + "reservedSystemCPUs: one\n", `reservedSystemCPUs: Invalid value: "one"`},
		{header + "podLogsDir: /var/log/../pods\n", `podLogsDir: Invalid value: "/var/log/../pods"`},
		{header + "shutdownGracePeriodCriticalPods: 10s\n", "shutdownGracePeriodCriticalPods: Invalid value"},
		{header + "userNamespaces: {idsPerPod: 1000}\n", "userNamespaces.idsPerPod: Invalid value: 1000"},
		{header + "crashLoopBackOff: {maxContainerRestartPeriod: 10m}\n", "crashLoopBackOff.maxContainerRestartPeriod: Invalid value"},
		{header + "maxParallelImagePulls: 3\nserializeImagePulls: true\n", "maxParallelImagePulls: Invalid value: 3: must be 1 where serializeImagePulls is true"},
		{header + "preloadedImagesVerificationAllowlist: [a]\n", "needs imagePullCredentialsVerificationPolicy NeverVerifyAllowlistedImages"},
		{header + "memoryReservationPolicy: TieredReservation\n", "requires feature gate MemoryQoS"},
		{header + "containerRuntimeEndpoint: npipe:////./pipe/x\n", "containerRuntimeEndpoint: Invalid value"},
		{header + "logging: {format: xml}\n", `logging.format: Unsupported value: "xml"`},
		{header + "runOnce: true\n", "runOnce: Invalid value: true"},
		{header + "cgroupsPerQOS: false\nenforceNodeAllocatable: []\n", "cgroupsPerQOS: Berth cannot do this"},
		{header + "staticPodURL: http://x\n", "staticPodURL: Berth cannot do this"},
		{header + "enableControllerAttachDetach: false\n", "enableControllerAttachDetach: Berth cannot do this"},
	} {
		path := write(t, t.TempDir(), "config.yaml", c.content)
		_, err := Load([]string{"--config", path, v1ok})
		switch {
		case err == nil:
			t.Errorf("%q was accepted", c.content)
		case !strings.HasPrefix(err.Error(), path) || !strings.Contains(err.Error(), c.want):
			t.Errorf("%q:\n got %s\nwant %s: %s", c.content, err, path, c.want)
		}
	}
}

func TestEveryMistakeOfAFileIsNamed(t *testing.T) {
	path := write(t, t.TempDir(), "config.yaml", header+"maxPods: a\nport: b\nauthorization: {mode: [], webhook: {x: 1}}\n")
	_, err := Load([]string{"--config", path})
	if err == nil {
		t.Fatal("accepted")
	}
	want := path + ": authorization.mode: it must be a string, not array\n" +
		"authorization.webhook.x: unknown field\n" +
		"maxPods: it must be an integer (int32), not string\n" +
		"port: it must be an integer (int32), not string"
	if err.Error() != want {
		t.Errorf("got\n%s\nwant\n%s", err, want)
	}
}

func TestMistakesInADropInAreNamedByItsFile(t *testing.T) {
	for _, c := range []struct{ content, want string }{
		{"maxPods: 3\n", "apiVersion: it is missing"},
		{header + "maxpod: 3\n", "maxpod: unknown field"},
		{header + "maxPods: '3'\n", "maxPods: it must be an integer (int32), not string"},
		{header + "port: -1\n", "port: Invalid value: -1"},
	} {
		dir := t.TempDir()
		path := write(t, dir, "10-a.conf", c.content)
		_, err := Load([]string{"--config-dir", dir, v1ok})
		if err == nil || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: got %v, want %s: %s", c.content, err, path, c.want)
		}
	}
	if _, err := Load([]string{"--config-dir", filepath.Join(t.TempDir(), "absent")}); err == nil {
		t.Error("an absent --config-dir was accepted")
	}
}

func TestMistakesInFlagsAreNamedByTheFlag(t *testing.T) {
	for _, c := range []struct{ arg, want string }{
		{"--no-such", "unknown flag: --no-such"},
		{"--max-pods=many", `invalid argument "many" for "--max-pods" flag`},
		{"serve", "unknown command serve"},
		{"--node-labels=kubernetes.io/mine=1", `--node-labels: "kubernetes.io/mine"`},
		{"--node-labels=a=b c", `--node-labels: a="b c"`},
		{"--node-ip=10.0.0", `--node-ip "10.0.0": "10.0.0" is not an IP address`},
		{"--node-ip=10.0.0.1,10.0.0.2", "dual-stack pair"},
		{"--cloud-provider=aws", `--cloud-provider: "aws" must be external or empty`},
		{"--exit-on-lock-contention", "it needs --lock-file"},
		{"--image-credential-provider-config=/a", "either both are given or none"},
		{"--register-with-taints=a", `taint "a" must be KEY=VALUE:EFFECT`},
		{"--register-with-taints=a:NoSchedule,a=1:NoSchedule", "its key and effect are there already"},
		{"--reserved-memory=0:cpu=1", `"cpu" must be memory or hugepages-SIZE`},
		{"--address=here", `"here" is not a valid IP address`},
		{"--feature-gates=NoSuch=true", "featureGates (--feature-gates): unrecognized feature gate: NoSuch"},
		{"--config=/no/such/file", "read the kubelet configuration: open /no/such/file"},
		{"--eviction-hard=memory<5", `evictionHard[memory]: Unsupported value`},
		{"--version=maybe", `invalid argument "maybe" for "--version" flag`},
	} {
		_, err := Load([]string{c.arg, v1ok})
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %s", c.arg, err, c.want)
		}
	}
}

// Whatever a file has, it is an error or a configuration that passes its own
// checks, and reading it again gives the same.
func FuzzAFileIsRefusedOrWhole(f *testing.F) {
	f.Add(header)
	f.Add(header + "maxPods: 3\nevictionHard: {memory.available: 5%}\nreservedMemory: [{numaNode: 0, limits: {memory: 1Gi}}]\n")
	f.Add(header + "resolvConf: null\ncpuCFSQuotaPeriod: null\nlogging: {verbosity: 4}\nfeatureGates: {AllAlpha: true}\n")
	f.Add(header + "registerWithTaints: [{key: a}]\nauthentication: null\nmemoryThrottlingFactor: .nan\n")
	f.Fuzz(func(t *testing.T, content string) {
		path := write(t, t.TempDir(), "config.yaml", content)
		c, err := Load([]string{"--config", path, v1ok})
		if err != nil {
			if !strings.Contains(err.Error(), path) {
				t.Errorf("%q: the error names no file: %v", content, err)
			}
			return
		}
		if errs := validate(&c.KubeletConfiguration, c.gates); len(errs) > 0 {
			t.Errorf("%q was accepted with %v", content, errs)
		}
		again, err := Load([]string{"--config", path, v1ok})
		if err != nil {
			t.Fatalf("%q was refused the second time: %v", content, err)
		}
		if d := diffJSON(t, c.KubeletConfiguration, again.KubeletConfiguration); d != "" {
			t.Errorf("%q is read differently the second time:\n%s", content, d)
		}
	})
}

func FuzzFlagsAreRefusedOrWhole(f *testing.F) {
	f.Add("--node-labels=a=b,c=d")
	f.Add("--reserved-memory=0:memory=1Gi;1:hugepages-1Gi=2Gi")
	f.Add("--register-with-taints=a=b:NoSchedule,c:NoExecute,d-")
	f.Add("--eviction-soft=memory.available<5%")
	f.Add("--feature-gates=AllBeta=true")
	f.Add("--version")
	f.Fuzz(func(t *testing.T, arg string) {
		if strings.Contains(arg, "config") {
			return // reads files
		}
		c, err := Load([]string{arg, v1ok})
		if err != nil || c.Help || c.Version != "" {
			return
		}
		if errs := validate(&c.KubeletConfiguration, c.gates); len(errs) > 0 {
			t.Errorf("%q was accepted with %v", arg, errs)
		}
	})
}
