package cluster

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/berth-io/berth/tests/harness"
)

// Addresses of a cluster. Clusters share nothing, so that all have the same.
const (
	controlPlane   = "cp" // the host of the control plane
	fabric         = "fab"
	apiServerIP    = "10.203.0.1"
	hostSubnet     = "/24"
	podSubnet      = "10.204.0.0/16"
	serviceSubnet  = "10.96.0.0/16"
	dnsIP          = "10.96.0.10"
	dnsDomain      = "cluster.local"
	registryListen = apiServerIP + ":5000"
)

// nodeIP of the node with an index from 0.
func nodeIP(i int) string { return fmt.Sprintf("10.203.0.%d", 11+i) }

// netns is the name of a host's network namespace.
func (c *Cluster) netns(host string) string { return c.name + "-" + host }

// InHost is a command line prefix that runs a program in a host's network: cp,
// n1, n2 and so on. Unlike `ip netns exec` it leaves /sys, and so the cgroup
// mounts, alone.
func (c *Cluster) InHost(host string) []string {
	return []string{"nsenter", "--net=/run/netns/" + c.netns(host), "--"}
}

// makeNetwork makes a namespace for each host and one for the bridge between
// them. Hosts send what they have no route for to the control plane, which has
// none either.
func (c *Cluster) makeNetwork(context.Context) error {
	fab := c.netns(fabric)
	lines := []string{
		"netns add " + fab,
		"-n " + fab + " link add br0 type bridge",
		"-n " + fab + " link set br0 up",
	}
	for i, host := range c.hosts() {
		ns, address := c.netns(host), apiServerIP
		if i > 0 {
			address = nodeIP(i - 1)
		}
		lines = append(lines,
			"netns add "+ns,
			"-n "+ns+" link set lo up",
			"-n "+fab+" link add "+host+" type veth peer name eth0 netns "+ns,
			"-n "+fab+" link set "+host+" master br0 up",
			"-n "+ns+" addr add "+address+hostSubnet+" dev eth0",
			"-n "+ns+" link set eth0 up",
		)
		if i > 0 {
			lines = append(lines, "-n "+ns+" route add default via "+apiServerIP)
		}
	}
	for _, line := range lines {
		if err := ip(line); err != nil {
			return err
		}
	}
	for _, host := range c.hosts() {
		if err := harness.Inside(c.netns(host), setSysctls); err != nil {
			return err
		}
	}
	return nil
}

// setSysctls lets a host forward, and shows the packet filter what goes from
// one pod of a bridge to another: kube-proxy needs to see the way back.
func setSysctls() error {
	for name, optional := range map[string]bool{
		"net/ipv4/ip_forward":                 false,
		"net/bridge/bridge-nf-call-iptables":  true,
		"net/bridge/bridge-nf-call-ip6tables": true,
	} {
		path := filepath.Join("/proc/sys", name)
		if _, err := os.Stat(path); err != nil && optional {
			continue // without br_netfilter
		}
		if err := os.WriteFile(path, []byte("1"), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// routePods lets the other hosts reach a node's pods.
func (c *Cluster) routePods(to *Node, podCIDR string) error {
	for _, host := range c.hosts() {
		if host == to.Name {
			continue
		}
		if err := ip("-n " + c.netns(host) + " route replace " + podCIDR + " via " + to.IP); err != nil {
			return err
		}
	}
	return nil
}

func ip(args string) error {
	out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("ip %s: %w: %s", args, err, out)
	}
	return nil
}
