package portmap

import (
	"bytes"
	"context"
	"flag"
	"net/netip"
	"os"
	"strings"
	"testing"

	"sigs.k8s.io/knftables"

	"github.com/berth-io/berth/cni/internal/netnstest"
	"github.com/berth-io/berth/cni/netfilter"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// sample has every kind of mapping.
func sample() Attachment {
	return Attachment{
		Tag:       Tag("podnet", strings.Repeat("a", 64), "eth0"),
		Bridge:    "berth0",
		Addresses: []netip.Prefix{netip.MustParsePrefix("10.88.0.5/16"), netip.MustParsePrefix("fd00:88::5/64")},
		Mappings: []Mapping{
			{HostPort: 8080, ContainerPort: 80, Protocol: "tcp"},
			{HostPort: 5353, ContainerPort: 53, Protocol: "udp", HostIP: netip.MustParseAddr("192.168.50.1")},
			{HostPort: 9899, ContainerPort: 9899, Protocol: "sctp", HostIP: netip.MustParseAddr("::")},
		},
	}
}

func golden(t *testing.T, file, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal([]byte(got), want) {
		t.Errorf("%s differs (go test -update rewrites it):\n%s", file, got)
	}
}

func TestNFTablesRules(t *testing.T) {
	fake := knftables.NewFake(knftables.InetFamily, netfilter.Table)
	host := netnstest.New(t) // what rules there are already is asked of the kernel
	host.Must(t, func() error { return NewNFTables(fake).Add(context.Background(), sample()) })
	golden(t, "testdata/nftables.txt", fake.Dump())
}

func TestIPTablesRules(t *testing.T) {
	var out strings.Builder
	for _, v6 := range []bool{false, true} {
		for _, r := range iptablesRules(sample(), v6) {
			program := "iptables"
			if v6 {
				program = "ip6tables"
			}
			out.WriteString(program + " -t nat -A " + r.chain + " " + strings.Join(r.spec, " ") + "\n")
		}
	}
	golden(t, "testdata/iptables.txt", out.String())
}

func TestTagsFitIntoAComment(t *testing.T) {
	for _, test := range []struct{ network, sandbox, ifName, want string }{
		{"podnet", "abc", "eth0", "podnet:abc:eth0"},
		{strings.Repeat("n", 200), "abc", "eth0", ""},
		{"podnet", strings.Repeat("x", 200), "eth0", ""},
	} {
		got := Tag(test.network, test.sandbox, test.ifName)
		if len(got) > 122 {
			t.Errorf("tag of %d bytes: %s", len(got), got)
		}
		if !strings.HasPrefix(got, prefix(test.network)) {
			t.Errorf("tag %s lacks the prefix of its network", got)
		}
		if test.want != "" && got != test.want {
			t.Errorf("tag %s, want %s", got, test.want)
		}
	}
}

func TestRemoveAndPruneTouchOnlyWhatTheyShould(t *testing.T) {
	for name, b := range map[string]func(t *testing.T) Backend{
		"nftables": func(t *testing.T) Backend {
			nft, err := netfilter.OpenNFTables()
			if err != nil {
				t.Skip(err)
			}
			return NewNFTables(nft)
		},
		"iptables": func(t *testing.T) Backend {
			if _, err := netfilter.OpenIPTables(true); err != nil {
				t.Skip(err)
			}
			return NewIPTables()
		},
	} {
		t.Run(name, func(t *testing.T) {
			ctx := context.Background()
			backend := b(t)
			host := netnstest.New(t)
			attachment := func(network, sandbox string) Attachment {
				a := sample()
				a.Tag = Tag(network, sandbox, "eth0")
				return a
			}
			a, b, other := attachment("podnet", "a"), attachment("podnet", "b"), attachment("other", "a")
			host.Must(t, func() error { return backend.Remove(ctx, a.Tag) })
			for _, att := range []Attachment{a, b, other, a} { // twice a: no duplicates
				host.Must(t, func() error { return backend.Add(ctx, att) })
			}
			for _, att := range []Attachment{a, b, other} {
				host.Must(t, func() error { return backend.Check(ctx, att) })
			}
			host.Must(t, func() error { return backend.Remove(ctx, a.Tag) })
			missing := func(att Attachment, want bool) {
				t.Helper()
				if err := host.Do(func() error { return backend.Check(ctx, att) }); (err != nil) != want {
					t.Errorf("Check of %s: %v", att.Tag, err)
				}
			}
			missing(a, true)
			missing(b, false)
			missing(other, false)
			host.Must(t, func() error { return backend.Add(ctx, a) })
			host.Must(t, func() error { return backend.Prune(ctx, "podnet", map[string]bool{a.Tag: true}) })
			missing(a, false)
			missing(b, true)
			missing(other, false)
		})
	}
}
