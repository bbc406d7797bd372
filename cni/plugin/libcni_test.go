package plugin_test

import (
	"context"
	"net/netip"
	"path/filepath"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"

	"github.com/berth-io/berth/cni/conflist"
	"github.com/berth-io/berth/cni/internal/netnstest"
)

func TestARuntimeRunsTheDefaultConflistByExec(t *testing.T) {
	binary := buildPlugin(t, "")
	l := newLab(t)
	file, err := conflist.Render(conflist.Config{DataDir: l.dataDir, Name: "podnet", PodCIDRs: []netip.Prefix{
		netip.MustParsePrefix("10.88.0.0/24"), netip.MustParsePrefix("fd00:88::/64")}})
	if err != nil {
		t.Fatal(err)
	}
	list, err := libcni.ConfListFromBytes(file)
	if err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	runtime := libcni.NewCNIConfigWithCacheDir([]string{filepath.Dir(binary)}, t.TempDir(), nil)
	sandbox := func(id string, pod *netnstest.NS) *libcni.RuntimeConf {
		return &libcni.RuntimeConf{ContainerID: id, NetNS: pod.Path, IfName: "eth0",
			CapabilityArgs: map[string]any{"portMappings": []map[string]any{{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}}}}
	}
	a, b := netnstest.New(t), netnstest.New(t)
	for _, step := range []struct {
		name string
		do   func() error
	}{
		{"validate", func() error { _, err := runtime.ValidateNetworkList(ctx, list); return err }},
		{"STATUS", func() error { return runtime.GetStatusNetworkList(ctx, list) }},
		{"ADD a", func() error { _, err := runtime.AddNetworkList(ctx, list, sandbox("a", a)); return err }},
		{"CHECK a", func() error { return runtime.CheckNetworkList(ctx, list, sandbox("a", a)) }},
		{"STATUS", func() error { return runtime.GetStatusNetworkList(ctx, list) }},
		{"DEL a", func() error { return runtime.DelNetworkList(ctx, list, sandbox("a", a)) }},
		{"DEL a again", func() error { return runtime.DelNetworkList(ctx, list, sandbox("a", a)) }},
		{"ADD b", func() error { _, err := runtime.AddNetworkList(ctx, list, sandbox("b", b)); return err }},
		{"GC", func() error {
			return runtime.GCNetworkList(ctx, list, &libcni.GCArgs{ValidAttachments: []types.GCAttachment{}})
		}},
	} {
		if err := l.host.Do(step.do); err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
	}
	l.wantNothing(t)
	wantNoRules(t, l, "b")
}
