// Package podspec translates a pod and its containers into what the CRI asks
// for. It decides; it reads no files and makes no calls.
package podspec

import (
	v1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-io/berth/csi/volume"
)

// Node is what containers inherit from their node.
type Node struct {
	Name          string
	HostIPs       []string
	ClusterDNS    []string
	ClusterDomain string
	HostResolv    []byte // content of the host's resolv.conf
	PodLogsDir    string // /var/log/pods
	KubeletDir    string // /var/lib/kubelet
	SeccompDir    string // Localhost profiles, /var/lib/kubelet/seccomp
	Allocatable   v1.ResourceList
}

// Container is one container about to be created.
type Container struct {
	Pod       *v1.Pod
	Container *v1.Container
	Attempt   uint32
	PodIPs    []string
	Image     *runtimeapi.Image // as the runtime reports it: its user is what runAsNonRoot is checked against
	ImageRef  string
	Mounts    []*runtimeapi.Mount // volumes, made by the caller with VolumeMounts
	Backoff   string              // annotation berth.io/backoff
}

// To be implemented, one file each:
//
//	func Sandbox(pod *v1.Pod, attempt uint32, node Node, cgroupParent string) (*runtimeapi.PodSandboxConfig, error)
//	func ContainerConfig(c Container, node Node, objects volume.Objects) (*runtimeapi.ContainerConfig, error)
//	func Env(c Container, node Node, objects volume.Objects) ([]*runtimeapi.KeyValue, error)
//	func HostsFile(pod *v1.Pod, podIPs []string, hostHosts []byte) []byte
//	func SubPathOf(m v1.VolumeMount, env []*runtimeapi.KeyValue) (string, error)   // subPath or expanded subPathExpr
//	func LogDir / LogPath                                                           // the kubelet's names
//	labels and annotations: the kubelet's (io.kubernetes.pod.name, io.kubernetes.container.hash, io.kubernetes.container.restartCount, ...)
//
// A ConfigError is the user's to mend and is reported as
// CreateContainerConfigError; any other error is CreateContainerError.
type ConfigError struct{ Message string }

func (e *ConfigError) Error() string { return e.Message }

var _ volume.Objects = (volume.Objects)(nil)
