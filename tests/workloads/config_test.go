package workloads

import (
	"fmt"
	"testing"
)

func TestConfigMapIsEnvironmentVolumeAndArgument(t *testing.T) {
	s := newSpace(t)
	s.kubectl("create", "configmap", "conf", "--from-literal=color=red", "--from-file=app.ini="+s.file("app.ini", "a=1\n"))
	s.apply(`
apiVersion: v1
kind: Pod
metadata: {name: reader}
spec:
  containers:
  - name: box
    image: $BOX
    command: [sh, -c, "echo arguments $0 $1; exec testbox pause", $(COLOR), "$$(COLOR)"]
    env: [{name: COLOR, valueFrom: {configMapKeyRef: {name: conf, key: color}}}]
    envFrom: [{prefix: P_, configMapRef: {name: conf}}]
    volumeMounts: [{name: conf, mountPath: /conf}, {name: conf, mountPath: /one, subPath: app.ini}]
  volumes: [{name: conf, configMap: {name: conf, items: [{key: color, path: deep/color, mode: 0440}, {key: app.ini, path: app.ini}]}}]
`)
	s.ready("pod/reader")
	s.logs("arguments red $(COLOR)", "reader")
	equal(t, "variables", s.exec("reader", "sh", "-c", "echo $COLOR $P_color"), "red red")
	equal(t, "files", s.exec("reader", "sh", "-c", "cat /conf/deep/color /conf/app.ini /one; stat -Lc %a /conf/deep/color"), "reda=1\na=1\n440")
	// A change reaches the volume, but neither the variables nor the subPath.
	s.kubectl("patch", "configmap", "conf", "-p", `{"data": {"color": "blue", "app.ini": "a=2\n"}}`)
	s.exec("reader", "sh", "-c", "until [ $(cat /conf/deep/color) = blue ]; do sleep 0.1; done")
	equal(t, "after the change", s.exec("reader", "sh", "-c", "cat /conf/app.ini /one; echo $COLOR"), "a=2\na=1\nred")
}

func TestSecretIsEnvironmentAndVolume(t *testing.T) {
	s := newSpace(t)
	s.kubectl("create", "secret", "generic", "key", "--from-literal=password=pa ss")
	s.pod("reader", `securityContext: {runAsUser: 1000, fsGroup: 2000}`, `containers: [{name: box, image: $BOX,
		env: [{name: PASSWORD, valueFrom: {secretKeyRef: {name: key, key: password}}}],
		volumeMounts: [{name: key, mountPath: /key, readOnly: true}]}]`,
		`volumes: [{name: key, secret: {secretName: key, defaultMode: 0400}}]`)
	equal(t, "variable and file", s.exec("reader", "sh", "-c", "echo $PASSWORD; cat /key/password"), "pa ss\npa ss")
	equal(t, "the file", s.exec("reader", "stat", "-Lc", "%a %g", "/key/password"), "440 2000")
	contains(t, "file system", s.exec("reader", "sh", "-c", "grep ' /key ' /proc/mounts"), "tmpfs")
	contains(t, "writing", s.refused("exec", "reader", "--", "sh", "-c", "echo > /key/password"), "Read-only")
}

func TestPodWaitsForAnObjectThatIsMissing(t *testing.T) {
	s := newSpace(t)
	s.create("volume", `containers: [{name: box, image: $BOX}]`, `volumes: [{name: key, secret: {secretName: late}}]`)
	s.create("variable", `containers: [{name: box, image: $BOX, env: [{name: V, valueFrom: {secretKeyRef: {name: late, key: v}}}]}]`)
	s.want("pod/variable", ".status.containerStatuses[0].state.waiting.reason", "CreateContainerConfigError")
	s.event("Pod/volume", "FailedMount", `secret "late" not found`)
	s.want("pod/volume", ".status.containerStatuses[0].state.waiting.reason", "ContainerCreating")
	s.kubectl("create", "secret", "generic", "late", "--from-literal=v=1")
	s.ready("pod/volume", "pod/variable")
}

func TestServiceAccountTokenIsGoodForTheAPIServer(t *testing.T) {
	s := newSpace(t)
	s.kubectl("create", "role", "reader", "--verb=get", "--resource=pods")
	s.kubectl("create", "rolebinding", "reader", "--role=reader", "--serviceaccount="+s.ns+":default")
	s.pod("client", `containers: [{name: box, image: $BOX}]`)
	token := s.exec("client", "cat", "/var/run/secrets/kubernetes.io/serviceaccount/token")
	equal(t, "namespace", s.exec("client", "cat", "/var/run/secrets/kubernetes.io/serviceaccount/namespace"), s.ns)
	equal(t, "who the token is", s.kubectl("auth", "whoami", "--token="+token, "--kubeconfig=/dev/null", "--server="+server(t),
		"--insecure-skip-tls-verify", "-o", "jsonpath={.status.userInfo.username}"), "system:serviceaccount:"+s.ns+":default")
	s.eventually(func() error { // until the API server has heard of the role
		out, err := s.try("auth", "can-i", "get", "pods", "--token="+token, "--kubeconfig=/dev/null", "--server="+server(t), "--insecure-skip-tls-verify")
		if err == nil && out != "yes" {
			err = fmt.Errorf("may the token get pods: %s", out)
		}
		return err
	})
}

func server(t *testing.T) string {
	t.Helper()
	cfg, err := shared.RESTConfig()
	if err != nil {
		t.Fatal(err)
	}
	return cfg.Host
}

func TestDownwardAPIFollowsTheLabels(t *testing.T) {
	s := newSpace(t)
	s.pod("self", `containers: [{name: box, image: $BOX, resources: {limits: {cpu: 250m, memory: 32Mi}},
		env: [{name: IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}, {name: CPU, valueFrom: {resourceFieldRef: {resource: limits.cpu, divisor: 1m}}}],
		volumeMounts: [{name: self, mountPath: /self}]}]`,
		`volumes: [{name: self, downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}]}}]`)
	equal(t, "variables", s.exec("self", "sh", "-c", "echo $IP $CPU"), fmt.Sprint(s.get("pod/self", ".status.podIP"), " 250"))
	s.kubectl("label", "pod", "self", "color=green")
	s.exec("self", "sh", "-c", "until grep -q green /self/labels; do sleep 0.1; done")
	equal(t, "labels", s.exec("self", "cat", "/self/labels"), `color="green"`)
}
