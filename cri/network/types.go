// Package network sets up and tears down sandbox networks through CNI.
//
// It reads the conflist from the CNI configuration directory and runs it with
// libcni. A plugin that was registered in-process (Berth's own) is called as a
// function instead of being executed; everything else about it, the protocol,
// the cached results, the order of a chain, is the same.
package network

import (
	"context"
	"net/netip"
)

// Sandbox identifies a sandbox's network attachment.
type Sandbox struct {
	ID           string
	NetNS        string // path of the pinned network namespace
	Name         string // pod name
	Namespace    string
	UID          string
	PortMappings []PortMapping
	Annotations  map[string]string
}

// PortMapping publishes a container port on the host.
type PortMapping struct {
	HostPort, ContainerPort int32
	Protocol                string // tcp, udp or sctp
	HostIP                  string // empty: all addresses
}

// Result is what the plugins answered.
type Result struct {
	Interface string
	IPs       []netip.Addr // in the order of the CNI result
}

// Plugin is a CNI plugin inside this process: the environment carries the CNI_
// variables, stdin the network configuration, the result is what the plugin
// would print. A failed call returns a *types.Error.
type Plugin func(ctx context.Context, environ []string, stdin []byte) ([]byte, error)
