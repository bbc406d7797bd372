// Package hook runs the lifecycle handlers of containers: postStart and
// preStop. It decides nothing; what follows from a failed hook is its caller's.
package hook

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/berth-io/berth/agent/probe"
)

// maxOutput bounds what is kept of a command's output, in bytes.
const maxOutput = 10 << 10

// Exec runs a command in a container; output is stdout and stderr joined. A
// timeout of zero leaves the bound to ctx.
type Exec func(ctx context.Context, containerID string, command []string, timeout time.Duration) (output []byte, exitCode int, err error)

// Config of a Runner.
type Config struct {
	Exec Exec
	// Event is told when a handler worked otherwise than its pod says
	// (LifecycleHTTPFallback); nil for nobody.
	Event func(pod *v1.Pod, eventType, reason, message string)
	// HTTPFallback is told of that as well, and SleepCut of a sleep whose container
	// did not live to see its end; nil: nobody counts.
	HTTPFallback, SleepCut func()
}

// Runner runs handlers; it keeps nothing between two of them.
type Runner struct {
	config Config
	client *http.Client
}

// New returns a Runner.
func New(c Config) *Runner {
	return &Runner{config: c, client: &http.Client{
		Transport:     probe.NewTransport(),
		CheckRedirect: probe.FollowOnHost,
	}}
}

// Run runs a handler to its end, or to ctx's, against the container and, by
// default, podIP. message is what a command that succeeded has said. An error's
// text is the kubelet's: it names the handler, the container and the pod, and
// says what a command that failed has said.
func (r *Runner) Run(ctx context.Context, pod *v1.Pod, c *v1.Container, handler *v1.LifecycleHandler, containerID, podIP string) (message string, err error) {
	of := fmt.Sprintf("for Container %q in Pod %q failed", c.Name, fmt.Sprintf("%s_%s(%s)", pod.Name, pod.Namespace, pod.UID))
	switch {
	case handler.Exec != nil:
		output, err := r.exec(ctx, handler.Exec.Command, containerID)
		if err != nil {
			return "", fmt.Errorf("Exec lifecycle hook (%v) %s - error: %w, message: %q", handler.Exec.Command, of, err, output)
		}
		return output, nil
	case handler.HTTPGet != nil:
		if err := r.httpGet(ctx, pod, c, handler.HTTPGet, podIP); err != nil {
			return "", fmt.Errorf("HTTP lifecycle hook (%s) %s - error: %w", handler.HTTPGet.Path, of, err)
		}
		return "", nil
	case handler.Sleep != nil:
		if err := sleep(ctx, handler.Sleep.Seconds); err != nil {
			if r.config.SleepCut != nil {
				r.config.SleepCut()
			}
			//lint:ignore ST1005 the kubelet's text
			return "", fmt.Errorf("Sleep lifecycle hook (%d) %s - error: %w", handler.Sleep.Seconds, of, err)
		}
		return "", nil
	case handler.TCPSocket != nil:
		return "", errors.New("cannot run handler: invalid handler: tcpSocket is kept in the API for old manifests and was never carried out; use exec, httpGet or sleep")
	default:
		return "", errors.New("cannot run handler: invalid handler: it needs exec, httpGet or sleep")
	}
}

func (r *Runner) exec(ctx context.Context, command []string, containerID string) (string, error) {
	out, code, err := r.config.Exec(ctx, containerID, command, 0)
	output := string(out[:min(len(out), maxOutput)])
	if err == nil && code != 0 {
		err = fmt.Errorf("command '%s' exited with %d", strings.Join(command, " "), code)
	}
	return output, err
}

// httpGet succeeds when there is an answer, whatever its status.
func (r *Runner) httpGet(ctx context.Context, pod *v1.Pod, c *v1.Container, action *v1.HTTPGetAction, podIP string) error {
	if action.Host == "" && podIP == "" {
		return errors.New("failed to find networking container: the pod has no address")
	}
	req, err := probe.NewRequest(ctx, action, c, podIP, "lifecycle")
	if err != nil {
		return err
	}
	err = r.do(req)
	if !answeredHTTP(err) {
		return err
	}
	// Kubernetes ignored the scheme up to 1.25: handlers exist that say HTTPS,
	// mean HTTP, and work. Credentials do not follow into the open.
	plain := req.Clone(ctx)
	plain.URL.Scheme = "http"
	plain.Header.Del("Authorization")
	if r.do(plain) != nil {
		return err
	}
	if r.config.HTTPFallback != nil {
		r.config.HTTPFallback()
	}
	if r.config.Event != nil {
		r.config.Event(pod, v1.EventTypeWarning, "LifecycleHTTPFallback",
			fmt.Sprintf("request to HTTPS lifecycle hook %s got HTTP response, retry with HTTP succeeded", req.URL.Host))
	}
	return nil
}

func (r *Runner) do(req *http.Request) error {
	res, err := r.client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	// The handler may do its work while it writes its answer. What the answer
	// says, and whether it comes to its end, is nobody's business.
	_, _ = io.CopyN(io.Discard, res.Body, maxOutput)
	return nil
}

// answeredHTTP tells whether a request for HTTPS met a server of HTTP; net/http
// has no error value for that.
func answeredHTTP(err error) bool {
	var urlErr *url.Error
	return errors.As(err, &urlErr) && strings.Contains(urlErr.Err.Error(), "server gave HTTP response to HTTPS client")
}

func sleep(ctx context.Context, seconds int64) error {
	if seconds == 0 {
		return nil // done whatever ctx says
	}
	t := time.NewTimer(time.Duration(seconds) * time.Second)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("container terminated before sleep hook finished: %w", context.Cause(ctx))
	}
}
