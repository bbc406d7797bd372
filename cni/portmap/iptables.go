package portmap

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strconv"
	"strings"

	"github.com/coreos/go-iptables/iptables"

	"github.com/berth-io/berth/cni/netfilter"
)

// Chains of the iptables backend, and the tables they are in.
const (
	natTable = "nat"
	rawTable = "raw"

	dnatChain = "BERTH-HOSTPORT"
	masqChain = "BERTH-HOSTPORT-MASQ"
)

// IPTables is the Backend on iptables and ip6tables.
type IPTables struct{}

// NewIPTables returns the backend. It runs nothing.
func NewIPTables() *IPTables { return &IPTables{} }

// Add implements Backend.
func (b *IPTables) Add(ctx context.Context, a Attachment) error {
	if err := b.Remove(ctx, a.Tag); err != nil {
		return err
	}
	for _, v6 := range []bool{false, true} {
		rules := iptablesRules(a, v6)
		if len(rules) == 0 {
			continue
		}
		ipt, err := netfilter.OpenIPTables(v6)
		if err != nil {
			return err
		}
		if err := b.addBase(ipt, a.Bridge, v6); err != nil {
			return fmt.Errorf("install the chains of port mappings: %w", err)
		}
		for _, r := range rules {
			if err := ipt.Append(natTable, r.chain, r.spec...); err != nil {
				return fmt.Errorf("install port mappings: %w", err)
			}
		}
	}
	return nil
}

// addBase makes the chains that all port mappings share.
func (b *IPTables) addBase(ipt *iptables.IPTables, bridge string, v6 bool) error {
	for _, chain := range []string{dnatChain, masqChain} {
		exists, err := ipt.ChainExists(natTable, chain)
		if err != nil {
			return err
		}
		if !exists {
			// Another process may have made it since.
			if err := ipt.NewChain(natTable, chain); err != nil && !chainExists(err) {
				return err
			}
		}
	}
	if !v6 {
		// See NFTables.addBase.
		guard := []string{"-i", bridge, "-d", "127.0.0.0/8", "-j", "DROP"}
		if err := ipt.InsertUnique(rawTable, "PREROUTING", 1, guard...); err != nil {
			return err
		}
	}
	local := []string{"-m", "addrtype", "--dst-type", "LOCAL", "-j", dnatChain}
	for _, hook := range []string{"PREROUTING", "OUTPUT"} {
		if err := ipt.AppendUnique(natTable, hook, local...); err != nil {
			return err
		}
	}
	return ipt.InsertUnique(natTable, "POSTROUTING", 1, "-j", masqChain)
}

func chainExists(err error) bool {
	var e *iptables.Error
	return errors.As(err, &e) && e.ExitStatus() == 1 && strings.Contains(e.Error(), "exists")
}

// iptablesRule is a rule of the nat table.
type iptablesRule struct {
	chain string
	spec  []string
}

// iptablesRules returns the rules of a for one family.
func iptablesRules(a Attachment, v6 bool) []iptablesRule {
	tag := []string{"-m", "comment", "--comment", a.Tag}
	var out []iptablesRule
	for _, f := range a.forwards() {
		if f.pod.Is6() != v6 {
			continue
		}
		dnat := []string{"-p", f.Protocol, "--dport", strconv.Itoa(int(f.HostPort))}
		if f.HostIP.IsValid() {
			dnat = append(dnat, "-d", f.HostIP.String())
		}
		dnat = append(dnat, tag...)
		out = append(out, iptablesRule{dnatChain, append(dnat, "-j", "DNAT", "--to-destination", f.target())})
		for _, client := range f.clients() {
			masq := []string{"-s", client, "-d", f.pod.String(), "-p", f.Protocol,
				"--dport", strconv.Itoa(int(f.ContainerPort)),
				"-m", "conntrack", "--ctorigdstport", strconv.Itoa(int(f.HostPort))}
			masq = append(masq, tag...)
			out = append(out, iptablesRule{masqChain, append(masq, "-j", "MASQUERADE")})
		}
	}
	return out
}

// Check implements Backend.
func (b *IPTables) Check(_ context.Context, a Attachment) error {
	for _, v6 := range []bool{false, true} {
		rules := iptablesRules(a, v6)
		if len(rules) == 0 {
			continue
		}
		ipt, err := netfilter.OpenIPTables(v6)
		if err != nil {
			return err
		}
		for _, r := range rules {
			found, err := ipt.Exists(natTable, r.chain, r.spec...)
			if err != nil {
				return fmt.Errorf("look for port mapping rules: %w", err)
			}
			if !found {
				return fmt.Errorf("port mapping rule missing in iptables chain %s: %s", r.chain, strings.Join(r.spec, " "))
			}
		}
	}
	return nil
}

// Remove implements Backend.
func (b *IPTables) Remove(_ context.Context, tag string) error {
	return b.remove(func(t string) bool { return t == tag })
}

// Prune implements Backend.
func (b *IPTables) Prune(_ context.Context, network string, keep map[string]bool) error {
	return b.remove(func(t string) bool { return strings.HasPrefix(t, prefix(network)) && !keep[t] })
}

// remove deletes the rules whose tag match accepts, of both families: the
// addresses of the pod are not known here.
func (b *IPTables) remove(match func(tag string) bool) error {
	for _, v6 := range []bool{false, true} {
		ipt, err := netfilter.OpenIPTables(v6)
		if v6 && errors.Is(err, exec.ErrNotFound) {
			continue // nothing was installed either
		}
		if err != nil {
			return err
		}
		for _, chain := range []string{dnatChain, masqChain} {
			if err := removeFrom(ipt, chain, match); err != nil {
				return fmt.Errorf("remove port mappings: %w", err)
			}
		}
	}
	return nil
}

func removeFrom(ipt *iptables.IPTables, chain string, match func(tag string) bool) error {
	exists, err := ipt.ChainExists(natTable, chain)
	if err != nil || !exists {
		return err
	}
	lines, err := ipt.List(natTable, chain)
	if err != nil {
		return err
	}
	for _, line := range lines {
		// "-A CHAIN ..."; a tag has no characters that iptables quotes.
		spec := strings.Fields(line)
		at := slices.Index(spec, "--comment")
		if len(spec) < 3 || spec[0] != "-A" || at < 0 || at+1 == len(spec) {
			continue
		}
		spec[at+1] = strings.Trim(spec[at+1], `"`)
		if !match(spec[at+1]) {
			continue
		}
		if err := ipt.DeleteIfExists(natTable, chain, spec[2:]...); err != nil {
			return err
		}
	}
	return nil
}
