package podspec

import (
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestSandboxHostname(t *testing.T) {
	for _, tt := range []struct{ name, podName, spec, want, err string }{
		{"the pod's name", "web", `{}`, "web", ""},
		{"a long name is cut and does not end with a dash", strings.Repeat("a", 62) + "-b", `{}`, strings.Repeat("a", 62), ""},
		{"spec.hostname", "web", `{hostname: front}`, "front", ""},
		{"a subdomain does not change the kernel's name", "web", `{subdomain: sub}`, "web", ""},
		{"setHostnameAsFQDN does", "web", `{subdomain: sub, setHostnameAsFQDN: true}`, "web.sub.ns.svc.cluster.local", ""},
		{"hostnameOverride wins over both", "web", `{hostnameOverride: a.b, hostname: front, subdomain: sub, setHostnameAsFQDN: true}`, "a.b", ""},
		{"the host's network has the host's name", "web", `{hostNetwork: true, hostname: front}`, "", ""},
		{"a hostname with a dot is refused", "web", `{hostname: a.b}`, "", `pod Hostname "a.b" is not a valid DNS label`},
		{"a name too long for the kernel is refused", "web", `{subdomain: ` + strings.Repeat("s", 50) + `, setHostnameAsFQDN: true}`, "", "is too long (64 characters is the max, 75 characters requested)"},
		{"a user namespace needs its IDs", "web", `{hostUsers: false}`, "", "the pod has ID mappings: false, and wants a user namespace: true"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			pod := dnsPod(t, tt.spec)
			pod.Name = tt.podName
			cfg, err := Sandbox(pod, 0, testNode, "/", nil)
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Fatalf("error %v, want %q", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if cfg.Hostname != tt.want {
				t.Errorf("hostname %q, want %q", cfg.Hostname, tt.want)
			}
		})
	}
}

func TestAPortAskedForTwiceIsMappedOnce(t *testing.T) {
	cfg, err := Sandbox(dnsPod(t, `{containers: [{name: a, ports: [
	    {name: web, containerPort: 80, hostPort: 8080, protocol: TCP},
	    {name: web, containerPort: 81, hostPort: 8081, protocol: TCP},
	    {containerPort: 53, hostPort: 53, protocol: UDP, hostIP: "::"},
	    {containerPort: 53, hostPort: 53, protocol: UDP, hostIP: "0.0.0.0"},
	    {containerPort: 9, protocol: SCTP}, {containerPort: 9, protocol: SCTP}]}]}`), 0, testNode, "/", nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(cfg.PortMappings) != 4 || cfg.PortMappings[0].ContainerPort != 80 || cfg.PortMappings[3].Protocol != runtimeapi.Protocol_SCTP {
		t.Errorf("port mappings %v", cfg.PortMappings)
	}
}

func TestHostsFile(t *testing.T) {
	const head = "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::0\tip6-localnet\n" +
		"fe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n"
	const aliases = "\n# Entries added by HostAliases.\n1.2.3.4\ta\tb\n"
	for _, tt := range []struct{ name, spec, want string }{
		{"a pod's own addresses", `{}`, head + "10.1.0.7\tweb\nfd00::7\tweb\n"},
		{"a subdomain gives a full name", `{hostname: h, subdomain: sub}`, head + "10.1.0.7\th.sub.ns.svc.cluster.local\th\nfd00::7\th.sub.ns.svc.cluster.local\th\n"},
		{"aliases come last", `{hostAliases: [{ip: 1.2.3.4, hostnames: [a, b]}]}`, head + "10.1.0.7\tweb\nfd00::7\tweb\n" + aliases},
		{"the host's network has the host's file", `{hostNetwork: true, hostAliases: [{ip: 1.2.3.4, hostnames: [a, b]}]}`,
			"# Kubernetes-managed hosts file (host network).\n127.0.0.1 me\n" + aliases},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := HostsFile(dnsPod(t, tt.spec), []string{"10.1.0.7", "fd00::7"}, "cluster.local", []byte("127.0.0.1 me\n"))
			if err != nil {
				t.Fatal(err)
			}
			if string(got) != tt.want {
				t.Errorf("got:\n%s\nwant:\n%s", got, tt.want)
			}
		})
	}
}

func TestAPodWithAUserNamespaceHasItEverywhere(t *testing.T) {
	pod := dnsPod(t, `{hostUsers: false, containers: [{name: a}]}`)
	ids := []*runtimeapi.IDMapping{{HostId: 65536, Length: 65536}}
	u := &runtimeapi.UserNamespace{Uids: ids, Gids: ids}
	sandbox, err := Sandbox(pod, 0, testNode, "/", u)
	if err != nil {
		t.Fatal(err)
	}
	if UserNamespace(sandbox) != u {
		t.Errorf("the sandbox has %v", UserNamespace(sandbox))
	}
	c := Container{Pod: pod, Container: &pod.Spec.Containers[0], UserNamespace: u, Mounts: []*runtimeapi.Mount{{ContainerPath: "/a"}, {ContainerPath: "/b"}}}
	container, err := ContainerConfig(t.Context(), c, testNode, objects{})
	if err != nil {
		t.Fatal(err)
	}
	if got := container.Linux.SecurityContext.NamespaceOptions.UsernsOptions; got != u {
		t.Errorf("the container has %v", got)
	}
	for _, m := range container.Mounts {
		if len(m.UidMappings) != 1 || m.UidMappings[0] != ids[0] || len(m.GidMappings) != 1 {
			t.Errorf("mount %v has no mappings", m)
		}
	}
	c.UserNamespace, c.Mounts[0].UidMappings = nil, nil
	if _, err := ContainerConfig(t.Context(), c, testNode, objects{}); err == nil {
		t.Error("a container outside its pod's user namespace was made")
	}
}
