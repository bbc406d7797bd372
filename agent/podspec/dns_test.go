package podspec

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"sigs.k8s.io/yaml"
)

func TestDNS(t *testing.T) {
	standalone := testNode
	standalone.ClusterDNS = nil
	noResolv := testNode
	noResolv.HostResolv = nil

	cluster := "10.96.0.10; ns.svc.cluster.local svc.cluster.local cluster.local example.com lan; ndots:5"
	host := "9.9.9.9; example.com lan; ndots:1 rotate"
	for _, tt := range []struct {
		name    string
		node    Node
		spec    string
		want    string // servers; searches; options
		warning string
	}{
		{"ClusterFirst asks the cluster first", testNode, `{dnsPolicy: ClusterFirst}`, cluster, ""},
		{"ClusterFirst in the host's network is the host's", testNode, `{dnsPolicy: ClusterFirst, hostNetwork: true}`, host, ""},
		{"ClusterFirstWithHostNet asks the cluster from the host's network too", testNode, `{dnsPolicy: ClusterFirstWithHostNet, hostNetwork: true}`, cluster, ""},
		{"Default is the host's", testNode, `{dnsPolicy: Default}`, host, ""},
		{"None is empty", testNode, `{dnsPolicy: None}`, "; ; ", ""},
		{"None has what dnsConfig says", testNode, `{dnsPolicy: None, dnsConfig: {nameservers: [1.1.1.1], searches: [a.b], options: [{name: ndots, value: "1"}]}}`, "1.1.1.1; a.b; ndots:1", ""},
		{"dnsConfig adds, and overrides options by name", testNode,
			`{dnsPolicy: ClusterFirst, dnsConfig: {nameservers: [1.1.1.1, 10.96.0.10], searches: [lan, more], options: [{name: ndots, value: "2"}, {name: edns0}]}}`,
			"10.96.0.10 1.1.1.1; ns.svc.cluster.local svc.cluster.local cluster.local example.com lan more; ndots:2 edns0", ""},
		{"without a cluster ClusterFirst falls back to the host with a warning", standalone, `{dnsPolicy: ClusterFirst}`, host,
			`MissingClusterDNS: pod: "web_ns(uid-1)". kubelet does not have ClusterDNS IP configured and cannot create Pod using "ClusterFirst" policy. Falling back to "Default" policy.`},
		{"a node without resolv.conf resolves on its loopbacks", noResolv, `{dnsPolicy: Default}`, "127.0.0.1 ::1; .; ", ""},
		{"a fourth name server is dropped with a warning", testNode, `{dnsPolicy: Default, dnsConfig: {nameservers: [1.1.1.1, 1.1.1.2, 1.1.1.3]}}`,
			"9.9.9.9 1.1.1.1 1.1.1.2; example.com lan; ndots:1 rotate",
			"DNSConfigForming: Nameserver limits were exceeded, some nameservers have been omitted, the applied nameserver line is: 9.9.9.9 1.1.1.1 1.1.1.2"},
		{"a search path longer than a name can be is dropped", testNode, `{dnsPolicy: None, dnsConfig: {nameservers: [1.1.1.1], searches: [` + strings.Repeat("a", 254) + `, b]}}`,
			"1.1.1.1; b; ", "DNSConfigForming: Search Line limits were exceeded, some search paths have been omitted, the applied search line is: b"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg, warnings := DNS(dnsPod(t, tt.spec), tt.node)
			got := strings.Join([]string{strings.Join(cfg.Servers, " "), strings.Join(cfg.Searches, " "), strings.Join(cfg.Options, " ")}, "; ")
			if got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
			var said []string
			for _, w := range warnings {
				said = append(said, w.Reason+": "+w.Message)
			}
			if s := strings.Join(said, "\n"); s != tt.warning {
				t.Errorf("warning %q, want %q", s, tt.warning)
			}
		})
	}
}

func TestSearchListsAreCutToTheLimits(t *testing.T) {
	for _, tt := range []struct {
		name         string
		length, n    int
		wantSearches int
	}{
		{"32 paths fit", 5, 32, 32},
		{"of 33 paths 32 are kept", 5, 33, 32},
		{"2048 characters are kept", 100, 32, 20},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg := &runtimeapi.DNSConfig{}
			for i := range tt.n {
				cfg.Searches = append(cfg.Searches, fmt.Sprintf("%0*d", tt.length, i))
			}
			warnings := fitDNSLimits(cfg)
			if len(cfg.Searches) != tt.wantSearches {
				t.Errorf("%d search paths are kept, want %d", len(cfg.Searches), tt.wantSearches)
			}
			if cut := tt.wantSearches < tt.n; cut != (len(warnings) == 1) {
				t.Errorf("warnings: %v", warnings)
			}
		})
	}
}

func TestResolvConfIsReadAsTheResolverReadsIt(t *testing.T) {
	cfg := parseResolvConf([]byte("; note\n# note\nnameserver 1.1.1.1 # x\n nameserver\t2.2.2.2\nnameserver\nsearch a b\nsearch c. .\noptions ndots:1 rotate\noptions ndots:3\nsortlist x\n"))
	if !slices.Equal(cfg.Servers, []string{"1.1.1.1", "2.2.2.2"}) || !slices.Equal(cfg.Searches, []string{"c"}) ||
		!slices.Equal(cfg.Options, []string{"ndots:3", "rotate"}) {
		t.Errorf("parsed %v", cfg)
	}
}

func FuzzResolvConf(f *testing.F) {
	f.Add([]byte("nameserver 1.1.1.1\nsearch a b\noptions ndots:1\n"))
	f.Add([]byte("search\noptions\nnameserver"))
	f.Fuzz(func(t *testing.T, content []byte) {
		cfg := parseResolvConf(content)
		fitDNSLimits(cfg)
		if len(cfg.Servers) > maxNameservers || len(strings.Join(cfg.Searches, " ")) > maxSearchChars {
			t.Errorf("limits not kept: %v", cfg)
		}
		for _, s := range slices.Concat(cfg.Servers, cfg.Searches, cfg.Options) {
			if s != "" && len(strings.Fields(s)) != 1 {
				t.Errorf("%q would break a resolv.conf line", s)
			}
		}
	})
}

func dnsPod(t *testing.T, spec string) *v1.Pod {
	t.Helper()
	pod := &v1.Pod{}
	pod.Name, pod.Namespace, pod.UID = "web", "ns", "uid-1"
	if err := yaml.UnmarshalStrict([]byte(spec), &pod.Spec); err != nil {
		t.Fatal(err)
	}
	return pod
}
