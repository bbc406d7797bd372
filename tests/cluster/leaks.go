package cluster

import (
	"context"
	"fmt"
	"slices"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-io/berth/tests/harness"
	"github.com/berth-io/berth/tests/leak"
)

// goneTimeout bounds how long pods may take to go once their namespaces are
// being deleted.
const goneTimeout = 5 * time.Minute

// leftTimeout bounds how long after that something of them may be on a node.
const leftTimeout = 30 * time.Second

func (n *Node) scope() leak.Scope {
	c := n.berth()
	return leak.Scope{
		Dirs:       []string{c.RunDir, c.RootDir, c.KubeletDir, c.PodLogsDir, c.ContainerLogsDir},
		NetNS:      "/run/netns/" + n.c.netns(n.Name),
		CgroupRoot: n.CgroupRoot(),
	}
}

// Containers lists the processes in the node's pods.
func (n *Node) Containers() ([]harness.Process, error) {
	all, err := harness.ProcessesIn(leak.Scope{CgroupRoot: n.CgroupRoot()})
	return slices.DeleteFunc(all, func(p harness.Process) bool { return p.Program == "runc" || p.Program == "berth-shim" }), err
}

// remember notes what Berth's nodes have before the test's first pod.
func (c *Cluster) remember() error {
	for _, n := range c.Nodes {
		if n.Kind != Berth {
			continue // a stock node's leaks are not ours to find
		}
		s, err := leak.Take(n.scope())
		if err != nil {
			return err
		}
		c.before[n.Name] = s
	}
	return nil
}

// CheckNothingLeft fails the test when anything of a pod is still on a Berth
// node shortly after the last pod outside kube-system is gone, for which it
// waits.
func (c *Cluster) CheckNothingLeft(t harness.TB) {
	t.Helper()
	err := c.eventually(context.Background(), goneTimeout, nil, func(ctx context.Context) error {
		pods, err := c.Client.CoreV1().Pods("").List(ctx, metav1.ListOptions{FieldSelector: "metadata.namespace!=" + metav1.NamespaceSystem})
		if err != nil {
			return err
		}
		if len(pods.Items) > 0 {
			return fmt.Errorf("%d pods are there, %s/%s among them", len(pods.Items), pods.Items[0].Namespace, pods.Items[0].Name)
		}
		return nil
	})
	if err != nil {
		t.Errorf("pods do not go: %v", err)
		return
	}
	for _, n := range c.Nodes {
		n.CheckNothingLeft(t)
	}
}

// CheckNothingLeft fails the test when anything of a pod is on the node, which
// has none any more. Of a stock node nothing is known.
func (n *Node) CheckNothingLeft(t harness.TB) {
	t.Helper()
	before, ok := n.c.before[n.Name]
	if !ok {
		return
	}
	allowed := append(n.berth().Residue(),
		leak.Allowed{Kind: "rule", Pattern: `table ip6? kube-proxy.*`, Reason: "kube-proxy's, as services come and go"},
		leak.Allowed{Kind: "file", Pattern: n.KubeletDir() + `/image_manager/pulled/.*`, Reason: "who may use an image is known as long as it is there"},
		leak.Allowed{Kind: "file", Pattern: n.KubeletDir() + `/dra_manager_state`, Reason: "there are no claims in it"},
		leak.Allowed{Kind: "file", Pattern: n.berth().RootDir + `/agent/images-used`, Reason: "when an image was used is known as long as it is there"},
	)
	var left []leak.Item
	for deadline := time.Now().Add(leftTimeout); ; time.Sleep(100 * time.Millisecond) {
		after, err := leak.Take(n.scope())
		if err != nil {
			t.Fatalf("leak check: %v", err)
		}
		if left = leak.Diff(before, after, allowed); len(left) == 0 {
			return
		}
		if time.Now().After(deadline) {
			break
		}
	}
	t.Errorf("left behind by %s:\n%s", n.Name, leak.Format(left))
}
