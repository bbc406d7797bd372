// Package netfilter knows which packet filter of the host the pod network uses,
// and the names that its rules have there.
//
// Everything Berth adds is in the nftables table "inet berth_cni", or in
// iptables chains whose names start with BERTH-.
package netfilter

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os/exec"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
	"sigs.k8s.io/knftables"
)

// Table is the nftables table, of family inet.
const Table = "berth_cni"

// Backend is a way to install rules.
type Backend string

// The backends.
const (
	NFTables Backend = "nftables"
	IPTables Backend = "iptables"
)

// Detect returns the backend that the host has a program and a kernel for. It
// prefers nftables, which takes a whole change in one process and one
// transaction. It starts no process.
func Detect() (Backend, error) {
	_, nftErr := exec.LookPath("nft")
	if nftErr == nil && kernelHasNFTables() {
		return NFTables, nil
	}
	if _, err := exec.LookPath("iptables"); err == nil {
		return IPTables, nil
	}
	if nftErr == nil {
		return "", errors.New("the kernel has no nf_tables and iptables is not in PATH: load nf_tables or install iptables")
	}
	return "", errors.New("neither nft nor iptables is in PATH: install nftables or iptables")
}

// OpenNFTables returns Berth's table. It runs nft twice to see that it works,
// so keep it.
func OpenNFTables() (knftables.Interface, error) {
	nft, err := knftables.New(knftables.InetFamily, Table, knftables.NoObjectCommentEmulation)
	if err != nil {
		return nil, fmt.Errorf("use nftables: %w", err)
	}
	return nft, nil
}

// ShortHash returns 12 hexadecimal digits that stand for s in chain names.
func ShortHash(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:6])
}

// Numbers of linux/netfilter/nf_tables.h and linux/netfilter/nfnetlink.h.
const (
	nftMsgGetRule   = 7
	nftMsgGetGen    = 16
	nftaRuleTable   = 1
	nftaRuleChain   = 2
	subsysNFTables  = 10
	familyUnspec    = 0 // NFPROTO_UNSPEC
	familyInet      = 1 // NFPROTO_INET
	nfgenmsgVersion = 0
)

// nfgenmsg is struct nfgenmsg of linux/netfilter/nfnetlink.h, for a family.
type nfgenmsg byte

func (nfgenmsg) Len() int            { return 4 }
func (f nfgenmsg) Serialize() []byte { return []byte{byte(f), nfgenmsgVersion, 0, 0} }

// kernelHasNFTables asks for the generation of the rules, which loads the
// module where it is one.
func kernelHasNFTables() bool {
	req := nl.NewNetlinkRequest(subsysNFTables<<8|nftMsgGetGen, 0)
	req.AddData(nfgenmsg(familyUnspec))
	_, err := req.Execute(unix.NETLINK_NETFILTER, 0)
	return err == nil
}

// HasRules tells whether a chain of Berth's table has any rule. It asks the
// kernel, in the network namespace of the calling thread, without a process.
func HasRules(chain string) (bool, error) {
	req := nl.NewNetlinkRequest(subsysNFTables<<8|nftMsgGetRule, unix.NLM_F_DUMP)
	req.AddData(nfgenmsg(familyInet))
	req.AddData(nl.NewRtAttr(nftaRuleTable, nl.ZeroTerminated(Table)))
	req.AddData(nl.NewRtAttr(nftaRuleChain, nl.ZeroTerminated(chain)))
	rules, err := req.Execute(unix.NETLINK_NETFILTER, 0)
	switch {
	case errors.Is(err, unix.ENOENT):
		return false, nil
	case err != nil && !kernelHasNFTables():
		return false, nil
	case err != nil:
		return false, fmt.Errorf("list nftables chain %s of table %s: %w", chain, Table, err)
	}
	return len(rules) > 0, nil
}
