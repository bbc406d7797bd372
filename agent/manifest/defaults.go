package manifest

import (
	"github.com/distribution/reference"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// What an API server fills in before it stores a pod, after
// k8s.io/kubernetes/pkg/apis/core/v1/defaults.go of 1.36 and, for the built-in
// priority classes and tolerations, its default admission plugins:
//
//	metadata.namespace                    default (identity.go)
//	spec.nodeName                         this node
//	spec.restartPolicy                    Always
//	spec.dnsPolicy                        ClusterFirst
//	spec.schedulerName                    default-scheduler
//	spec.terminationGracePeriodSeconds    30
//	spec.securityContext                  {}
//	spec.enableServiceLinks               true
//	spec.priority, preemptionPolicy       of system-node-critical, system-cluster-critical; else 0, PreemptLowerPriority
//	container.imagePullPolicy             Always for :latest or no tag, else IfNotPresent
//	container.terminationMessagePath      /dev/termination-log
//	container.terminationMessagePolicy    File
//	container.resources                   rounded up to 1m; requests of a limit without one
//	container.ports                       protocol TCP; hostPort = containerPort with hostNetwork
//	container.env fieldRef                apiVersion v1
//	container.env fileKeyRef              optional false
//	probes                                timeout 1 s, period 10 s, success 1, failure 3; gRPC service ""
//	HTTP probes and hooks                 path /, scheme HTTP
//	volume without a source               emptyDir
//	configMap, secret, downwardAPI, projected    defaultMode 0644
//	downwardAPI fieldRef                  apiVersion v1
//	hostPath type                         ""
//	image pullPolicy                      as imagePullPolicy
//
// Defaults of volume kinds that are not supported are left out, and so are
// spec.serviceAccountName and the token volume, which need an API server.
func setPodDefaults(pod *v1.Pod, nodeName string) {
	spec := &pod.Spec
	setDefault(&spec.NodeName, nodeName)
	setDefault(&spec.RestartPolicy, v1.RestartPolicyAlways)
	setDefault(&spec.DNSPolicy, v1.DNSClusterFirst)
	setDefault(&spec.SchedulerName, v1.DefaultSchedulerName)
	setDefaultTo(&spec.TerminationGracePeriodSeconds, v1.DefaultTerminationGracePeriodSeconds)
	setDefaultTo(&spec.SecurityContext, v1.PodSecurityContext{})
	setDefaultTo(&spec.EnableServiceLinks, v1.DefaultEnableServiceLinks)
	setDefaultTo(&spec.Priority, builtinPriority(spec.PriorityClassName))
	setDefaultTo(&spec.PreemptionPolicy, v1.PreemptLowerPriority)
	for i := range spec.InitContainers {
		setContainerDefaults(&spec.InitContainers[i], spec.HostNetwork)
	}
	for i := range spec.Containers {
		setContainerDefaults(&spec.Containers[i], spec.HostNetwork)
	}
	setPodResourceDefaults(pod)
	for i := range spec.Volumes {
		setVolumeDefaults(&spec.Volumes[i])
	}
}

func setDefault[T comparable](p *T, value T) {
	var zero T
	if *p == zero {
		*p = value
	}
}

func setDefaultTo[T any](p **T, value T) {
	if *p == nil {
		*p = &value
	}
}

func builtinPriority(class string) int32 {
	switch class {
	case "system-node-critical":
		return 2_000_001_000
	case "system-cluster-critical":
		return 2_000_000_000
	}
	return 0
}

func setContainerDefaults(c *v1.Container, hostNetwork bool) {
	setDefault(&c.ImagePullPolicy, defaultPullPolicy(c.Image))
	setDefault(&c.TerminationMessagePath, v1.TerminationMessagePathDefault)
	setDefault(&c.TerminationMessagePolicy, v1.TerminationMessageReadFile)
	setResourceDefaults(&c.Resources)
	for i := range c.Ports {
		setDefault(&c.Ports[i].Protocol, v1.ProtocolTCP)
		if hostNetwork {
			setDefault(&c.Ports[i].HostPort, c.Ports[i].ContainerPort)
		}
	}
	for i := range c.Env {
		from := c.Env[i].ValueFrom
		if from != nil && from.FieldRef != nil {
			setDefault(&from.FieldRef.APIVersion, "v1")
		}
		if from != nil && from.FileKeyRef != nil {
			setDefaultTo(&from.FileKeyRef.Optional, false)
		}
	}
	for _, probe := range []*v1.Probe{c.StartupProbe, c.ReadinessProbe, c.LivenessProbe} {
		if probe != nil {
			setProbeDefaults(probe)
		}
	}
	if c.Lifecycle != nil {
		for _, h := range []*v1.LifecycleHandler{c.Lifecycle.PostStart, c.Lifecycle.PreStop} {
			if h != nil && h.HTTPGet != nil {
				setHTTPDefaults(h.HTTPGet)
			}
		}
	}
}

// defaultPullPolicy ignores references that cannot be parsed: validation has them.
func defaultPullPolicy(image string) v1.PullPolicy {
	named, err := reference.ParseNormalizedNamed(image)
	if err != nil {
		return v1.PullIfNotPresent
	}
	if tagged, ok := reference.TagNameOnly(named).(reference.Tagged); ok && tagged.Tag() == "latest" {
		return v1.PullAlways
	}
	return v1.PullIfNotPresent
}

func setResourceDefaults(r *v1.ResourceRequirements) {
	for _, list := range []v1.ResourceList{r.Limits, r.Requests} {
		for name, q := range list {
			q.RoundUp(-3)
			list[name] = q
		}
	}
	for name, limit := range r.Limits {
		if r.Requests == nil {
			r.Requests = v1.ResourceList{}
		}
		if _, ok := r.Requests[name]; !ok {
			r.Requests[name] = limit.DeepCopy()
		}
	}
}

func setProbeDefaults(p *v1.Probe) {
	setDefault(&p.TimeoutSeconds, 1)
	setDefault(&p.PeriodSeconds, 10)
	setDefault(&p.SuccessThreshold, 1)
	setDefault(&p.FailureThreshold, 3)
	if p.HTTPGet != nil {
		setHTTPDefaults(p.HTTPGet)
	}
	if p.GRPC != nil {
		setDefaultTo(&p.GRPC.Service, "")
	}
}

func setHTTPDefaults(h *v1.HTTPGetAction) {
	setDefault(&h.Path, "/")
	setDefault(&h.Scheme, v1.URISchemeHTTP)
}

func setVolumeDefaults(vol *v1.Volume) {
	if vol.VolumeSource == (v1.VolumeSource{}) {
		vol.EmptyDir = &v1.EmptyDirVolumeSource{}
	}
	if s := vol.HostPath; s != nil {
		setDefaultTo(&s.Type, v1.HostPathUnset)
	}
	if s := vol.Image; s != nil {
		setDefault(&s.PullPolicy, defaultPullPolicy(s.Reference))
	}
	if s := vol.ConfigMap; s != nil {
		setDefaultTo(&s.DefaultMode, v1.ConfigMapVolumeSourceDefaultMode)
	}
	if s := vol.Secret; s != nil {
		setDefaultTo(&s.DefaultMode, v1.SecretVolumeSourceDefaultMode)
	}
	if s := vol.DownwardAPI; s != nil {
		setDefaultTo(&s.DefaultMode, v1.DownwardAPIVolumeSourceDefaultMode)
		setFieldRefDefaults(s.Items)
	}
	if s := vol.Projected; s != nil {
		setDefaultTo(&s.DefaultMode, v1.ProjectedVolumeSourceDefaultMode)
		for i := range s.Sources {
			if d := s.Sources[i].DownwardAPI; d != nil {
				setFieldRefDefaults(d.Items)
			}
		}
	}
}

func setFieldRefDefaults(items []v1.DownwardAPIVolumeFile) {
	for i := range items {
		if items[i].FieldRef != nil {
			setDefault(&items[i].FieldRef.APIVersion, "v1")
		}
	}
}

// setServiceDefaults follows SetDefaults_Service. Cluster addresses and node
// ports are not a default: the network gives them out.
func setServiceDefaults(s *v1.Service) {
	spec := &s.Spec
	setDefault(&spec.Type, v1.ServiceTypeClusterIP)
	setDefault(&spec.SessionAffinity, v1.ServiceAffinityNone)
	if spec.SessionAffinity == v1.ServiceAffinityNone {
		spec.SessionAffinityConfig = nil
	}
	if spec.SessionAffinity == v1.ServiceAffinityClientIP {
		setDefaultTo(&spec.SessionAffinityConfig, v1.SessionAffinityConfig{})
		setDefaultTo(&spec.SessionAffinityConfig.ClientIP, v1.ClientIPConfig{})
		setDefaultTo(&spec.SessionAffinityConfig.ClientIP.TimeoutSeconds, v1.DefaultClientIPServiceAffinitySeconds)
	}
	for i := range spec.Ports {
		port := &spec.Ports[i]
		setDefault(&port.Protocol, v1.ProtocolTCP)
		if port.TargetPort == intstr.FromInt32(0) || port.TargetPort == intstr.FromString("") {
			port.TargetPort = intstr.FromInt32(port.Port)
		}
	}
	external := spec.Type == v1.ServiceTypeNodePort || spec.Type == v1.ServiceTypeLoadBalancer ||
		spec.Type == v1.ServiceTypeClusterIP && len(spec.ExternalIPs) > 0
	if external {
		setDefault(&spec.ExternalTrafficPolicy, v1.ServiceExternalTrafficPolicyCluster)
	}
	if spec.Type != v1.ServiceTypeExternalName {
		setDefaultTo(&spec.InternalTrafficPolicy, v1.ServiceInternalTrafficPolicyCluster)
	}
	if spec.Type == v1.ServiceTypeLoadBalancer {
		setDefaultTo(&spec.AllocateLoadBalancerNodePorts, true)
	}
}
