package podspec

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func service(namespace, name, ip string, ports ...v1.ServicePort) *v1.Service {
	return &v1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}, Spec: v1.ServiceSpec{ClusterIP: ip, Ports: ports}}
}

func TestServiceVariables(t *testing.T) {
	https := v1.ServicePort{Name: "https", Port: 443}
	api := service("default", "kubernetes", "10.96.0.1", https)
	apiEnv := map[string]string{
		"KUBERNETES_SERVICE_HOST": "10.96.0.1", "KUBERNETES_SERVICE_PORT": "443", "KUBERNETES_SERVICE_PORT_HTTPS": "443",
		"KUBERNETES_PORT": "tcp://10.96.0.1:443", "KUBERNETES_PORT_443_TCP": "tcp://10.96.0.1:443",
		"KUBERNETES_PORT_443_TCP_PROTO": "tcp", "KUBERNETES_PORT_443_TCP_PORT": "443", "KUBERNETES_PORT_443_TCP_ADDR": "10.96.0.1",
	}
	dns := service("mine", "my-dns", "2001:db8::1", v1.ServicePort{Port: 53, Protocol: v1.ProtocolUDP}, v1.ServicePort{Name: "dns-tcp", Port: 53, Protocol: v1.ProtocolTCP})
	dnsEnv := map[string]string{
		"MY_DNS_SERVICE_HOST": "2001:db8::1", "MY_DNS_SERVICE_PORT": "53", "MY_DNS_SERVICE_PORT_DNS_TCP": "53",
		"MY_DNS_PORT": "udp://[2001:db8::1]:53", "MY_DNS_PORT_53_UDP": "udp://[2001:db8::1]:53",
		"MY_DNS_PORT_53_UDP_PROTO": "udp", "MY_DNS_PORT_53_UDP_PORT": "53", "MY_DNS_PORT_53_UDP_ADDR": "2001:db8::1",
		"MY_DNS_PORT_53_TCP": "tcp://[2001:db8::1]:53", "MY_DNS_PORT_53_TCP_PROTO": "tcp", "MY_DNS_PORT_53_TCP_PORT": "53",
		"MY_DNS_PORT_53_TCP_ADDR": "2001:db8::1",
	}
	own := service("mine", "kubernetes", "10.96.9.9", v1.ServicePort{Port: 80})
	ownEnv := map[string]string{
		"KUBERNETES_SERVICE_HOST": "10.96.9.9", "KUBERNETES_SERVICE_PORT": "80",
		"KUBERNETES_PORT": "tcp://10.96.9.9:80", "KUBERNETES_PORT_80_TCP": "tcp://10.96.9.9:80",
		"KUBERNETES_PORT_80_TCP_PROTO": "tcp", "KUBERNETES_PORT_80_TCP_PORT": "80", "KUBERNETES_PORT_80_TCP_ADDR": "10.96.9.9",
	}
	for _, c := range []struct {
		name     string
		links    *bool
		services []*v1.Service
		want     []map[string]string
	}{
		{"the API server in any case", new(false), []*v1.Service{dns, api}, []map[string]string{apiEnv}},
		{"those of the namespace", nil, []*v1.Service{dns, api}, []map[string]string{apiEnv, dnsEnv}},
		{"those of the namespace, asked for", new(true), []*v1.Service{api, dns}, []map[string]string{apiEnv, dnsEnv}},
		{"not those of others", nil, []*v1.Service{service("other", "web", "10.96.0.7", https)}, nil},
		{"nor those without an address", nil, []*v1.Service{service("mine", "none", "None", https), service("mine", "external", "", https)}, nil},
		{"the namespace's own prevails", nil, []*v1.Service{own, api}, []map[string]string{ownEnv}},
		{"the namespace's own prevails, in any order", nil, []*v1.Service{api, own}, []map[string]string{ownEnv}},
	} {
		pod := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "mine"}, Spec: v1.PodSpec{EnableServiceLinks: c.links}}
		want := map[string]string{}
		for _, env := range c.want {
			for k, v := range env {
				want[k] = v
			}
		}
		if diff := cmp.Diff(want, ServiceEnv(pod, c.services)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, diff)
		}
	}
}
