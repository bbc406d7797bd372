// Package conflist writes the network configuration of a node that has none:
// a CNI configuration list with Berth's plugin alone, for /etc/cni/net.d.
package conflist

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
)

// FileName sorts after the files of network plugins, which therefore win when
// one is installed later.
const FileName = "90-berth.conflist"

// Config describes the pod network of a node.
type Config struct {
	// Name of the network; empty: "berth".
	Name string
	// PodCIDRs are the subnets of the node's pods, one per family, as in
	// spec.podCIDRs of its Node object.
	PodCIDRs []netip.Prefix
	// Bridge is the name of the bridge; empty: "berth0".
	Bridge string
	// MTU in bytes; 0: that of the link with the default route.
	MTU int
	// DataDir holds the leases; empty: the plugin's default.
	DataDir string
}

type list struct {
	CNIVersion string   `json:"cniVersion"`
	Name       string   `json:"name"`
	Plugins    []plugin `json:"plugins"`
}

type plugin struct {
	Type         string          `json:"type"`
	Bridge       string          `json:"bridge"`
	MTU          int             `json:"mtu,omitempty"`
	IsGateway    bool            `json:"isGateway"`
	IPMasq       bool            `json:"ipMasq"`
	HairpinMode  bool            `json:"hairpinMode"`
	Capabilities map[string]bool `json:"capabilities"`
	IPAM         ipam            `json:"ipam"`
}

type ipam struct {
	Subnets []netip.Prefix `json:"subnets"`
	Routes  []route        `json:"routes"`
	DataDir string         `json:"dataDir,omitempty"`
}

type route struct {
	Dst string `json:"dst"`
}

// Render returns the configuration list of cfg as a file's content.
func Render(cfg Config) ([]byte, error) {
	if len(cfg.PodCIDRs) == 0 {
		return nil, errors.New("no pod CIDR: give at least one subnet for pods")
	}
	p := plugin{
		Type: "berth-cni", Bridge: cfg.Bridge, MTU: cfg.MTU,
		IsGateway: true, IPMasq: true, HairpinMode: true,
		Capabilities: map[string]bool{"portMappings": true},
		IPAM:         ipam{DataDir: cfg.DataDir},
	}
	if p.Bridge == "" {
		p.Bridge = "berth0"
	}
	for i, cidr := range cfg.PodCIDRs {
		if !cidr.IsValid() || cidr.Masked() != cidr {
			return nil, fmt.Errorf("pod CIDR %s is not a subnet: write %s", cidr, cidr.Masked())
		}
		if i > 1 || i == 1 && cidr.Addr().Is4() == cfg.PodCIDRs[0].Addr().Is4() {
			return nil, fmt.Errorf("pod CIDR %s: only one for each of IPv4 and IPv6", cidr)
		}
		all := "::/0"
		if cidr.Addr().Is4() {
			all = "0.0.0.0/0"
		}
		p.IPAM.Subnets = append(p.IPAM.Subnets, cidr)
		p.IPAM.Routes = append(p.IPAM.Routes, route{Dst: all})
	}
	l := list{CNIVersion: "1.1.0", Name: cfg.Name, Plugins: []plugin{p}}
	if l.Name == "" {
		l.Name = "berth"
	}
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetIndent("", "  ")
	if err := enc.Encode(l); err != nil {
		return nil, fmt.Errorf("encode the network configuration: %w", err)
	}
	return out.Bytes(), nil
}
