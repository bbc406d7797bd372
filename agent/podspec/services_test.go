package podspec

import (
	"maps"
	"slices"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
)

func TestServiceEnv(t *testing.T) {
	services := []*v1.Service{
		service("default", "kubernetes", "10.96.0.1", []v1.ServicePort{{Name: "https", Port: 443, Protocol: v1.ProtocolTCP}}),
		service("ns", "my-web", "fd00::1", []v1.ServicePort{{Name: "http-alt", Port: 8080}, {Port: 53, Protocol: v1.ProtocolUDP}}),
		service("ns", "headless", "None", []v1.ServicePort{{Port: 1}}),
		service("ns", "external", "", nil),
		service("other", "elsewhere", "10.96.0.9", []v1.ServicePort{{Port: 1}}),
	}
	own := service("ns", "kubernetes", "10.96.0.7", []v1.ServicePort{{Name: "https", Port: 443}})
	const api = "KUBERNETES_PORT=tcp://10.96.0.1:443|KUBERNETES_PORT_443_TCP=tcp://10.96.0.1:443|KUBERNETES_PORT_443_TCP_ADDR=10.96.0.1|" +
		"KUBERNETES_PORT_443_TCP_PORT=443|KUBERNETES_PORT_443_TCP_PROTO=tcp|KUBERNETES_SERVICE_HOST=10.96.0.1|KUBERNETES_SERVICE_PORT=443|KUBERNETES_SERVICE_PORT_HTTPS=443"
	const web = "MY_WEB_PORT=tcp://[fd00::1]:8080|MY_WEB_PORT_53_UDP=udp://[fd00::1]:53|MY_WEB_PORT_53_UDP_ADDR=fd00::1|MY_WEB_PORT_53_UDP_PORT=53|MY_WEB_PORT_53_UDP_PROTO=udp|" +
		"MY_WEB_PORT_8080_TCP=tcp://[fd00::1]:8080|MY_WEB_PORT_8080_TCP_ADDR=fd00::1|MY_WEB_PORT_8080_TCP_PORT=8080|MY_WEB_PORT_8080_TCP_PROTO=tcp|" +
		"MY_WEB_SERVICE_HOST=fd00::1|MY_WEB_SERVICE_PORT=8080|MY_WEB_SERVICE_PORT_HTTP_ALT=8080"
	no := false
	for _, test := range []struct {
		name     string
		links    *bool
		services []*v1.Service
		want     string
	}{
		{"the API server and the namespace", nil, services, api + "|" + web},
		{"without links the API server only", &no, services, api},
		{"a service of the API server's name comes first", nil, []*v1.Service{own, services[0]}, strings.ReplaceAll(api, "10.96.0.1", "10.96.0.7")},
		{"no services", nil, nil, ""},
	} {
		pod := &v1.Pod{Spec: v1.PodSpec{EnableServiceLinks: test.links}}
		pod.Namespace = "ns"
		var got []string
		env := ServiceEnv(pod, test.services)
		for _, name := range slices.Sorted(maps.Keys(env)) {
			got = append(got, name+"="+env[name])
		}
		if s := strings.Join(got, "|"); s != test.want {
			t.Errorf("%s:\n%s\nwant\n%s", test.name, s, test.want)
		}
	}
}

func service(namespace, name, ip string, ports []v1.ServicePort) *v1.Service {
	s := &v1.Service{Spec: v1.ServiceSpec{ClusterIP: ip, Ports: ports}}
	s.Namespace, s.Name = namespace, name
	return s
}

func TestTheContainersOwnVariablesComeBeforeThoseOfServices(t *testing.T) {
	c := envContainer(t, `{envFrom: [{configMapRef: {name: cm}}], env: [{name: X, value: "$(S) $(A)"}]}`)
	c.ServiceEnv = map[string]string{"S": "service", "A": "hidden"}
	env, err := Env(t.Context(), c, testNode, testObjects)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, kv := range env {
		got[kv.Key] = string(kv.Value)
	}
	if got["S"] != "service" || got["A"] != "cm-a" || got["X"] != "service cm-a" {
		t.Errorf("environment %v", got)
	}
}
