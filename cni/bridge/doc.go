// Package bridge makes the links of a pod network: the Linux bridge of the
// node, and for each pod a veth pair with one end in the bridge and the other
// in the pod's network namespace.
//
// It owns the bridge, every host veth named by VethName, and the addresses,
// routes and sysctls inside a pod's namespace. It keeps no state of its own:
// names follow from the attachment, so that any process can find and remove
// what a killed one has left.
//
// Host works in the network namespace of the thread that opened it. Only Pod
// reaches into another namespace: through a netlink socket that was opened
// there, and through one short-lived locked thread for sysctls, which netlink
// does not cover.
package bridge

import (
	"crypto/sha256"
	"encoding/hex"
)

// vethPrefix starts the name of every host veth.
const vethPrefix = "berth"

// VethName returns the name of the host end of an attachment. It is the same
// in every process, so that DEL, GC and a retried ADD find the veth of an ADD
// that did not live to report it.
func VethName(network, containerID, ifName string) string {
	sum := sha256.Sum256([]byte(network + "\x00" + containerID + "\x00" + ifName))
	// An interface name has at most 15 bytes.
	return vethPrefix + hex.EncodeToString(sum[:5])
}
