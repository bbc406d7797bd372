package podspec

import (
	"net"
	"strconv"
	"strings"

	v1 "k8s.io/api/core/v1"
)

// Service is what an environment tells of a service.
type Service struct {
	Namespace, Name, ClusterIP string
	Ports                      []v1.ServicePort // name, protocol and port count
}

// ServiceEnv is the variables that tell a pod's containers of services: those of
// its namespace, unless it does not want them, and the API server's, which
// client libraries read (pkg/kubelet, getServiceEnvVarMap and envvars). A service
// without an address has none.
func ServiceEnv(pod *v1.Pod, services []Service) map[string]string {
	links := pod.Spec.EnableServiceLinks == nil || *pod.Spec.EnableServiceLinks
	byName := map[string]*Service{}
	for i := range services {
		s := &services[i]
		switch {
		case s.ClusterIP == "" || s.ClusterIP == v1.ClusterIPNone || len(s.Ports) == 0:
		case links && s.Namespace == pod.Namespace:
			byName[s.Name] = s
		case s.Namespace == v1.NamespaceDefault && s.Name == "kubernetes" && byName[s.Name] == nil:
			byName[s.Name] = s
		}
	}
	env := map[string]string{}
	for _, s := range byName {
		s.tell(env)
	}
	return env
}

// tell adds the variables of one service: host and ports, and what Docker's
// links were called.
func (s *Service) tell(env map[string]string) {
	name := variable(s.Name)
	env[name+"_SERVICE_HOST"] = s.ClusterIP
	env[name+"_SERVICE_PORT"] = port(s.Ports[0])
	for i, p := range s.Ports {
		if p.Name != "" {
			env[name+"_SERVICE_PORT_"+variable(p.Name)] = port(p)
		}
		protocol := string(p.Protocol)
		if protocol == "" {
			protocol = string(v1.ProtocolTCP)
		}
		at := strings.ToLower(protocol) + "://" + net.JoinHostPort(s.ClusterIP, port(p))
		if i == 0 {
			env[name+"_PORT"] = at
		}
		link := name + "_PORT_" + port(p) + "_" + strings.ToUpper(protocol)
		env[link] = at
		env[link+"_PROTO"] = strings.ToLower(protocol)
		env[link+"_PORT"] = port(p)
		env[link+"_ADDR"] = s.ClusterIP
	}
}

func variable(name string) string { return strings.ToUpper(strings.ReplaceAll(name, "-", "_")) }

func port(p v1.ServicePort) string { return strconv.Itoa(int(p.Port)) }
