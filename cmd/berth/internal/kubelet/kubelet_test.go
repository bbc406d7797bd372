package kubelet

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-io/berth/agent/kubeletconfig"
	"github.com/berth-io/berth/cmd/berth/internal/config"
)

func berthYAML(t *testing.T, content string) config.Config {
	t.Helper()
	path := filepath.Join(t.TempDir(), "berth.yaml")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := config.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func merged(t *testing.T, berth, kubelet string, flags ...string) config.Config {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config.yaml")
	header := "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\nfailCgroupV1: false\n"
	if err := os.WriteFile(path, []byte(header+kubelet), 0o600); err != nil {
		t.Fatal(err)
	}
	k, err := kubeletconfig.Load(append([]string{"--config", path}, flags...))
	if err != nil {
		t.Fatal(err)
	}
	c, err := Merge(berthYAML(t, berth), k)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestWhatTheKubeletSaysGoesBeforeBerthYAML(t *testing.T) {
	c := merged(t, "nodeName: a\ncgroupDriver: cgroupfs\nclusterDNS: [10.0.0.1]\nmanifestDir: /m\n",
		"cgroupDriver: systemd\ncgroupRoot: /k\nclusterDNS: [10.96.0.10]\nclusterDomain: example\nstaticPodPath: /etc/kubernetes/manifests\npodLogsDir: /logs\nfileCheckFrequency: 5s\nmaxParallelImagePulls: 9\npodCIDR: 10.9.0.0/24\n",
		"--hostname-override=B", "--root-dir=/k", "--cert-dir=/c", "--node-ip=192.0.2.1,2001:db8::1", "--kubeconfig=/kc", "--bootstrap-kubeconfig=/bkc")
	got := map[string]any{
		"nodeName": c.NodeName, "driver": c.CgroupDriver, "root": c.CgroupRoot, "dns": c.ClusterDNS, "domain": c.ClusterDomain, "manifests": c.ManifestDir,
		"logs": c.PodLogsDir, "rescan": c.Rescan.Duration.String(), "pulls": c.Images.MaxParallelPulls, "kubeletDir": c.KubeletDir, "certDir": c.CertDir,
		"ips": c.NodeIPs, "kubeconfig": c.Kubeconfig, "bootstrap": c.BootstrapKubeconfig, "podCIDRs": c.Network.PodCIDRs, "roles": c.Roles,
	}
	want := map[string]any{
		"nodeName": "b", "driver": "systemd", "root": "/k", "dns": []string{"10.96.0.10"}, "domain": "example", "manifests": "/etc/kubernetes/manifests",
		"logs": "/logs", "rescan": "5s", "pulls": 9, "kubeletDir": "/k", "certDir": "/c",
		"ips": []string{"192.0.2.1", "2001:db8::1"}, "kubeconfig": "/kc", "bootstrap": "/bkc", "podCIDRs": []string{"10.9.0.0/24"},
		"roles": []string{"agent", "cri", "network"},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

func TestWhatTheKubeletLeavesAtItsDefaultStaysBerthYAMLs(t *testing.T) {
	c := merged(t, "nodeName: a\ncgroupDriver: systemd\nkubeletDir: /k\npodLogsDir: /logs\nclusterDomain: example\nrescan: 7s\nnodeIPs: [192.0.2.9]\nnetwork: {podCIDRs: [10.1.0.0/24]}\n", "podCIDR: 10.9.0.0/24\n", "--node-ip=::")
	got := []any{c.NodeName, c.CgroupDriver, c.KubeletDir, c.PodLogsDir, c.ClusterDomain, c.Rescan.Duration.String(), c.NodeIPs, c.Network.PodCIDRs}
	want := []any{"a", "systemd", "/k", "/logs", "example", "7s", []string{"192.0.2.9"}, []string{"10.1.0.0/24"}}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

func TestAnotherRuntimesSocketLeavesTheAgentOnly(t *testing.T) {
	for _, c := range []struct {
		endpoint string
		socket   string
		agent    bool
	}{
		{"", "/run/berth/cri.sock", false},
		{"unix:///run/berth/cri.sock", "/run/berth/cri.sock", false},
		{"unix:///var/run/berth/cri.sock", "/run/berth/cri.sock", false},
		{"/run/berth/cri.sock", "/run/berth/cri.sock", false},
		{"unix:///run/containerd/containerd.sock", "/run/containerd/containerd.sock", true},
	} {
		got := merged(t, "", "", "--container-runtime-endpoint="+c.endpoint)
		only := slices.Equal(got.Roles, []string{config.RoleAgent})
		if only != c.agent || got.CRISocket != c.socket {
			t.Errorf("%q: roles %v, socket %s", c.endpoint, got.Roles, got.CRISocket)
		}
	}
}

func TestWithoutAKubeletConfigurationNobodyIsLetInUnknown(t *testing.T) {
	if k, err := Load(berthYAML(t, "")); k != nil || err != nil {
		t.Errorf("without a kubeconfig: %v, %v", k, err)
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "10.conf")
	if err := os.WriteFile(file, []byte("apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\nfailCgroupV1: false\nmaxPods: 7\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	// A host with cgroup v1 needs the drop-in's failCgroupV1.
	for _, kubeconfig := range []string{"kubeconfig: /kc\n", ""} { // with a cluster and without
		yaml := kubeconfig + "kubeletConfigDir: " + dir + "\nkubeletDir: /k\nnodeIPs: [192.0.2.1]\n"
		k, err := Load(berthYAML(t, yaml))
		if err != nil {
			t.Fatal(err)
		}
		if k.MaxPods != 7 || k.CertDir != "/k/pki" || k.RootDir != "/k" || k.NodeIP != "192.0.2.1" {
			t.Errorf("%q: %+v", yaml, k.Flags)
		}
		if *k.Authentication.Anonymous.Enabled || k.Authorization.Mode != "Webhook" || k.ReadOnlyPort != 0 || len(k.EvictionHard) == 0 {
			t.Errorf("%q: anonymous %v, %s, port %d, eviction %v", yaml, *k.Authentication.Anonymous.Enabled, k.Authorization.Mode, k.ReadOnlyPort, k.EvictionHard)
		}
	}
}
