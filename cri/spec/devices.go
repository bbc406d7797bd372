package spec

import (
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// deviceRules deny everything but the devices asked for; the OCI runtime adds
// the few that every container has. A privileged container may use all.
func deviceRules(sc *runtimeapi.LinuxContainerSecurityContext, asked []specs.LinuxDeviceCgroup) []specs.LinuxDeviceCgroup {
	if sc.GetPrivileged() {
		return []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}
	}
	return append([]specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}, asked...)
}
