package kubeletconfig

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/pflag"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kubeletv1beta1 "k8s.io/kubelet/config/v1beta1"
)

// facts are the kubelet's own, from tests/tools/kubeletfacts.
type facts struct {
	Flags []struct {
		Name, Shorthand, Type, Default, NoValue string
		Deprecated                              bool
	}
	FlagDefaults, FileDefaults kubeletv1beta1.KubeletConfiguration
	EvictionHard               map[string]string
	FeatureGates               map[string]struct {
		Default, Locked bool
		Stage           string
		Dependencies    []string
	}
}

func kubelet(t *testing.T) facts {
	t.Helper()
	data, err := os.ReadFile("testdata/kubelet.json")
	if err != nil {
		t.Fatal(err)
	}
	var f facts
	if err := json.Unmarshal(data, &f); err != nil {
		t.Fatal(err)
	}
	return f
}

const header = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n"

// write makes a file and returns its path.
func write(t *testing.T, dir, name, content string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// v1ok is needed where the tests run on a host with cgroup v1.
const v1ok = "--fail-cgroupv1=false"

func load(t *testing.T, args ...string) *Config {
	t.Helper()
	c, err := Load(append(args, v1ok))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestEveryFlagOfTheKubeletIsThereWithItsTypeAndDefault(t *testing.T) {
	c := newConfig()
	setLegacyDefaults(&c.KubeletConfiguration)
	var seccomp bool
	fs := newFlagSet(c, &seccomp)
	known := map[string]bool{}
	for _, want := range kubelet(t).Flags {
		known[want.Name] = true
		got := fs.Lookup(want.Name)
		if got == nil {
			t.Errorf("--%s is missing", want.Name)
			continue
		}
		if got.Value.Type() != want.Type {
			t.Errorf("--%s has type %s, want %s", want.Name, got.Value.Type(), want.Type)
		}
		if got.NoOptDefVal != want.NoValue || got.Shorthand != want.Shorthand {
			t.Errorf("--%s alone means %q (-%s), want %q (-%s)", want.Name, got.NoOptDefVal, got.Shorthand, want.NoValue, want.Shorthand)
		}
		forgotten := slices.ContainsFunc(flagWarnings([]string{want.Name}), func(string) bool { return true })
		if !forgotten && got.DefValue != want.Default && want.Name != "container-runtime-endpoint" {
			t.Errorf("--%s is %q by default, want %q", want.Name, got.DefValue, want.Default)
		}
	}
	fs.VisitAll(func(f *pflag.Flag) {
		if !known[f.Name] && f.Name != "help" && f.Name != "pod-infra-container-image" {
			t.Errorf("--%s is no flag of the kubelet", f.Name)
		}
	})
}

func TestDefaultsAreThoseOfTheKubelet(t *testing.T) {
	k := kubelet(t)
	endpoint := k.FileDefaults.ContainerRuntimeEndpoint
	file := Default().KubeletConfiguration
	file.ContainerRuntimeEndpoint = endpoint
	k.FileDefaults.EvictionHard = k.EvictionHard
	if d := diffJSON(t, k.FileDefaults, file); d != "" {
		t.Errorf("with an empty file (-kubelet +Berth):\n%s", d)
	}
	flags := load(t).KubeletConfiguration
	flags.ContainerRuntimeEndpoint = endpoint
	*flags.FailCgroupV1 = true
	k.FlagDefaults.EnableSystemLogQuery = nil // nil and false are the same
	if d := diffJSON(t, k.FlagDefaults, flags); d != "" {
		t.Errorf("with flags only (-kubelet +Berth):\n%s", d)
	}
}

func diffJSON(t *testing.T, want, got kubeletv1beta1.KubeletConfiguration) string {
	t.Helper()
	var trees [2]any
	for i, c := range []kubeletv1beta1.KubeletConfiguration{want, got} {
		data, err := json.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(data, &trees[i]); err != nil {
			t.Fatal(err)
		}
	}
	return cmp.Diff(trees[0], trees[1])
}

func TestFeatureGatesAreThoseOfTheKubelet(t *testing.T) {
	got := knownGates()
	for name, want := range kubelet(t).FeatureGates {
		if name == allAlpha || name == allBeta {
			continue
		}
		g, found := got[name]
		stage := strings.ToLower(want.Stage)
		if stage == "" {
			stage = "ga"
		}
		if !found || g.on != want.Default || g.locked != want.Locked || g.stage != stage || !slices.Equal(g.needs, want.Dependencies) {
			t.Errorf("%s: got %+v, want %+v", name, g, want)
		}
		delete(got, name)
	}
	for name := range got {
		t.Errorf("%s is no feature gate of the kubelet", name)
	}
	for _, name := range honouredGates {
		if _, found := knownGates()[name]; !found {
			t.Errorf("the honoured gate %s is no feature gate of the kubelet", name)
		}
	}
}

// leaves are the paths of a type's fields, as the configuration file has them.
func leaves(t reflect.Type, path string) []string {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	leaf := t == reflect.TypeFor[metav1.Duration]() || t == reflect.TypeFor[resource.QuantityValue]() || t.Name() == "TimeOrMetaDuration"
	if t.Kind() != reflect.Struct || leaf {
		return []string{path}
	}
	var out []string
	for i := range t.NumField() {
		f := t.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case f.Type == reflect.TypeFor[metav1.TypeMeta](), name == "-":
		case name == "":
			out = append(out, leaves(f.Type, path)...)
		case path == "":
			out = append(out, leaves(f.Type, name)...)
		default:
			out = append(out, leaves(f.Type, path+"."+name)...)
		}
	}
	return out
}

func TestTheTableHasEveryFieldOnce(t *testing.T) {
	want := leaves(reflect.TypeFor[kubeletv1beta1.KubeletConfiguration](), "")
	var got []string
	for _, f := range Fields() {
		got = append(got, f.Path)
		if f.Effect != Honoured && f.Effect != NoEffect && f.Effect != NotYet && f.Effect != Refused {
			t.Errorf("%s: %q is no effect", f.Path, f.Effect)
		}
		if (f.Effect == NoEffect || f.Effect == Refused) && f.Note == "" {
			t.Errorf("%s: it must say why it is %s", f.Path, f.Effect)
		}
	}
	slices.Sort(got)
	slices.Sort(want)
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("fields (-type +table):\n%s", d)
	}
}

func TestFlagsGoBeforeDropInsBeforeTheFileBeforeDefaults(t *testing.T) {
	dir := t.TempDir()
	file := write(t, dir, "config.yaml", header+`
maxPods: 20
podsPerCore: 3
port: 20
clusterDNS: [10.0.0.1, 10.0.0.2]
featureGates: {NodeSwap: true, MemoryQoS: true}
systemReserved: {cpu: 100m, memory: 1Gi}
evictionHard: {memory.available: 200Mi}
resolvConf: resolv.conf
nodeStatusUpdateFrequency: 20s
kubeAPIQPS: 7
`)
	write(t, dir, "conf.d/20-b.conf", header+"maxPods: 50\nclusterDNS: [10.0.0.9]\nsystemReserved: {memory: 2Gi}\nkubeAPIQPS: null\nstaticPodPath: pods\n")
	write(t, dir, "conf.d/10-a.conf", header+"maxPods: 40\nport: 40\nfeatureGates: {MemoryQoS: false}\n")
	write(t, dir, "conf.d/30/c.conf", `{"kind":"KubeletConfiguration","apiVersion":"kubelet.config.k8s.io/v1beta1","oomScoreAdj":-500}`)
	write(t, dir, "conf.d/40-c.yaml", "nonsense")
	c := load(t, "--config", file, "--config-dir", filepath.Join(dir, "conf.d"), "--port=60", "--feature-gates=KubeletPSI=true", "--node-labels=a=b", "--node-labels=c=d")
	if c.MaxPods != 50 || c.PodsPerCore != 3 || c.Port != 60 {
		t.Errorf("maxPods %d, podsPerCore %d, port %d; want 50, 3, 60", c.MaxPods, c.PodsPerCore, c.Port)
	}
	for _, v := range []struct{ name, got, want any }{
		{"clusterDNS", c.ClusterDNS, []string{"10.0.0.9"}},
		{"featureGates", c.FeatureGates, map[string]bool{"NodeSwap": true, "MemoryQoS": false, "KubeletPSI": true}},
		{"systemReserved", c.SystemReserved, map[string]string{"cpu": "100m", "memory": "2Gi"}},
		{"evictionHard", c.EvictionHard, map[string]string{"memory.available": "200Mi"}},
		{"resolvConf", *c.ResolverConfig, filepath.Join(dir, "resolv.conf")},
		{"staticPodPath", c.StaticPodPath, "pods"}, // of a drop-in: as it is
		{"kubeAPIQPS", *c.KubeAPIQPS, int32(50)},
		{"oomScoreAdj", *c.OOMScoreAdj, int32(-500)},
		{"nodeStatusReportFrequency", c.NodeStatusReportFrequency.Duration.String(), "20s"},
		{"authorization.mode", c.Authorization.Mode, kubeletv1beta1.KubeletAuthorizationModeWebhook},
		{"node labels", c.NodeLabels, map[string]string{"a": "b", "c": "d"}},
		{"sources", c.Sources, []string{file, filepath.Join(dir, "conf.d/10-a.conf"), filepath.Join(dir, "conf.d/20-b.conf"), filepath.Join(dir, "conf.d/30/c.conf")}},
	} {
		if d := cmp.Diff(v.want, v.got); d != "" {
			t.Errorf("%s (-want +got):\n%s", v.name, d)
		}
	}
}

func TestFlagsParseAsTheKubeletDoes(t *testing.T) {
	c := load(t,
		"--register-with-taints=node-role=x:NoSchedule,b:NoExecute", "--reserved-memory=0:memory=1Gi,hugepages-2Mi=2Gi", "--reserved-memory", "1:memory=2Gi",
		"--eviction-hard=memory.available<5%,nodefs.available<1Gi", "--kube-reserved", "cpu=200m", "--system-reserved=memory=1Gi,pid=1000",
		"--cluster-dns=10.0.0.1,10.0.0.2", "--cluster_dns", "10.0.0.3", "--cpu-manager-policy-options=a=b,c", "--seccomp-default", "-v", "4",
		"--cgroup-driver=systemd", "--node-ip", "192.0.2.1,2001:db8::1", "--vmodule=a=1,b=2", "--tls-min-version", "VersionTLS13", "--address", "")
	ips, err := c.NodeIPs()
	if err != nil || len(ips) != 2 {
		t.Errorf("node IPs: %v, %v", ips, err)
	}
	gi := func(n string) v1.ResourceList { return v1.ResourceList{v1.ResourceMemory: resource.MustParse(n)} }
	both := gi("1Gi")
	both["hugepages-2Mi"] = resource.MustParse("2Gi")
	for _, v := range []struct{ name, got, want any }{
		{"taints", c.RegisterWithTaints, []v1.Taint{{Key: "node-role", Value: "x", Effect: "NoSchedule"}, {Key: "b", Effect: "NoExecute"}}},
		{"reserved memory", c.ReservedMemory, []kubeletv1beta1.MemoryReservation{{NumaNode: 0, Limits: both}, {NumaNode: 1, Limits: gi("2Gi")}}},
		{"evictionHard", c.EvictionHard, map[string]string{"memory.available": "5%", "nodefs.available": "1Gi"}},
		{"clusterDNS", c.ClusterDNS, []string{"10.0.0.1", "10.0.0.2", "10.0.0.3"}},
		{"options", c.CPUManagerPolicyOptions, map[string]string{"a": "b,c"}},
		{"systemReserved", c.SystemReserved, map[string]string{"memory": "1Gi", "pid": "1000"}},
		{"seccompDefault", *c.SeccompDefault, true},
		{"verbosity", int(c.Logging.Verbosity), 4},
		{"address", c.Address, "0.0.0.0"},
	} {
		if d := cmp.Diff(v.want, v.got); d != "" {
			t.Errorf("%s (-want +got):\n%s", v.name, d)
		}
	}
}

func TestTheValuesOfFlagsAreThoseOfTheCommandLineWhateverFilesSay(t *testing.T) {
	file := write(t, t.TempDir(), "config.yaml", header+"maxPods: 7\nport: 8\n")
	c := load(t, "--config", file, "--port=9", "--node-labels=a=b")
	for name, want := range map[string]string{"config": file, "port": "9", "max-pods": "110", "node-labels": "a=b", "register-node": "true"} {
		if got := c.Given[name]; got != want {
			t.Errorf("--%s is %q, want %q", name, got, want)
		}
	}
	if c.MaxPods != 7 || c.Port != 9 {
		t.Errorf("maxPods %d, port %d", c.MaxPods, c.Port)
	}
}

func TestDeadContainersStayAsFlagsSay(t *testing.T) {
	file := write(t, t.TempDir(), "config.yaml", header)
	for _, c := range []struct {
		args []string
		want Flags
	}{
		{nil, Flags{MaxDeadPerContainer: 1, MaxDead: -1}},
		{[]string{"--maximum-dead-containers-per-container=3", "--maximum-dead-containers=20", "--minimum-container-ttl-duration=90s"},
			Flags{MaxDeadPerContainer: 3, MaxDead: 20, MinDeadAge: 90 * time.Second}},
	} {
		k := load(t, append([]string{"--config", file}, c.args...)...)
		got := Flags{MaxDeadPerContainer: k.MaxDeadPerContainer, MaxDead: k.MaxDead, MinDeadAge: k.MinDeadAge}
		if d := cmp.Diff(c.want, got); d != "" || len(k.Warnings) > 0 {
			t.Errorf("%v (-want +got):\n%s%v", c.args, d, k.Warnings)
		}
	}
}

func TestWhatHasNoEffectIsNamed(t *testing.T) {
	file := write(t, t.TempDir(), "config.yaml", header+"hairpinMode: none\nsyncFrequency: 1m\nlogging: {vmodule: [{filePattern: x, verbosity: 3}]}\nfeatureGates: {EventedPLEG: true, ContextualLogging: true}\n")
	c := load(t, "--config", file, "--pod-infra-container-image=pause", "--housekeeping-interval", "5s")
	want := []string{
		"flag --housekeeping-interval has no effect",
		"flag --pod-infra-container-image has no effect",
		"hairpinMode has no effect: the network plugin's; the kubelet does nothing with it either",
		"logging.vmodule has no effect: verbosity is the same for all files",
		"featureGates.EventedPLEG has no effect: Berth does the same with and without it",
	}
	if d := cmp.Diff(want, c.Warnings); d != "" {
		t.Errorf("warnings (-want +got):\n%s", d)
	}
}

func TestNothingIsReadForHelpAndVersion(t *testing.T) {
	for _, c := range []struct {
		args    []string
		help    bool
		version string
	}{
		{[]string{"--version", "--config=/absent"}, false, "true"},
		{[]string{"--version=raw"}, false, "raw"},
		{[]string{"--version=v1.35.0"}, false, "v1.35.0"},
		{[]string{"-h", "--config=/absent"}, true, ""},
	} {
		got, err := Load(c.args)
		if err != nil || got.Help != c.help || got.Version != c.version {
			t.Errorf("%v: %+v, %v", c.args, got, err)
		}
	}
	if u := Usage(); !strings.Contains(u, "--bootstrap-kubeconfig") {
		t.Errorf("usage has no flags:\n%s", u)
	}
}

func TestAHostHasNotJoinedAsLongAsNoneOfItsFilesIsThere(t *testing.T) {
	dir := t.TempDir()
	config, kubeconfig, bootstrap := filepath.Join(dir, "config.yaml"), filepath.Join(dir, "kubelet.conf"), filepath.Join(dir, "bootstrap.conf")
	unit := []string{"--bootstrap-kubeconfig=" + bootstrap, "--kubeconfig=" + kubeconfig, "--config=" + config}
	for _, c := range []struct {
		name  string
		args  []string
		files []string
		want  bool
	}{
		{"nothing is there", unit, nil, true},
		{"without bootstrap", unit[1:], nil, true},
		{"a token is there", unit, []string{bootstrap}, false},
		{"only the configuration is there", unit, []string{config}, false},
		{"the configuration was lost", unit, []string{kubeconfig}, false},
		{"no cluster is meant", unit[2:], nil, false},
		{"no configuration is meant", unit[:2], nil, false},
		{"a flag is wrong", append(slices.Clone(unit), "--nope"), nil, false},
		{"the version is asked for", append(slices.Clone(unit), "--version"), nil, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, f := range c.files {
				if err := os.WriteFile(f, nil, 0o600); err != nil {
					t.Fatal(err)
				}
				defer os.Remove(f)
			}
			if got := NotJoined(c.args); got != c.want {
				t.Errorf("got %v", got)
			}
		})
	}
}
