package probe

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/berth-io/berth/agent/podspec"
)

// maxOutput bounds what is kept of a command's output or an HTTP body, in bytes.
const maxOutput = 10 << 10

// execSlack is how long a runtime may take to report that a command has timed out.
const execSlack = 10 * time.Second

// outcome is what one attempt found.
type outcome struct {
	status  outcomeStatus
	message string
}

type outcomeStatus int

const (
	failure outcomeStatus = iota
	success
	warning // success, with something that should be known
	unknown // the probe itself could not be carried out
)

// result is the outcome in the words of the kubelet's metrics.
func (o outcome) result() string {
	switch {
	case o.success():
		return "successful"
	case o.status == unknown:
		return "unknown"
	}
	return "failed"
}

func (o outcome) success() bool { return o.status == success || o.status == warning }

// run carries out one attempt.
func (s *Set) run(c *container, spec *v1.Probe, podIP string) outcome {
	limit := timeout(spec)
	switch {
	case spec.Exec != nil:
		return s.exec(c, spec.Exec, limit)
	case spec.HTTPGet != nil:
		return httpGet(c.ctx, s.transport, spec.HTTPGet, c.target.Container, podIP, limit)
	case spec.TCPSocket != nil:
		port, err := ContainerPort(spec.TCPSocket.Port, c.target.Container)
		if err != nil {
			return outcome{unknown, err.Error()}
		}
		host := spec.TCPSocket.Host
		if host == "" {
			host = podIP
		}
		return tcpConnect(c.ctx, net.JoinHostPort(host, strconv.Itoa(port)), limit)
	case spec.GRPC != nil:
		service := ""
		if spec.GRPC.Service != nil {
			service = *spec.GRPC.Service
		}
		return grpcCheck(c.ctx, net.JoinHostPort(podIP, strconv.Itoa(int(spec.GRPC.Port))), service, limit)
	default:
		return outcome{unknown, fmt.Sprintf("missing probe handler for %s_%s(%s):%s", s.pod.Name, s.pod.Namespace, s.pod.UID, c.target.Container.Name)}
	}
}

func (s *Set) exec(c *container, action *v1.ExecAction, limit time.Duration) outcome {
	ctx, cancel := context.WithTimeout(c.ctx, limit+execSlack)
	defer cancel()
	command := podspec.ExpandStatic(action.Command, c.target.Container.Env)
	output, code, err := s.config.Exec(ctx, c.target.ContainerID, command, limit)
	switch {
	case errors.Is(err, context.DeadlineExceeded), status.Code(err) == codes.DeadlineExceeded:
		return outcome{failure, fmt.Sprintf("command timed out: %q timed out after %s", strings.Join(command, " "), limit)}
	case err != nil:
		return outcome{unknown, err.Error()}
	}
	message := string(output[:min(len(output), maxOutput)])
	if code != 0 {
		if message == "" {
			message = fmt.Sprintf("command %q exited with %d", strings.Join(command, " "), code)
		}
		return outcome{failure, message}
	}
	return outcome{success, message}
}

// tcpConnect opens a connection and closes it. The close is an orderly one, as
// the kubelet's: a reset would save the node a socket in TIME_WAIT, and every
// server an explanation for a connection reset by its peer.
func tcpConnect(ctx context.Context, address string, limit time.Duration) outcome {
	dialer := net.Dialer{Timeout: limit, KeepAlive: -1}
	conn, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		return outcome{failure, err.Error()}
	}
	if err := conn.Close(); err != nil {
		return outcome{warning, err.Error()}
	}
	return outcome{status: success}
}

// ContainerPort resolves a port that may be the name of one of the container's.
func ContainerPort(port intstr.IntOrString, c *v1.Container) (int, error) {
	n := port.IntValue() // 0 where it is a name
	if port.Type == intstr.String {
		for _, p := range c.Ports {
			if p.Name == port.StrVal {
				n = int(p.ContainerPort)
				break
			}
		}
		if n == 0 {
			return 0, fmt.Errorf("container %s has no port named %q", c.Name, port.StrVal)
		}
	}
	if n < 1 || n > 65535 {
		return 0, fmt.Errorf("invalid port number: %d", n)
	}
	return n, nil
}
