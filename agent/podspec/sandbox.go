package podspec

import (
	"fmt"
	"maps"
	"strings"

	v1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Sandbox is the configuration of a pod's sandbox. The caller adds
// Linux.Resources and Linux.Overhead where it wants the runtime to know them.
// What the DNS policy could not give is told by DNS. userNamespace has the ID
// mappings of a pod with hostUsers: false, and is nil for others.
func Sandbox(pod *v1.Pod, attempt uint32, node Node, cgroupParent string, userNamespace *runtimeapi.UserNamespace) (*runtimeapi.PodSandboxConfig, error) {
	cfg := &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{
			Name:      pod.Name,
			Namespace: pod.Namespace,
			Uid:       string(pod.UID),
			Attempt:   attempt,
		},
		Labels:       podLabels(pod),
		Annotations:  maps.Clone(pod.Annotations),
		LogDirectory: LogDir(node.PodLogsDir, pod),
		PortMappings: portMappings(pod),
	}
	cfg.DnsConfig, _ = DNS(pod, node)
	// In the host's network the pod has the host's name, which is the
	// runtime's to find out: an empty Hostname asks for it.
	if !pod.Spec.HostNetwork {
		var err error
		if cfg.Hostname, err = kernelHostname(pod, node.ClusterDomain); err != nil {
			return nil, err
		}
	}
	sc, err := sandboxSecurity(pod, userNamespace)
	if err != nil {
		return nil, err
	}
	cfg.Linux = &runtimeapi.LinuxPodSandboxConfig{
		CgroupParent:    cgroupParent,
		SecurityContext: sc,
		Sysctls:         map[string]string{},
	}
	if psc := pod.Spec.SecurityContext; psc != nil {
		for _, s := range psc.Sysctls {
			cfg.Linux.Sysctls[s.Name] = s.Value
		}
	}
	return cfg, nil
}

// portMappings lists the ports of the containers that run as long as the pod.
// Unlike the kubelet that includes sidecars (restartable init containers),
// whose host ports would else be admitted and then silently not there.
func portMappings(pod *v1.Pod) []*runtimeapi.PortMapping {
	var out []*runtimeapi.PortMapping
	for i := range pod.Spec.InitContainers {
		c := &pod.Spec.InitContainers[i]
		if c.RestartPolicy != nil && *c.RestartPolicy == v1.ContainerRestartPolicyAlways {
			out = append(out, containerPorts(c)...)
		}
	}
	for i := range pod.Spec.Containers {
		out = append(out, containerPorts(&pod.Spec.Containers[i])...)
	}
	return out
}

func containerPorts(c *v1.Container) []*runtimeapi.PortMapping {
	var out []*runtimeapi.PortMapping
	seen := map[string]bool{}
	for _, p := range c.Ports {
		// The same container port may be asked for once per address family.
		name := p.Name
		if name == "" {
			family := "any"
			if strings.Contains(p.HostIP, ":") {
				family = "v6"
			} else if p.HostIP != "" {
				family = "v4"
			}
			name = fmt.Sprintf("%s-%s-%s:%d:%d", family, p.Protocol, p.HostIP, p.ContainerPort, p.HostPort)
		}
		if seen[name] {
			continue
		}
		seen[name] = true
		protocol := runtimeapi.Protocol_TCP
		switch p.Protocol {
		case v1.ProtocolUDP:
			protocol = runtimeapi.Protocol_UDP
		case v1.ProtocolSCTP:
			protocol = runtimeapi.Protocol_SCTP
		}
		out = append(out, &runtimeapi.PortMapping{
			HostIp:        p.HostIP,
			HostPort:      p.HostPort,
			ContainerPort: p.ContainerPort,
			Protocol:      protocol,
		})
	}
	return out
}

// UserNamespace returns the ID mappings that Sandbox was given.
func UserNamespace(sandbox *runtimeapi.PodSandboxConfig) *runtimeapi.UserNamespace {
	u := sandbox.GetLinux().GetSecurityContext().GetNamespaceOptions().GetUsernsOptions()
	if u.GetMode() == runtimeapi.NamespaceMode_NODE {
		return nil
	}
	return u
}

// namespaces says which namespaces of the node, the pod or the container
// itself a pod's containers are in.
func namespaces(pod *v1.Pod, userNamespace *runtimeapi.UserNamespace) (*runtimeapi.NamespaceOption, error) {
	spec := &pod.Spec
	if own := spec.HostUsers != nil && !*spec.HostUsers; own != (userNamespace != nil) {
		return nil, fmt.Errorf("the pod has ID mappings: %v, and wants a user namespace: %v", !own, own)
	}
	if userNamespace == nil {
		userNamespace = &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_NODE}
	}
	opt := &runtimeapi.NamespaceOption{
		Network:       runtimeapi.NamespaceMode_POD,
		Ipc:           runtimeapi.NamespaceMode_POD,
		Pid:           runtimeapi.NamespaceMode_CONTAINER,
		UsernsOptions: userNamespace,
	}
	if spec.HostNetwork {
		opt.Network = runtimeapi.NamespaceMode_NODE
	}
	if spec.HostIPC {
		opt.Ipc = runtimeapi.NamespaceMode_NODE
	}
	switch {
	case spec.HostPID:
		opt.Pid = runtimeapi.NamespaceMode_NODE
	case spec.ShareProcessNamespace != nil && *spec.ShareProcessNamespace:
		opt.Pid = runtimeapi.NamespaceMode_POD
	}
	return opt, nil
}
