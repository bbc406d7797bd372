package netfilter

import (
	"fmt"

	"github.com/coreos/go-iptables/iptables"
)

// lockWait is how long iptables waits for the lock of another iptables, in
// seconds.
const lockWait = 10

// OpenIPTables returns iptables or ip6tables. It runs it once for its version.
// The error wraps exec.ErrNotFound where the host has no such program.
func OpenIPTables(v6 bool) (*iptables.IPTables, error) {
	family := iptables.ProtocolIPv4
	if v6 {
		family = iptables.ProtocolIPv6
	}
	ipt, err := iptables.New(iptables.IPFamily(family), iptables.Timeout(lockWait))
	if err != nil {
		return nil, fmt.Errorf("use iptables: %w", err)
	}
	return ipt, nil
}
