// Package client speaks to the agent's API socket for the command line.
package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"syscall"

	v1 "k8s.io/api/core/v1"
)

// Client of one node.
type Client struct {
	socket string
	http   *http.Client
}

// New returns a client of the API at that socket.
func New(socket string) *Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}
	return &Client{socket: socket, http: &http.Client{Transport: &http.Transport{DialContext: dial}}}
}

// Base is the URL that requests for this node are built on; its host is only
// a name, since connections go to the socket.
const Base = "http://berth"

// Transport connects to the API socket, for those who speak more than HTTP.
func (c *Client) Transport() http.RoundTripper { return c.http.Transport }

// Get decodes the answer to a GET into out.
func (c *Client) Get(ctx context.Context, path string, out any) error {
	body, err := c.Do(ctx, http.MethodGet, path, nil)
	if err != nil {
		return err
	}
	defer body.Close()
	if err := json.NewDecoder(body).Decode(out); err != nil {
		return fmt.Errorf("read the node's answer to %s: %w", path, err)
	}
	return nil
}

// Do sends a request and returns the body of a good answer, for the caller to
// close. The text of a bad one is the error.
func (c *Client) Do(ctx context.Context, method, path string, body []byte) (io.ReadCloser, error) {
	req, err := http.NewRequestWithContext(ctx, method, Base+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.explain(err)
	}
	if resp.StatusCode >= 300 {
		defer resp.Body.Close()
		text, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", resp.Status, err)
		}
		return nil, errors.New(strings.TrimSpace(string(text)))
	}
	return resp.Body, nil
}

// explain says what a user can do about a socket that does not answer.
func (c *Client) explain(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		err = u.Err
	}
	switch {
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("the node's socket %s is for root: run this with sudo", c.socket)
	case errors.Is(err, os.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("no node answers on %s: start it with `berth node`, or name its configuration with --config", c.socket)
	}
	return err
}

// Pods lists the node's pods.
func (c *Client) Pods(ctx context.Context) ([]v1.Pod, error) {
	var list v1.PodList
	err := c.Get(ctx, "/pods", &list)
	return list.Items, err
}

// Pod finds one pod.
func (c *Client) Pod(ctx context.Context, namespace, name string) (*v1.Pod, error) {
	pods, err := c.Pods(ctx)
	if err != nil {
		return nil, err
	}
	for i := range pods {
		if pods[i].Namespace == namespace && pods[i].Name == name {
			return &pods[i], nil
		}
	}
	return nil, fmt.Errorf("pod %q not found in namespace %q on this node", name, namespace)
}
