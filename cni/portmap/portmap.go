// Package portmap publishes ports of pods on the host: what arrives at a host
// port from outside, from the host itself (by localhost too, IPv4 only) or from
// a pod is sent on to the pod.
//
// It owns the rules tagged by Tag. The tag carries network, sandbox and
// interface, so that the rules of an attachment are found without any state.
package portmap

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/netip"
	"strings"
)

// Mapping is one published port.
type Mapping struct {
	HostPort, ContainerPort uint16
	Protocol                string     // tcp, udp or sctp
	HostIP                  netip.Addr // invalid or unspecified: every address of the host
}

// Attachment is an attachment with published ports.
type Attachment struct {
	Tag    string
	Bridge string
	// Addresses are those of the pod, each with the length of its subnet.
	Addresses []netip.Prefix
	Mappings  []Mapping
}

// Backend installs port mappings.
type Backend interface {
	// Add makes the rules tagged a.Tag those of a.
	Add(ctx context.Context, a Attachment) error
	// Check returns an error if rules of a are missing.
	Check(ctx context.Context, a Attachment) error
	// Remove deletes the rules with a tag. Absent ones are no error.
	Remove(ctx context.Context, tag string) error
	// Prune removes the rules of a network whose tag is not kept.
	Prune(ctx context.Context, network string, keep map[string]bool) error
}

// Tag returns the comment that the rules of an attachment carry, of at most 122
// bytes (nftables allows 128).
func Tag(network, sandbox, ifName string) string {
	return prefix(network) + shorten(sandbox, 64) + ":" + ifName
}

// prefix starts every tag of a network.
func prefix(network string) string { return shorten(network, 40) + ":" }

// shorten returns s, or a hash for it if it has more than limit bytes.
func shorten(s string, limit int) string {
	if len(s) <= limit {
		return s
	}
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:])[:limit]
}

// forward is one redirection: a mapping for one address of the pod.
type forward struct {
	Mapping
	pod netip.Addr
	// subnet is that of the pod. Its other pods answer each other directly, so
	// a redirected packet from there must come back through the host.
	subnet netip.Prefix
}

// forwards returns the redirections of an attachment. A mapping for a host
// address applies to the pod's address of the same family.
func (a Attachment) forwards() []forward {
	var out []forward
	for _, m := range a.Mappings {
		for _, addr := range a.Addresses {
			if m.HostIP.IsValid() && m.HostIP.Is4() != addr.Addr().Is4() {
				continue
			}
			f := forward{Mapping: m, pod: addr.Addr(), subnet: addr.Masked()}
			if m.HostIP.IsValid() && m.HostIP.IsUnspecified() {
				f.HostIP = netip.Addr{}
			}
			out = append(out, f)
		}
	}
	return out
}

// target returns the address and port of the pod as rules write them.
func (f forward) target() string {
	return netip.AddrPortFrom(f.pod, f.ContainerPort).String()
}

// clients are the sources whose packets must look as if the host sent them.
func (f forward) clients() []string {
	if f.pod.Is4() {
		return []string{f.subnet.String(), "127.0.0.0/8"}
	}
	return []string{f.subnet.String()}
}

// ParseProtocol returns the protocol in the spelling of rules.
func ParseProtocol(s string) (string, error) {
	switch p := strings.ToLower(s); p {
	case "":
		return "tcp", nil
	case "tcp", "udp", "sctp":
		return p, nil
	}
	return "", fmt.Errorf("unknown protocol %q: use tcp, udp or sctp", s)
}
