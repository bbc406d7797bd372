package pods

import (
	"os"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/berth-io/berth/tests/harness"
)

func TestEnvironment(t *testing.T) {
	run(t, []scenario{
		{"variables, command and args are expanded in order", "expand", `
spec:
  containers:
  - name: main
    image: $BOX
    command: [testbox, report, "--once=$(ONCE)", "$(MISSING)", "$$(ESCAPED)"]
    args: ["$(GREETING)"]
    env:
    - {name: ONCE, value: "false"}
    - {name: WHO, value: world}
    - {name: GREETING, value: "hello $(WHO)"}
    - {name: LATER, value: "$(AFTER)"}
    - {name: AFTER, value: x}
    - {name: DOLLARS, value: "$$(WHO)"}
    - {name: EMPTY}
`, func(t *testing.T, p *harness.Pod) {
			r := p.Report("main")
			equal(t, "args", strings.Join(r.Args[1:], "|"), "report|--once=false|$(MISSING)|$(ESCAPED)|hello world")
			for k, want := range map[string]string{"GREETING": "hello world", "LATER": "$(AFTER)", "DOLLARS": "$(WHO)", "EMPTY": "", "HOSTNAME": "expand"} {
				got, ok := r.Env[k]
				equal(t, k+" is set", ok, true)
				equal(t, k, got, want)
			}
		}},
		{"envFrom takes all keys, with a prefix, and env wins", "envfrom", `
spec:
  containers:
  - name: main
    image: $BOX
    command: [testbox, report]
    envFrom:
    - configMapRef: {name: envfrom}
    - secretRef: {name: envfrom}
      prefix: S_
    - configMapRef: {name: nowhere, optional: true}
    env:
    - {name: B, value: from-env}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: envfrom}
data: {A: from-map, B: from-map}
---
apiVersion: v1
kind: Secret
metadata: {name: envfrom}
stringData: {TOKEN: s3cret}
data: {CODED: aGVsbG8=}
`, func(t *testing.T, p *harness.Pod) {
			r := p.Report("main")
			for k, want := range map[string]string{"A": "from-map", "B": "from-env", "S_TOKEN": "s3cret", "S_CODED": "hello"} {
				equal(t, k, r.Env[k], want)
			}
		}},
		{"variables come from a file that an init container has written", "envfile", `
spec:
  initContainers:
  - name: writer
    image: $BOX
    command: [sh, -c, 'echo "COLOR=''dark red''" >/env/vars']
    volumeMounts: [{name: env, mountPath: /env}]
  containers:
  - name: main
    image: $BOX
    command: [testbox, report]
    env:
    - {name: COLOR, valueFrom: {fileKeyRef: {volumeName: env, path: vars, key: COLOR}}}
    - {name: SIZE, valueFrom: {fileKeyRef: {volumeName: env, path: vars, key: SIZE, optional: true}}}
  volumes: [{name: env, emptyDir: {}}]
`, func(t *testing.T, p *harness.Pod) {
			r := p.Report("main")
			equal(t, "COLOR", r.Env["COLOR"], "dark red")
			_, found := r.Env["SIZE"]
			equal(t, "a key that is not there is set", found, false)
		}},
		{"fields of the pod and resources of the container become variables", "fieldref", `
  labels: {tier: front}
  annotations: {note: "some text"}
spec:
  containers:
  - name: main
    image: $BOX
    command: [testbox, report]
    resources:
      requests: {cpu: 50m, memory: 32Mi}
      limits: {cpu: 1500m, memory: 64Mi}
    env:
    - {name: NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
    - {name: NAMESPACE, valueFrom: {fieldRef: {fieldPath: metadata.namespace}}}
    - {name: POD_UID, valueFrom: {fieldRef: {fieldPath: metadata.uid}}}
    - {name: LABEL, valueFrom: {fieldRef: {fieldPath: "metadata.labels['tier']"}}}
    - {name: NOTE, valueFrom: {fieldRef: {fieldPath: "metadata.annotations['note']"}}}
    - {name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
    - {name: HOST_IP, valueFrom: {fieldRef: {fieldPath: status.hostIP}}}
    - {name: POD_IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
    - {name: CPUS, valueFrom: {resourceFieldRef: {resource: limits.cpu}}}
    - {name: MILLIS, valueFrom: {resourceFieldRef: {resource: requests.cpu, divisor: 1m}}}
    - {name: MEMORY, valueFrom: {resourceFieldRef: {resource: limits.memory, divisor: 1Mi}}}
`, func(t *testing.T, p *harness.Pod) {
			r := p.Report("main")
			pod := p.WaitReady()
			for k, want := range map[string]string{
				"NAME": "fieldref", "NAMESPACE": "default", "POD_UID": string(pod.UID), "LABEL": "front", "NOTE": "some text",
				"NODE": pod.Spec.NodeName, "HOST_IP": harness.NodeIP, "POD_IP": pod.Status.PodIP,
				"CPUS": "2", "MILLIS": "50", "MEMORY": "64",
			} {
				equal(t, k, r.Env[k], want)
			}
		}},
		{"keys of config maps and secrets become variables, optional ones may be missing", "keyref", `
spec:
  containers:
  - name: main
    image: $BOX
    command: [testbox, report]
    env:
    - {name: MODE, valueFrom: {configMapKeyRef: {name: keyref, key: mode}}}
    - {name: PASSWORD, valueFrom: {secretKeyRef: {name: keyref, key: password}}}
    - {name: NO_KEY, valueFrom: {configMapKeyRef: {name: keyref, key: missing, optional: true}}}
    - {name: NO_MAP, valueFrom: {secretKeyRef: {name: missing, key: x, optional: true}}}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: keyref}
data: {mode: "multi\nline"}
---
apiVersion: v1
kind: Secret
metadata: {name: keyref}
stringData: {password: "p@ss $word"}
`, func(t *testing.T, p *harness.Pod) {
			r := p.Report("main")
			equal(t, "MODE", r.Env["MODE"], "multi\nline")
			equal(t, "PASSWORD", r.Env["PASSWORD"], "p@ss $word")
			_, key := r.Env["NO_KEY"]
			_, object := r.Env["NO_MAP"]
			equal(t, "missing optional ones are set", key || object, false)
		}},
		{"the image's configuration is inherited", "inherit", `
spec:
  containers:
  - name: main
    image: $CONFIGURED
    env:
    - {name: OVERRIDDEN, value: pod}
`, func(t *testing.T, p *harness.Pod) {
			r := p.Report("main")
			equal(t, "args", strings.Join(r.Args, " "), "/bin/testbox report")
			equal(t, "working directory", r.Dir, "/home/tester")
			equal(t, "uid", r.UID, 1000)
			equal(t, "gid", r.GID, 1000)
			equal(t, "groups", r.Status["Groups"], "1000 2000")
			equal(t, "FROM_IMAGE", r.Env["FROM_IMAGE"], "yes")
			equal(t, "OVERRIDDEN", r.Env["OVERRIDDEN"], "pod")
			equal(t, "HOME", r.Env["HOME"], "/home/tester")
			_, mounted := r.Mount("/image-volume")
			equal(t, "the image's volume is a mount", mounted, true)
		}},
		{"args replace the image's command and keep its entry point", "args", `
spec:
  restartPolicy: Never
  containers:
  - name: main
    image: $CONFIGURED
    args: [exit, --print, only-args]
`, func(t *testing.T, p *harness.Pod) {
			p.WaitPhase(corev1.PodSucceeded)
			trimmed(t, "log", p.Logs("main"), "only-args")
		}},
		{"a command replaces the image's entry point and its command", "command", `
spec:
  restartPolicy: Never
  containers:
  - name: main
    image: $CONFIGURED
    command: [sh, -c, 'echo "$0:$#"; pwd']
    workingDir: /mnt
`, func(t *testing.T, p *harness.Pod) {
			p.WaitPhase(corev1.PodSucceeded)
			trimmed(t, "log", p.Logs("main"), "sh:0\n/mnt")
		}},
		{"a missing config map is waited for", "missing", `
spec:
  containers:
  - name: main
    image: $BOX
    command: [testbox, report]
    env:
    - {name: LATE, valueFrom: {configMapKeyRef: {name: late, key: k}}}
`, func(t *testing.T, p *harness.Pod) {
			message := p.WaitWaiting("main", "CreateContainerConfigError")
			contains(t, "message", message, `configmap "late" not found`)
			p.Node().WriteManifest("late.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: late}\ndata: {k: here}\n")
			equal(t, "LATE", p.Report("main").Env["LATE"], "here")
		}},
		{"a missing key is named", "nokey", `
spec:
  containers:
  - name: main
    image: $BOX
    env:
    - {name: X, valueFrom: {secretKeyRef: {name: nokey, key: absent}}}
---
apiVersion: v1
kind: Secret
metadata: {name: nokey}
stringData: {present: x}
`, func(t *testing.T, p *harness.Pod) {
			message := p.WaitWaiting("main", "CreateContainerConfigError")
			contains(t, "message", message, "couldn't find key absent in Secret default/nokey")
		}},
		{"the hosts file names the pod and its aliases", "hosts", `
spec:
  hostname: web
  subdomain: shop
  hostAliases:
  - {ip: 10.1.2.3, hostnames: [db, db.internal]}
  containers:
  - name: main
    image: $BOX
    command: [testbox, report]
`, func(t *testing.T, p *harness.Pod) {
			r := p.Report("main")
			ip := p.WaitReady().Status.PodIP
			equal(t, "host name", r.Hostname, "web")
			contains(t, "/etc/hosts", r.Hosts, ip+"\tweb.shop.default.svc.cluster.local\tweb")
			contains(t, "/etc/hosts", r.Hosts, "10.1.2.3\tdb\tdb.internal")
			contains(t, "/etc/hosts", r.Hosts, "127.0.0.1\tlocalhost")
		}},
		{"the fully qualified name is the host name when asked for", "fqdn", `
spec:
  subdomain: shop
  setHostnameAsFQDN: true
  containers:
  - name: main
    image: $BOX
    command: [testbox, report]
`, func(t *testing.T, p *harness.Pod) {
			equal(t, "host name", p.Report("main").Hostname, "fqdn.shop.default.svc.cluster.local")
		}},
		{"DNS goes to the cluster by default", "dns-cluster", `
spec:
  containers:
  - name: main
    image: $BOX
    command: [testbox, report]
`, func(t *testing.T, p *harness.Pod) {
			resolv := p.Report("main").Resolv
			contains(t, "resolv.conf", resolv, "nameserver 10.96.0.10")
			contains(t, "resolv.conf", resolv, "search default.svc.cluster.local svc.cluster.local cluster.local")
			contains(t, "resolv.conf", resolv, "options ndots:5")
		}},
		{"DNS policy Default is the host's", "dns-default", `
spec:
  dnsPolicy: Default
  containers:
  - name: main
    image: $BOX
    command: [testbox, report]
`, func(t *testing.T, p *harness.Pod) {
			equal(t, "name servers", nameservers(p.Report("main").Resolv), nameservers(hostFile(t, "/etc/resolv.conf")))
		}},
		{"DNS policy None takes everything from dnsConfig", "dns-none", `
spec:
  dnsPolicy: None
  dnsConfig:
    nameservers: [192.0.2.53]
    searches: [example.test]
    options: [{name: ndots, value: "2"}, {name: edns0}]
  containers:
  - name: main
    image: $BOX
    command: [testbox, report]
`, func(t *testing.T, p *harness.Pod) {
			resolv := p.Report("main").Resolv
			equal(t, "name servers", nameservers(resolv), "192.0.2.53")
			contains(t, "resolv.conf", resolv, "search example.test")
			contains(t, "resolv.conf", resolv, "ndots:2")
			contains(t, "resolv.conf", resolv, "edns0")
		}},
	})
}

func nameservers(resolv string) string {
	var servers []string
	for line := range strings.Lines(resolv) {
		if f := strings.Fields(line); len(f) == 2 && f[0] == "nameserver" {
			servers = append(servers, f[1])
		}
	}
	return strings.Join(servers, " ")
}

func hostFile(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}
