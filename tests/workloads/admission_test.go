package workloads

import "testing"

func TestNodeRejectsAPodThatDoesNotFit(t *testing.T) {
	s := newSpace(t)
	s.create("big", `nodeName: n1`, `containers: [{name: box, image: $BOX, resources: {requests: {cpu: "1000"}}}]`)
	s.want("pod/big", ".status.phase", "Failed")
	equal(t, "reason", s.get("pod/big", ".status.reason"), "OutOfcpu")
	contains(t, "message", s.get("pod/big", ".status.message"), "Node didn't have enough resource: cpu, requested: 1000000")
	s.event("Pod/big", "OutOfcpu", "Node didn't have enough resource: cpu")
	s.create("pending", `containers: [{name: box, image: $BOX, resources: {requests: {cpu: "1000"}}}]`)
	s.event("Pod/pending", "FailedScheduling", "Insufficient cpu")
}

func TestNodeRejectsAnUnsafeSysctl(t *testing.T) {
	s := newSpace(t)
	s.create("unsafe", `securityContext: {sysctls: [{name: kernel.msgmax, value: "8192"}]}`, `containers: [{name: box, image: $BOX}]`)
	s.want("pod/unsafe", ".status.phase", "Failed")
	equal(t, "reason", s.get("pod/unsafe", ".status.reason"), "SysctlForbidden")
	s.pod("safe", `securityContext: {sysctls: [{name: net.ipv4.ip_unprivileged_port_start, value: "80"}]}`, `containers: [{name: box, image: $BOX}]`)
	equal(t, "sysctl", s.exec("safe", "cat", "/proc/sys/net/ipv4/ip_unprivileged_port_start"), "80")
}

func TestNodeRejectsAPodThatItsLabelsDoNotMatch(t *testing.T) {
	s := newSpace(t)
	s.create("elsewhere", `nodeName: n1`, `nodeSelector: {kubernetes.io/hostname: n2}`, `containers: [{name: box, image: $BOX}]`)
	s.want("pod/elsewhere", ".status.phase", "Failed")
	equal(t, "reason", s.get("pod/elsewhere", ".status.reason"), "NodeAffinity")
}

func TestImageThatIsMissingIsSaidSo(t *testing.T) {
	s := newSpace(t)
	s.create("none", `containers: [{name: box, image: "registry.test/none:1"}]`)
	s.want("pod/none", ".status.containerStatuses[0].state.waiting.reason", "ImagePullBackOff")
	s.event("Pod/none", "Failed", `Failed to pull image "registry.test/none:1"`)
	s.kubectl("set", "image", "pod/none", "box="+box)
	s.ready("pod/none")
}
