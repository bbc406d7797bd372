package plugin

import (
	"context"
	"encoding/json"
	"net/netip"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
)

func TestBadConfigurationsAreRefusedWithThePathOfTheField(t *testing.T) {
	const ok = `"cniVersion":"1.1.0","name":"podnet","type":"berth-cni"`
	const ipam = `"ipam":{"subnets":["10.88.0.0/16"]}`
	for _, test := range []struct{ name, conf, want string }{
		{"not JSON", `{`, "unexpected end of JSON input"},
		{"not an object", `[]`, "array where an object is expected"},
		{"no name", `{"cniVersion":"1.1.0",` + ipam + `}`, "name: missing"},
		{"a bad name", `{"name":"../x",` + ipam + `}`, "name: invalid characters found in network name"},
		{"no ipam", `{` + ok + `}`, "ipam: missing: give it a list of subnets"},
		{"no addresses", `{` + ok + `,"ipam":{}}`, "ipam: no addresses: set subnets or ranges"},
		{"ipam of a wrong type", `{` + ok + `,"ipam":"10.88.0.0/16"}`, "ipam: string where an object is expected"},
		{"another IPAM plugin", `{` + ok + `,"ipam":{"type":"dhcp","subnets":["10.88.0.0/16"]}}`,
			`ipam.type: "dhcp" is not supported: berth-cni leases addresses itself; leave the field out or write "host-local"`},
		{"a bad subnet", `{` + ok + `,"ipam":{"subnets":["10.88.0.0"]}}`, `ipam.subnets[0]: "10.88.0.0" is not a subnet such as 10.88.0.0/16`},
		{"host bits in a subnet", `{` + ok + `,"ipam":{"subnets":["10.88.0.1/16"]}}`, "ipam.subnets[0]: subnet 10.88.0.1/16 has host bits set: write 10.88.0.0/16"},
		{"a tiny subnet", `{` + ok + `,"ipam":{"subnets":["10.88.0.0/31"]}}`,
			"ipam.subnets[0]: subnet 10.88.0.0/31 is too small to lease addresses from: /30 (IPv4) or /126 (IPv6) is the smallest"},
		{"an IPv4-mapped subnet", `{` + ok + `,"ipam":{"subnets":["::ffff:10.88.0.0/112"]}}`,
			`ipam.subnets[0]: subnet ::ffff:10.88.0.0/112 is IPv4 written as IPv6`},
		{"overlapping subnets", `{` + ok + `,"ipam":{"subnets":["10.88.0.0/16","10.88.1.0/24"]}}`,
			"ipam.ranges: 10.88.0.1-10.88.255.254 and 10.88.1.1-10.88.1.254 overlap"},
		{"a range without subnet", `{` + ok + `,"ipam":{"ranges":[[{"rangeStart":"10.88.0.5"}]]}}`, "ipam.ranges[0][0].subnet: missing or not a string; ipam.ranges[0][0].rangeStart: unknown field"},
		{"an empty range set", `{` + ok + `,"ipam":{"ranges":[[]]}}`, "ipam.ranges[0]: empty list"},
		{"a range start outside", `{` + ok + `,"ipam":{"ranges":[[{"subnet":"10.88.0.0/16","rangeStart":"10.89.0.5"}]]}}`,
			"ipam.ranges[0][0].rangeStart: 10.89.0.5 is not in subnet 10.88.0.0/16"},
		{"a range backwards", `{` + ok + `,"ipam":{"ranges":[[{"subnet":"10.88.0.0/16","rangeStart":"10.88.0.9","rangeEnd":"10.88.0.5"}]]}}`,
			"ipam.ranges[0][0].rangeEnd: 10.88.0.5 is before rangeStart 10.88.0.9"},
		{"a bad gateway", `{` + ok + `,"ipam":{"ranges":[[{"subnet":"10.88.0.0/16","gateway":"x"}]]}}`, `ipam.ranges[0][0].gateway: "x" is not an IP address`},
		{"a bad exclusion", `{` + ok + `,"ipam":{"ranges":[[{"subnet":"10.88.0.0/16","exclude":["x"]}]]}}`, `ipam.ranges[0][0].exclude[0]: "x" is neither an address nor a subnet`},
		{"mixed families in a set", `{` + ok + `,"ipam":{"ranges":[[{"subnet":"10.88.0.0/16"},{"subnet":"fd00::/64"}]]}}`,
			"ipam.ranges[0][1].subnet: not of the same family as the first range of the set: an attachment gets one address of each set"},
		{"a misspelt range field", `{` + ok + `,"ipam":{"ranges":[[{"subnet":"10.88.0.0/16","rangestart":"10.88.0.9"}]]}}`, "ipam.ranges[0][0].rangestart: unknown field"},
		{"a relative data directory", `{` + ok + `,"ipam":{"subnets":["10.88.0.0/16"],"dataDir":"leases"}}`, `ipam.dataDir: "leases" is not an absolute path`},
		{"a bad route", `{` + ok + `,"ipam":{"subnets":["10.88.0.0/16"],"routes":[{"dst":"default"}]}}`, `ipam.routes[0].dst: "default" is not a subnet such as 0.0.0.0/0`},
		{"a route of a family without addresses", `{` + ok + `,"ipam":{"subnets":["10.88.0.0/16"],"routes":[{"dst":"::/0"}]}}`,
			"ipam.routes[0].dst: ::/0 is of a family that the network has no addresses of"},
		{"a route by a gateway of another family", `{` + ok + `,"ipam":{"subnets":["10.88.0.0/16"],"routes":[{"dst":"0.0.0.0/0","gw":"fd00::1"}]}}`,
			"ipam.routes[0].gw: fd00::1 is not of the family of 0.0.0.0/0"},
		{"resolvConf", `{` + ok + `,"ipam":{"subnets":["10.88.0.0/16"],"resolvConf":"/etc/resolv.conf"}}`, "ipam.resolvConf: not supported by berth-cni"},
		{"a bad bridge name", `{` + ok + `,"bridge":"much-too-long-a-name",` + ipam + `}`,
			`bridge: "much-too-long-a-name" is not an interface name: interface name should be less than 16 characters`},
		{"an MTU of a wrong type", `{` + ok + `,"mtu":"1500",` + ipam + `}`, "mtu: string where an integer is expected"},
		{"a small MTU", `{` + ok + `,"mtu":500,` + ipam + `}`, "mtu: 500 is not between 576 and 65535; 0 takes that of the default route"},
		{"an MTU too small for IPv6", `{` + ok + `,"mtu":1000,"ipam":{"subnets":["fd00::/64"]}}`, "mtu: 1000 is less than the 1280 that IPv6 needs"},
		{"a number where a truth value is expected", `{` + ok + `,"ipMasq":1,` + ipam + `}`, "ipMasq: number where true or false is expected"},
		{"an unknown backend", `{` + ok + `,"portmapBackend":"pf",` + ipam + `}`,
			`portmapBackend: "pf" is unknown: use "nftables" or "iptables", or leave it out to take what the host has`},
		{"an unsupported capability", `{` + ok + `,"capabilities":{"bandwidth":true,"portMappings":true},` + ipam + `}`, "capabilities.bandwidth: not supported by berth-cni"},
		{"a feature of the upstream bridge plugin", `{` + ok + `,"vlan":100,"promiscMode":false,` + ipam + `}`, "vlan: not supported by berth-cni"},
		{"a misspelt field", `{` + ok + `,"hairpin":true,` + ipam + `}`, "hairpin: unknown field"},
		{"a bad port mapping", `{` + ok + `,` + ipam + `,"runtimeConfig":{"portMappings":[{"hostPort":70000,"containerPort":0,"protocol":"icmp","hostIP":"x"}]}}`,
			"runtimeConfig.portMappings[0].hostPort: 70000 is not a port; runtimeConfig.portMappings[0].containerPort: 0 is not a port; " +
				`runtimeConfig.portMappings[0].protocol: unknown protocol "icmp": use tcp, udp or sctp; runtimeConfig.portMappings[0].hostIP: "x" is not an IP address`},
		{"a bad previous result", `{` + ok + `,` + ipam + `,"prevResult":{"cniVersion":"1.1.0","ips":[{"address":"x"}]}}`,
			"prevResult: could not parse prevResult: invalid CIDR address: x"},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := parseNetwork([]byte(test.conf))
			if err == nil {
				t.Fatalf("accepted, want: %s", test.want)
			}
			if got := strings.ReplaceAll(err.Error(), "\n", "; "); got != test.want {
				t.Errorf("error: %s\n want: %s", got, test.want)
			}
		})
	}
}

func TestConfigurationsOfTheUpstreamPluginsAreUnderstood(t *testing.T) {
	n, err := parseNetwork([]byte(`{
		"cniVersion": "1.0.0", "name": "mynet", "type": "berth-cni", "bridge": "cni0", "isDefaultGateway": true,
		"forceAddress": false, "ipMasq": true, "hairpinMode": true, "promiscMode": false, "mtu": 1400,
		"capabilities": {"portMappings": true}, "args": {"cni": {}},
		"ipam": {"type": "host-local", "dataDir": "/run/x", "routes": [{"dst": "192.168.0.0/16", "gw": "10.1.0.9"}],
			"ranges": [[{"subnet": "10.1.0.0/24", "rangeStart": "10.1.0.20", "rangeEnd": "10.1.0.30", "gateway": "10.1.0.254"},
			            {"subnet": "10.2.0.0/24", "exclude": ["10.2.0.0/28", "10.2.0.99"]}],
			           [{"subnet": "fd00:1::/64"}]]},
		"runtimeConfig": {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "TCP", "hostIP": "0.0.0.0"}]}
	}`))
	if err != nil {
		t.Fatal(err)
	}
	if got := n.dataDir; got != "/run/x/mynet" {
		t.Errorf("data directory %s", got)
	}
	if got, want := len(n.bridge.Gateways), 3; got != want {
		t.Errorf("%d gateways %v, want %d", got, n.bridge.Gateways, want)
	}
	if got := n.bridge.Gateways[0]; got != netip.MustParsePrefix("10.1.0.254/24") {
		t.Errorf("first gateway %s", got)
	}
	if got := len(n.routes); got != 3 {
		t.Errorf("%d routes %v, want the one given and a default for each family", got, n.routes)
	}
	if _, ok := n.sets[0].Find(netip.MustParseAddr("10.2.0.99")); ok {
		t.Error("an excluded address may be leased")
	}
	if len(n.ports) != 1 || n.ports[0].Protocol != "tcp" {
		t.Errorf("ports %v", n.ports)
	}
}

func TestBadCallsAreRefused(t *testing.T) {
	const conf = `{"cniVersion":"1.1.0","name":"podnet","type":"berth-cni","ipam":{"subnets":["10.88.0.0/16"]}}`
	for _, test := range []struct {
		name    string
		environ []string
		conf    string
		code    uint
		want    string
	}{
		{"no command", nil, conf, 4, `CNI_COMMAND: "" is unknown: use ADD, DEL, CHECK, GC, STATUS or VERSION`},
		{"no container ID", []string{"CNI_COMMAND=ADD", "CNI_NETNS=/x", "CNI_IFNAME=eth0"}, conf, 4, "CNI_CONTAINERID: not set, but ADD needs it"},
		{"no namespace", []string{"CNI_COMMAND=ADD", "CNI_CONTAINERID=a", "CNI_IFNAME=eth0"}, conf, 4, "CNI_NETNS: not set, but ADD needs it"},
		{"a path as container ID", []string{"CNI_COMMAND=DEL", "CNI_CONTAINERID=../a", "CNI_IFNAME=eth0"}, conf, 4, "invalid characters in containerID; ../a"},
		{"a long interface name", []string{"CNI_COMMAND=DEL", "CNI_CONTAINERID=a", "CNI_IFNAME=eth0eth0eth0eth0"}, conf, 4,
			"interface name is too long; interface name should be less than 16 characters"},
		{"a static address", []string{"CNI_COMMAND=ADD", "CNI_CONTAINERID=a", "CNI_NETNS=/x", "CNI_IFNAME=eth0", "CNI_ARGS=IP=10.88.0.9"}, conf, 2,
			"CNI_ARGS: IP: static addresses are not supported by berth-cni"},
		{"an old version", []string{"CNI_COMMAND=DEL", "CNI_CONTAINERID=a", "CNI_IFNAME=eth0"}, `{"cniVersion":"0.2.0","name":"x"}`, 1,
			`cniVersion: "0.2.0" is not supported; use one of 0.3.1, 0.4.0, 1.0.0, 1.1.0`},
		{"GC of an old version", []string{"CNI_COMMAND=GC"}, `{"cniVersion":"1.0.0","name":"x"}`, 1, `cniVersion: GC needs 1.1.0 or later, not "1.0.0"`},
		{"a bad configuration", []string{"CNI_COMMAND=GC"}, `{"cniVersion":"1.1.0","name":"x"}`, 7, "network configuration: ipam: missing: give it a list of subnets"},
		{"GC without a list", []string{"CNI_COMMAND=GC"}, conf, 999, "cni.dev/valid-attachments: missing, so GC cannot tell what is in use"},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := New(Config{}).Handle(context.Background(), test.environ, []byte(test.conf))
			cniErr, ok := err.(*types.Error)
			if !ok || cniErr.Code != test.code || cniErr.Error() != test.want {
				t.Errorf("error: %#v, want code %d: %s", err, test.code, test.want)
			}
		})
	}
}

func FuzzParseNetwork(f *testing.F) {
	f.Add([]byte(`{"cniVersion":"1.1.0","name":"podnet","isDefaultGateway":true,"ipam":{"subnets":["10.88.0.0/16","fd00::/64"]}}`))
	f.Add([]byte(`{"name":"x","ipam":{"ranges":[[{"subnet":"10.1.0.0/30","exclude":["10.1.0.0/30"]}]],"routes":[{"dst":"0.0.0.0/0"}]}}`))
	f.Add([]byte(`{"name":"x","ipam":{"subnet":"fd00::/64"},"runtimeConfig":{"portMappings":[{"hostPort":1,"containerPort":2}]},"prevResult":{}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		n, err := parseNetwork(data)
		if err != nil {
			return
		}
		if len(n.sets) == 0 || n.name == "" || n.bridge.Name == "" {
			t.Fatalf("accepted an unusable configuration: %s", data)
		}
		for _, set := range n.sets {
			for addr := range set.After(netip.Addr{}) {
				if r, ok := set.Find(addr); !ok || !r.Subnet.Contains(addr) || addr == r.Gateway {
					t.Fatalf("leases %s from %v", addr, set)
				}
				break
			}
		}
		if _, err := json.Marshal(n.routes); err != nil {
			t.Fatalf("routes cannot be reported: %v", err)
		}
	})
}
