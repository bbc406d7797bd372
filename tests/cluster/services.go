package cluster

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-io/berth/tests/harness"
	"github.com/berth-io/berth/tests/images"
)

// stockServices has the harness do what Berth's own network will: kube-proxy on
// each node, and routes to the pods of other nodes. One switch, to be removed
// with this file's first half when it does.
const stockServices = true

const proxyConfig = `apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: nftables
hostnameOverride: %[1]s
clusterCIDR: %[2]s
clientConnection: {kubeconfig: %[3]s, qps: 100, burst: 200}
# The machine's, not the host's.
conntrack: {maxPerCore: 0}
`

// startServiceNetwork runs kube-proxy on the node and routes its pods.
func (n *Node) startServiceNetwork(ctx context.Context, podCIDR string) error {
	if !stockServices {
		return nil
	}
	if err := n.c.routePods(n, podCIDR); err != nil {
		return err
	}
	kubeconfig := n.c.kubeconfig("kube-proxy")
	if _, err := os.Stat(kubeconfig); err != nil {
		if err := n.c.makeKubeconfig(ctx, kubeconfig, "system:kube-proxy"); err != nil {
			return err
		}
	}
	config := n.path("kube-proxy.yaml")
	if err := os.WriteFile(config, fmt.Appendf(nil, proxyConfig, n.Name, podSubnet, kubeconfig), 0o644); err != nil {
		return err
	}
	name := n.Name + "-kube-proxy"
	if err := n.c.start(n.Name, name, filepath.Join(n.c.peers(), "kube-proxy"), "--config", config); err != nil {
		return err
	}
	// It serves its health once it has become a process of the node's, and who
	// looks for what a node has must find it there.
	dial := harness.Dialer(n.c.netns(n.Name))
	return n.c.eventually(ctx, proxyTimeout, []string{name}, func(ctx context.Context) error {
		conn, err := dial(ctx, "tcp", "127.0.0.1:10256")
		if err != nil {
			return fmt.Errorf("kube-proxy of %s: %w", n.Name, err)
		}
		return conn.Close()
	})
}

const proxyTimeout = time.Minute

//go:embed coredns.yaml
var coreDNS string

const dnsTimeout = 3 * time.Minute

// startDNS runs CoreDNS as a Deployment and waits until it answers probes, and
// questions that come from each node: its proxy has to hear of it, too.
func (c *Cluster) startDNS(ctx context.Context) error {
	if c.Config.NoDNS {
		return nil
	}
	manifest := filepath.Join(c.Dir, "coredns.yaml")
	text := strings.NewReplacer("IMAGE", images.CoreDNSReference, "CLUSTER_IP", dnsIP, "DOMAIN", dnsDomain).Replace(coreDNS)
	if err := os.WriteFile(manifest, []byte(text), 0o644); err != nil {
		return err
	}
	if _, err := c.Kubectl(ctx, "apply", "-f", manifest); err != nil {
		return err
	}
	err := c.eventually(ctx, dnsTimeout, nil, func(ctx context.Context) error {
		d, err := c.Client.AppsV1().Deployments(metav1.NamespaceSystem).Get(ctx, "coredns", metav1.GetOptions{})
		if err != nil {
			return err
		}
		if d.Status.AvailableReplicas == 0 {
			return errors.New("CoreDNS is not available (kubectl -n kube-system describe pods says why)")
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, n := range c.Nodes {
		if n.Kind == Host {
			continue
		}
		dial := harness.Dialer(c.netns(n.Name))
		resolver := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return dial(ctx, network, dnsIP+":53")
		}}
		err := c.eventually(ctx, dnsTimeout, nil, func(ctx context.Context) error {
			_, err := resolver.LookupHost(ctx, "kubernetes.default.svc."+dnsDomain+".")
			return err
		})
		if err != nil {
			return fmt.Errorf("from %s: %w", n.Name, err)
		}
	}
	return nil
}
