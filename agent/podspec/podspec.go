// Package podspec translates a pod and its containers into what the CRI asks
// for, as the kubelet's kuberuntime does. It decides; it reads no files and
// makes no calls, so everything it needs from the node comes in through Node.
package podspec

import (
	"fmt"

	v1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Node is what pods inherit from their node.
type Node struct {
	Name          string
	HostIPs       []string
	ClusterDNS    []string
	ClusterDomain string
	HostResolv    []byte // content of the host's resolv.conf; empty: pods resolve through the node itself
	PodLogsDir    string // /var/log/pods
	KubeletDir    string // /var/lib/kubelet
	SeccompDir    string // Localhost profiles, /var/lib/kubelet/seccomp
	Allocatable   v1.ResourceList

	// SeccompDefault gives RuntimeDefault to containers that name no profile
	// (KubeletConfiguration's seccompDefault); without it they are unconfined.
	SeccompDefault bool
	// MaskedPaths are hidden from containers in addition to the kubelet's fixed
	// list: the /sys/devices/system/cpu/cpu*/thermal_throttle that exist here.
	MaskedPaths []string
}

// Container is one container about to be created.
type Container struct {
	Pod       *v1.Pod
	Container *v1.Container
	Attempt   uint32            // restart count; also names the log file
	PodIPs    []string          // the node's IP family first
	Target    string            // ID of the container whose processes an ephemeral container sees; empty: its own
	Image     *runtimeapi.Image // as the runtime reports it: its user is what runAsNonRoot is checked against
	ImageRef  string
	Mounts    []*runtimeapi.Mount // volumes, made by the caller with VolumeMounts
	Resources *runtimeapi.LinuxContainerResources
	// ServiceEnv is the variables that tell of services, see ServiceEnv. What
	// the container's spec sets comes before them.
	ServiceEnv map[string]string
	// EnvFile reads a file of one of the pod's volumes for fileKeyRef, a path in
	// the volume that cannot lead out of it; nil for a pod without such volumes.
	// An unknown volume is volume.ErrNotFound.
	EnvFile func(volume, path string) ([]byte, error)
	// UserNamespace is the pod's, see Sandbox.
	UserNamespace *runtimeapi.UserNamespace
	Backoff       string // annotation berth.io/backoff; empty: none
	Round         uint32 // annotation berth.io/round
}

// A ConfigError is the user's to mend and is reported as
// CreateContainerConfigError; any other error is CreateContainerError.
type ConfigError struct {
	// Message is what the pod's status shows. It is the kubelet's text, which
	// for subPaths says nothing about the host's file system.
	Message string
	// Err is the cause, for the node's log only; nil when Message says it all.
	Err error
}

func (e *ConfigError) Error() string { return e.Message }

// Unwrap returns the cause that Message does not show.
func (e *ConfigError) Unwrap() error { return e.Err }

func configErrorf(format string, args ...any) error {
	return &ConfigError{Message: fmt.Sprintf(format, args...)}
}

// podDesc names a pod in messages as the kubelet does.
func podDesc(pod *v1.Pod) string {
	return fmt.Sprintf("%s_%s(%s)", pod.Name, pod.Namespace, pod.UID)
}
