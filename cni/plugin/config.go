package plugin

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/utils"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/berth-io/berth/cni/bridge"
	"github.com/berth-io/berth/cni/ipam"
	"github.com/berth-io/berth/cni/netfilter"
	"github.com/berth-io/berth/cni/portmap"
)

// Defaults of the configuration.
const (
	DefaultBridge = "berth0"
	// DefaultDataDir is on tmpfs, as no lease outlives a boot.
	DefaultDataDir = "/run/berth/cni"
)

// network is a network configuration that was checked: every command can rely
// on it.
type network struct {
	cniVersion string
	name       string
	bridge     bridge.Config
	// gateways tells whether the bridge is the gateway of the pods.
	isGateway      bool
	ipMasq         bool
	ipMasqBackend  netfilter.Backend // empty: what the host has
	portmapBackend netfilter.Backend // empty: what the host has
	hairpin        bool
	sets           []ipam.Set
	routes         []types.Route
	dataDir        string // of this network
	dns            types.DNS
	ports          []portmap.Mapping
	prevResult     *types100.Result
	// valid are the attachments that a GC keeps; nil if the list was missing.
	valid []types.GCAttachment
}

// Fields of the upstream bridge, portmap and host-local plugins that have no
// counterpart here.
var (
	refusedFields = []string{"promiscMode", "forceAddress", "vlan", "vlanTrunk", "preserveDefaultVlan",
		"macspoofchk", "enabledad", "disableContainerInterface", "portIsolation", "snat", "masqAll",
		"externalSetMarkChain", "conditionsV4", "conditionsV6", "markMasqBit"}
	refusedIPAMFields = []string{"resolvConf"}
)

// parseNetwork reads a network configuration. The error lists every complaint,
// each with the path of its field.
func parseNetwork(data []byte) (*network, error) {
	o, err := parseObject("", data)
	if err != nil {
		return nil, err
	}
	n := &network{bridge: bridge.Config{Name: DefaultBridge}}
	o.take("cniVersion", &n.cniVersion)
	var pluginType string
	o.take("type", &pluginType)
	if o.take("name", &n.name); n.name == "" {
		o.fail("name", "missing")
	} else if err := utils.ValidateNetworkName(n.name); err != nil {
		o.fail("name", err.Msg)
	}
	n.parseBridge(o)
	n.parseFirewall(o)
	o.take("dns", &n.dns)
	var ipamData json.RawMessage
	if o.take("ipam", &ipamData) {
		o.adopt(n.parseIPAM(ipamData))
	} else {
		o.fail("ipam", "missing: give it a list of subnets")
	}
	n.parseRuntime(o)
	n.derive(o)
	if err := o.finish(refusedFields...); err != nil {
		return nil, err
	}
	return n, nil
}

// parseBridge reads the fields about links.
func (n *network) parseBridge(o *object) {
	o.take("bridge", &n.bridge.Name)
	if err := utils.ValidateInterfaceName(n.bridge.Name); err != nil {
		o.fail("bridge", fmt.Sprintf("%q is not an interface name: %s", n.bridge.Name, err.Details))
	}
	o.take("mtu", &n.bridge.MTU)
	if n.bridge.MTU != 0 && (n.bridge.MTU < 576 || n.bridge.MTU > 65535) {
		o.fail("mtu", fmt.Sprintf("%d is not between 576 and 65535; 0 takes that of the default route", n.bridge.MTU))
	}
	o.take("isGateway", &n.isGateway)
	o.take("hairpinMode", &n.hairpin)
}

// parseFirewall reads the fields about packet filters.
func (n *network) parseFirewall(o *object) {
	o.take("ipMasq", &n.ipMasq)
	for key, dst := range map[string]*netfilter.Backend{"ipMasqBackend": &n.ipMasqBackend, "portmapBackend": &n.portmapBackend} {
		if o.take(key, dst) && *dst != "" && *dst != netfilter.NFTables && *dst != netfilter.IPTables {
			o.fail(key, fmt.Sprintf("%q is unknown: use %q or %q, or leave it out to take what the host has", *dst, netfilter.NFTables, netfilter.IPTables))
		}
	}
	var capabilities map[string]bool
	o.take("capabilities", &capabilities)
	for name, wanted := range capabilities {
		if wanted && name != "portMappings" {
			o.fail("capabilities."+name, "not supported by berth-cni")
		}
	}
}

// parseRuntime reads the fields that the runtime adds.
func (n *network) parseRuntime(o *object) {
	var args json.RawMessage
	o.take("args", &args)
	var runtimeConfig json.RawMessage
	if o.take("runtimeConfig", &runtimeConfig) {
		o.adopt(n.parseRuntimeConfig(runtimeConfig))
	}
	var prev map[string]any
	if o.take("prevResult", &prev) {
		conf := &types.PluginConf{CNIVersion: n.cniVersion, RawPrevResult: prev}
		err := version.ParsePrevResult(conf)
		if err == nil {
			n.prevResult, err = types100.GetResult(conf.PrevResult)
		}
		if err != nil {
			o.fail("prevResult", err.Error())
		}
	}
	if !o.take("cni.dev/valid-attachments", &n.valid) {
		n.valid = nil
	}
}

func (n *network) parseRuntimeConfig(data []byte) error {
	o, err := parseObject("runtimeConfig.", data)
	if err != nil {
		return err
	}
	var ports []json.RawMessage
	o.take("portMappings", &ports)
	for i, raw := range ports {
		m, err := parseMapping(fmt.Sprintf("runtimeConfig.portMappings[%d].", i), raw)
		o.adopt(err)
		if m.HostPort != 0 {
			n.ports = append(n.ports, m)
		}
	}
	return o.finish()
}

// parseMapping reads one entry of portMappings. A host port of 0 publishes
// nothing, as with the upstream plugin.
func parseMapping(path string, data []byte) (portmap.Mapping, error) {
	var m portmap.Mapping
	o, err := parseObject(path, data)
	if err != nil {
		return m, err
	}
	var protocol, hostIP string
	var hostPort, containerPort int
	o.take("hostPort", &hostPort)
	o.take("containerPort", &containerPort)
	o.take("protocol", &protocol)
	o.take("hostIP", &hostIP)
	if hostPort < 0 || hostPort > 65535 {
		o.fail("hostPort", fmt.Sprintf("%d is not a port", hostPort))
	}
	if containerPort < 1 || containerPort > 65535 {
		o.fail("containerPort", fmt.Sprintf("%d is not a port", containerPort))
	}
	if m.Protocol, err = portmap.ParseProtocol(protocol); err != nil {
		o.fail("protocol", err.Error())
	}
	if hostIP != "" {
		if m.HostIP, err = netip.ParseAddr(hostIP); err != nil {
			o.fail("hostIP", fmt.Sprintf("%q is not an IP address", hostIP))
		}
		m.HostIP = m.HostIP.Unmap().WithZone("")
	}
	m.HostPort, m.ContainerPort = uint16(hostPort), uint16(containerPort)
	return m, o.finish()
}

// derive fills in what follows from several fields.
func (n *network) derive(o *object) {
	var isDefaultGateway bool
	if o.take("isDefaultGateway", &isDefaultGateway) && isDefaultGateway {
		n.isGateway = true
	}
	for _, set := range n.sets {
		r := set[0]
		if r.Subnet.Addr().Is6() && n.bridge.MTU != 0 && n.bridge.MTU < 1280 {
			o.fail("mtu", fmt.Sprintf("%d is less than the 1280 that IPv6 needs", n.bridge.MTU))
		}
		if isDefaultGateway {
			n.addDefaultRoute(r)
		}
		for _, r := range set {
			if n.isGateway && r.Gateway.IsValid() {
				gw := netip.PrefixFrom(r.Gateway, r.Subnet.Bits())
				if !slices.Contains(n.bridge.Gateways, gw) {
					n.bridge.Gateways = append(n.bridge.Gateways, gw)
				}
			}
		}
	}
	n.dataDir = filepath.Join(n.dataDir, n.name)
}

// addDefaultRoute adds the default route of the family of r, if there is none.
func (n *network) addDefaultRoute(r ipam.Range) {
	all := netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	if r.Subnet.Addr().Is4() {
		all = netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	}
	for _, route := range n.routes {
		if prefixOf(route.Dst) == all {
			return
		}
	}
	n.routes = append(n.routes, types.Route{Dst: netOf(all)})
}

// subnets returns the subnets of the network.
func (n *network) subnets() []netip.Prefix {
	var out []netip.Prefix
	for _, set := range n.sets {
		for _, r := range set {
			if !slices.Contains(out, r.Subnet) {
				out = append(out, r.Subnet)
			}
		}
	}
	return out
}

var errNoRanges = errors.New("ipam: no addresses: set subnets or ranges")
