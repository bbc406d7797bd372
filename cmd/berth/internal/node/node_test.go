package node

import (
	"crypto/tls"
	"fmt"
	"slices"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/berth-io/berth/agent/gc"
	"github.com/berth-io/berth/agent/kubeletconfig"
	"github.com/berth-io/berth/agent/logrotate"
	"github.com/berth-io/berth/agent/podspec"
)

func TestAnExternalCloudProviderHasYetToSayWhatTheNodeIs(t *testing.T) {
	host := podspec.Node{Name: "n", HostIPs: []string{"192.0.2.1", "2001:db8::1"}}
	uninitialized := v1.Taint{Key: "node.cloudprovider.kubernetes.io/uninitialized", Value: "true", Effect: v1.TaintEffectNoSchedule}
	for _, c := range []struct {
		provider, nodeIP, provided string
		addresses                  int
	}{
		{"", "192.0.2.1,2001:db8::1", "", 3},
		{"external", "192.0.2.1,2001:db8::1", "192.0.2.1,2001:db8::1", 3},
		{"external", "", "", 1}, // the host's name
	} {
		k := kubeletconfig.Default()
		k.CloudProvider, k.NodeIP = c.provider, c.nodeIP
		got, err := registration(k, host)
		if err != nil {
			t.Fatal(err)
		}
		if slices.Contains(got.Taints, uninitialized) != (c.provider != "") || got.Annotations["alpha.kubernetes.io/provided-node-ip"] != c.provided {
			t.Errorf("%+v: registers with %v, %v", c, got.Taints, got.Annotations)
		}
		if addresses := statusAddresses(k, host); len(addresses) != c.addresses {
			t.Errorf("%+v: has %v", c, addresses)
		}
	}
}

func TestTLSLimitsAreRead(t *testing.T) {
	k := kubeletconfig.Default()
	k.TLSMinVersion, k.TLSCipherSuites, k.TLSCurvePreferences = "VersionTLS13", []string{"TLS_AES_128_GCM_SHA256"}, []int32{29, 4588}
	minVersion, suites, curves, err := tlsLimits(k)
	if err != nil || minVersion != tls.VersionTLS13 || !slices.Equal(suites, []uint16{tls.TLS_AES_128_GCM_SHA256}) || !slices.Equal(curves, []tls.CurveID{tls.X25519, tls.X25519MLKEM768}) {
		t.Errorf("%x, %x, %v, %v", minVersion, suites, curves, err)
	}
	k.TLSCurvePreferences = []int32{-1}
	if _, _, _, err := tlsLimits(k); err == nil {
		t.Error("a curve that cannot be is taken")
	}
}

func TestLogsAreRotatedByTheKubeletsDefaultsOrByWhatItIsTold(t *testing.T) {
	told := kubeletconfig.Default()
	told.ContainerLogMaxSize = "-1"
	*told.ContainerLogMaxFiles, *told.ContainerLogMaxWorkers = 9, 3
	told.ContainerLogMonitorInterval.Duration = time.Minute
	for _, test := range []struct {
		kubelet *kubeletconfig.Config
		want    logrotate.Config
	}{
		{nil, logrotate.Config{MaxBytes: 10 << 20, MaxFiles: 5, Workers: 1, Every: 10 * time.Second}},
		{told, logrotate.Config{MaxBytes: -1, MaxFiles: 9, Workers: 3, Every: time.Minute}},
	} {
		if got, err := logRotation(test.kubelet); err != nil || got != test.want {
			t.Errorf("%+v, %v, want %+v", got, err, test.want)
		}
	}
}

func TestANodeWithoutAClusterIsShortLaterUnlessItIsTold(t *testing.T) {
	told := kubeletconfig.Default()
	told.EvictionHard = map[string]string{"nodefs.available": "10%"}
	told.MinDeadAge, told.MaxDeadPerContainer, told.MaxDead = time.Minute, 3, 20
	for _, test := range []struct {
		kubelet *kubeletconfig.Config
		dead    gc.ContainerPolicy
		want    string
	}{
		{nil, gc.ContainerPolicy{MaxPerPodContainer: 1, MaxContainers: -1}, "[imagefs.available < 1Gi imagefs.inodesFree < 0.01 memory.available < 100Mi nodefs.available < 1Gi nodefs.inodesFree < 0.01]"},
		{told, gc.ContainerPolicy{MinAge: time.Minute, MaxPerPodContainer: 3, MaxContainers: 20}, "[nodefs.available < 0.1]"},
	} {
		p, err := pressureSettings(test.kubelet)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, h := range p.Evict.Thresholds {
			least := h.Value.Text
			if h.Value.Fraction > 0 {
				least = fmt.Sprint(float32(h.Value.Fraction))
			}
			got = append(got, fmt.Sprintf("%s < %s", h.Signal, least))
		}
		slices.Sort(got)
		if fmt.Sprint(got) != test.want || p.Images.HighPercent != 85 || p.Containers != test.dead || !p.Evict.LocalStorage {
			t.Errorf("%v, %+v, %+v", got, p.Images, p.Containers)
		}
	}
}

func TestSwapIsOnlyMentionedWhereThereIsSome(t *testing.T) {
	for _, bytes := range []int64{0, 128 << 20} {
		info, err := hostInfo(bytes)
		if err != nil {
			t.Fatal(err)
		}
		if (info.Swap != nil) != (bytes > 0) || bytes > 0 && *info.Swap.Capacity != bytes {
			t.Errorf("%d bytes: %+v", bytes, info.Swap)
		}
	}
}
