package conflist_test

import (
	"bytes"
	"flag"
	"net/netip"
	"os"
	"testing"

	"github.com/containernetworking/cni/libcni"

	"github.com/berth-io/berth/cni/conflist"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func TestRender(t *testing.T) {
	for _, test := range []struct {
		golden string
		cfg    conflist.Config
	}{
		{"testdata/default.conflist", conflist.Config{PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.88.0.0/16")}}},
		{"testdata/dualstack.conflist", conflist.Config{Name: "pods", Bridge: "br-pods", MTU: 1450, DataDir: "/var/lib/pods",
			PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.88.0.0/24"), netip.MustParsePrefix("fd00:88::/64")}}},
	} {
		got, err := conflist.Render(test.cfg)
		if err != nil {
			t.Fatal(err)
		}
		if *update {
			if err := os.WriteFile(test.golden, got, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(test.golden)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s differs (go test -update rewrites it):\n%s", test.golden, got)
		}
		if _, err := libcni.ConfListFromBytes(got); err != nil {
			t.Errorf("%s: libcni: %v", test.golden, err)
		}
	}
}

func TestRenderRefusesBadPodCIDRs(t *testing.T) {
	for _, test := range []struct {
		cidrs []netip.Prefix
		want  string
	}{
		{nil, "no pod CIDR: give at least one subnet for pods"},
		{[]netip.Prefix{netip.MustParsePrefix("10.88.0.1/16")}, "pod CIDR 10.88.0.1/16 is not a subnet: write 10.88.0.0/16"},
		{[]netip.Prefix{netip.MustParsePrefix("10.88.0.0/16"), netip.MustParsePrefix("10.89.0.0/16")}, "pod CIDR 10.89.0.0/16: only one for each of IPv4 and IPv6"},
	} {
		if _, err := conflist.Render(conflist.Config{PodCIDRs: test.cidrs}); err == nil || err.Error() != test.want {
			t.Errorf("Render(%v): %v, want: %s", test.cidrs, err, test.want)
		}
	}
}
