package harness

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// apiClient speaks to the node's API socket.
type apiClient struct{ http http.Client }

func newAPIClient(socket string) *apiClient {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", socket)
	}
	return &apiClient{http: http.Client{
		Timeout:   time.Minute,
		Transport: &http.Transport{DialContext: dial, MaxIdleConnsPerHost: 16, IdleConnTimeout: time.Second},
	}}
}

func (c *apiClient) get(path string) ([]byte, error) {
	resp, err := c.http.Get("http://node" + path)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, fmt.Errorf("GET %s: %w", path, err)
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("GET %s: %s: %s", path, resp.Status, body)
	}
	return body, nil
}

// TryPods asks the node for its pods with their status.
func (n *Node) TryPods() ([]corev1.Pod, error) { return n.api.pods() }

// PodsAt asks the node behind an API socket for its pods with their status.
func PodsAt(socket string) ([]corev1.Pod, error) { return newAPIClient(socket).pods() }

func (c *apiClient) pods() ([]corev1.Pod, error) {
	body, err := c.get("/pods")
	if err != nil {
		return nil, err
	}
	var list corev1.PodList
	if err := json.Unmarshal(body, &list); err != nil {
		return nil, fmt.Errorf("GET /pods: %w", err)
	}
	return list.Items, nil
}

// Pods is TryPods for when the daemon must be there to answer.
func (n *Node) Pods() []corev1.Pod {
	n.t.Helper()
	pods, err := n.TryPods()
	if err != nil {
		n.t.Fatalf("%v", err)
	}
	return pods
}

// Events returns what the node reported so far.
func (n *Node) Events() []corev1.Event {
	n.t.Helper()
	body, err := n.api.get("/events")
	if err != nil {
		n.t.Fatalf("%v", err)
	}
	var list corev1.EventList
	if err := json.Unmarshal(body, &list); err != nil {
		n.t.Fatalf("GET /events: %v", err)
	}
	return list.Items
}

// Explain returns the node's account of a pod.
func (n *Node) Explain(namespace, name string) string {
	r := n.CLI("explain", "pod", name, "-n", namespace)
	return r.Stdout + r.Stderr
}
