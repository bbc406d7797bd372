// Package hook runs the lifecycle handlers of containers: postStart and
// preStop. It decides nothing; what follows from a failed hook is its caller's.
package hook

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/berth-io/berth/agent/probe"
)

// maxBody is how much of an HTTP answer is kept for the pod's events, as the
// kubelet keeps it.
const maxBody = 10 << 10

// Exec runs a command in a container; output is stdout and stderr joined. A
// timeout of zero leaves the bound to ctx.
type Exec func(ctx context.Context, containerID string, command []string, timeout time.Duration) (output []byte, exitCode int, err error)

// Config of a Runner.
type Config struct{ Exec Exec }

// Runner runs handlers.
type Runner struct {
	exec Exec
	http *http.Client
}

// New returns a Runner.
func New(c Config) *Runner {
	transport := &http.Transport{
		TLSClientConfig:   &tls.Config{InsecureSkipVerify: true}, // #nosec: as the API defines it
		DisableKeepAlives: true,
		Proxy:             nil, // pods are never behind the node's proxy
	}
	return &Runner{exec: c.Exec, http: &http.Client{Transport: transport}}
}

// Run runs a handler to its end, or to ctx's. message is what the handler
// said, for the pod's events; the error says what went wrong.
func (r *Runner) Run(ctx context.Context, _ *v1.Pod, container *v1.Container, handler *v1.LifecycleHandler, containerID, podIP string) (message string, err error) {
	switch {
	case handler.Exec != nil:
		return r.runExec(ctx, handler.Exec.Command, containerID)
	case handler.HTTPGet != nil:
		return r.runHTTP(ctx, handler.HTTPGet, container, podIP)
	case handler.Sleep != nil:
		return "", sleep(ctx, time.Duration(handler.Sleep.Seconds)*time.Second)
	case handler.TCPSocket != nil:
		return "", errors.New("a tcpSocket handler cannot be run: the API keeps it for old manifests only")
	}
	return "", errors.New("the handler is empty: it needs exec, httpGet or sleep")
}

func (r *Runner) runExec(ctx context.Context, command []string, containerID string) (string, error) {
	out, code, err := r.exec(ctx, containerID, command, 0)
	message := strings.TrimSpace(string(out))
	if err != nil {
		return message, fmt.Errorf("command %q: %w", strings.Join(command, " "), err)
	}
	if code != 0 {
		return message, fmt.Errorf("command %q exited with %d: %s", strings.Join(command, " "), code, message)
	}
	return message, nil
}

func (r *Runner) runHTTP(ctx context.Context, get *v1.HTTPGetAction, container *v1.Container, podIP string) (string, error) {
	req, err := probe.NewRequest(ctx, get, container, podIP, "lifecycle")
	if err != nil {
		return "", fmt.Errorf("http hook: %w", err)
	}
	body, err := r.get(req)
	if err == nil || req.URL.Scheme != "https" || !strings.Contains(err.Error(), "server gave HTTP response to HTTPS client") {
		return body, err
	}
	// The kubelet ignored the scheme for years: manifests that say HTTPS and
	// mean HTTP exist, and work there.
	req = req.Clone(ctx)
	req.URL.Scheme = "http"
	req.Header.Del("Authorization")
	return r.get(req)
}

func (r *Runner) get(req *http.Request) (string, error) {
	resp, err := r.http.Do(req)
	if err != nil {
		return "", fmt.Errorf("http hook: %w", err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxBody))
	if err != nil {
		return "", fmt.Errorf("http hook %s: read the answer: %w", req.URL, err)
	}
	return string(body), nil
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("sleep of %s was cut short: %w", d, context.Cause(ctx))
	}
}
