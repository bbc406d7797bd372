package podspec

import (
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"

	v1 "k8s.io/api/core/v1"
)

// ServiceEnv are the variables that tell a pod of services: of all in its
// namespace if it wants their links, and of the cluster's API server in any
// case (pkg/kubelet/kubelet_pods.go, getServiceEnvVarMap).
func ServiceEnv(pod *v1.Pod, services []*v1.Service) map[string]string {
	links := pod.Spec.EnableServiceLinks == nil || *pod.Spec.EnableServiceLinks
	byName := map[string]*v1.Service{}
	for _, s := range services {
		if s.Spec.ClusterIP == "" || s.Spec.ClusterIP == v1.ClusterIPNone || len(s.Spec.Ports) == 0 {
			continue
		}
		switch {
		case links && s.Namespace == pod.Namespace:
			byName[s.Name] = s // also instead of the API server's
		case s.Namespace == v1.NamespaceDefault && s.Name == "kubernetes" && byName[s.Name] == nil:
			byName[s.Name] = s
		}
	}
	env := map[string]string{}
	for _, name := range slices.Sorted(maps.Keys(byName)) {
		serviceVariables(byName[name], env)
	}
	return env
}

// serviceVariables adds the variables of one service: Kubernetes' own and those
// of Docker's links (pkg/kubelet/envvars/envvars.go).
func serviceVariables(s *v1.Service, env map[string]string) {
	prefix := variableName(s.Name)
	env[prefix+"_SERVICE_HOST"] = s.Spec.ClusterIP
	env[prefix+"_SERVICE_PORT"] = strconv.Itoa(int(s.Spec.Ports[0].Port))
	for i, p := range s.Spec.Ports {
		port := strconv.Itoa(int(p.Port))
		if p.Name != "" {
			env[prefix+"_SERVICE_PORT_"+variableName(p.Name)] = port
		}
		protocol := "TCP"
		if p.Protocol != "" {
			protocol = string(p.Protocol)
		}
		url := fmt.Sprintf("%s://%s", strings.ToLower(protocol), net.JoinHostPort(s.Spec.ClusterIP, port))
		if i == 0 {
			env[prefix+"_PORT"] = url
		}
		link := fmt.Sprintf("%s_PORT_%s_%s", prefix, port, strings.ToUpper(protocol))
		env[link] = url
		env[link+"_PROTO"] = strings.ToLower(protocol)
		env[link+"_PORT"] = port
		env[link+"_ADDR"] = s.Spec.ClusterIP
	}
}

func variableName(name string) string {
	return strings.ToUpper(strings.ReplaceAll(name, "-", "_"))
}
