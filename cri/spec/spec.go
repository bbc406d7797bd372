// Package spec turns what the CRI asks of a container into an OCI runtime
// specification. It decides and does nothing else: what it needs to know of
// the host and of the image comes in as values, so that every rule here is a
// line in a table test.
//
//	validate.go   what a request must say
//	process.go    arguments, environment, working directory
//	user.go       uid, gid and groups from the request and the image's accounts
//	security.go   capabilities, seccomp, AppArmor, masked paths
//	mounts.go     default mounts and those of the request
//	devices.go    devices and their cgroup rules
//	resources.go  limits, OOM score, cgroup path
package spec

import (
	"fmt"
	"slices"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-io/berth/cri/selinux"
)

// Host is what a specification depends on of the machine and of the daemon.
type Host struct {
	Unified           bool     // cgroup v2 only
	SystemdCgroup     bool     // cgroups are made by systemd
	Swap              bool     // the memory controller accounts swap
	Hugetlb           bool     // there is a hugetlb controller
	RecursiveReadOnly bool     // the kernel and the runtime can make a mount and what is below it read-only
	Capabilities      []string // those the daemon may pass on, CAP_CHOWN, ...
	MinOOMScoreAdj    int      // the lowest that the daemon may set
	SELinux           bool     // the kernel has SELinux
	NoX32             bool     // an x86-64 kernel without the x32 ABI, as most are
	CgroupOptions     []string // of /sys/fs/cgroup, to be kept where a container shares the cgroup namespace
	// Rlimits are those of containers' processes; a kind that is absent has the daemon's.
	Rlimits []specs.POSIXRlimit
	// AppArmor is the name of the default profile; empty where the kernel has no AppArmor.
	AppArmor string
}

// Input is everything one container's specification is made from.
type Input struct {
	ID        string
	SandboxID string
	Sandbox   *runtimeapi.PodSandboxConfig
	Container *runtimeapi.ContainerConfig
	Image     ocispec.ImageConfig
	Hostname  string
	Rootfs    string // absolute path of the root file system
	Accounts  Accounts
	// Namespaces are the pinned namespaces to join; a kind that is absent is
	// the host's. The pid namespace is absent where the container has its own.
	Namespaces map[specs.LinuxNamespaceType]string
	OwnPID     bool
	// Mounts are those of the request, their sources resolved; PodMounts are
	// the files and the shared memory of the pod, which a request overrides.
	Mounts, PodMounts []Mount
	// Devices are those of the request, and all of the host's for a privileged
	// container.
	Devices []specs.LinuxDevice
	// DeviceRules allow the devices of the request.
	DeviceRules []specs.LinuxDeviceCgroup
	// SeccompProfile is the content of a Localhost profile.
	SeccompProfile []byte
	CgroupsPath    string
	SELinux        selinux.Label
}

// version is the oldest of the OCI runtime specification that has all that a
// container needs: crun before 1.9, which Debian 12 has, refuses every newer
// one. What is used of later versions is asked for only where the runtime's
// features name it.
const version = "1.0.2"

// Build makes the specification. It also returns the user that the container's
// first process has.
func Build(in Input, host Host) (*specs.Spec, *runtimeapi.LinuxContainerUser, error) {
	sc := securityContext(in.Container)
	user, err := ResolveUser(sc, in.Image.User, in.Accounts)
	if err != nil {
		return nil, nil, err
	}
	if err := checkMapped(user, UserNamespace(in.Sandbox)); err != nil {
		return nil, nil, err
	}
	args, err := processArgs(in.Container, in.Image)
	if err != nil {
		return nil, nil, err
	}
	s := &specs.Spec{
		Version: version,
		Root:    &specs.Root{Path: in.Rootfs, Readonly: sc.GetReadonlyRootfs()},
		Process: &specs.Process{
			Terminal:        in.Container.GetTty(),
			Args:            args,
			Env:             processEnv(in.Container, in.Image, in.Hostname),
			Cwd:             workingDir(in.Container, in.Image),
			User:            ociUser(user),
			Capabilities:    capabilities(sc, host.Capabilities),
			NoNewPrivileges: sc.GetNoNewPrivs(),
			OOMScoreAdj:     oomScoreAdj(in.Container, host),
			Rlimits:         slices.Clone(host.Rlimits),
			SelinuxLabel:    in.SELinux.Process,
		},
		Linux: &specs.Linux{
			CgroupsPath: in.CgroupsPath,
			Namespaces:  namespaces(in, sc, host),
			Resources:   Resources(in.Container.GetLinux().GetResources(), host),
			Devices:     in.Devices,
			MountLabel:  in.SELinux.File,
		},
		Annotations: annotations(in),
	}
	s.Linux.Resources.Devices = deviceRules(sc, in.DeviceRules)
	if err := setMounts(s, in, host); err != nil {
		return nil, nil, err
	}
	if err := setSecurity(s, in, host); err != nil {
		return nil, nil, err
	}
	return s, user, nil
}

func securityContext(c *runtimeapi.ContainerConfig) *runtimeapi.LinuxContainerSecurityContext {
	return c.GetLinux().GetSecurityContext()
}

// namespaces has a cgroup namespace only in unified mode and for unprivileged
// containers, as all CRI runtimes do.
func namespaces(in Input, sc *runtimeapi.LinuxContainerSecurityContext, host Host) []specs.LinuxNamespace {
	list := []specs.LinuxNamespace{{Type: specs.MountNamespace}}
	if in.OwnPID {
		list = append(list, specs.LinuxNamespace{Type: specs.PIDNamespace})
	}
	for _, kind := range []specs.LinuxNamespaceType{
		specs.UserNamespace, specs.PIDNamespace, specs.NetworkNamespace, specs.IPCNamespace, specs.UTSNamespace,
	} {
		if path := in.Namespaces[kind]; path != "" {
			list = append(list, specs.LinuxNamespace{Type: kind, Path: path})
		}
	}
	if host.Unified && !sc.GetPrivileged() {
		list = append(list, specs.LinuxNamespace{Type: specs.CgroupNamespace})
	}
	return list
}

// annotations are those that sandboxing runtimes (gVisor, Kata) and tracing
// tools read from containers made through the CRI.
func annotations(in Input) map[string]string {
	meta := in.Sandbox.GetMetadata()
	return map[string]string{
		"io.kubernetes.cri.container-type":    "container",
		"io.kubernetes.cri.sandbox-id":        in.SandboxID,
		"io.kubernetes.cri.sandbox-name":      meta.GetName(),
		"io.kubernetes.cri.sandbox-namespace": meta.GetNamespace(),
		"io.kubernetes.cri.sandbox-uid":       meta.GetUid(),
		"io.kubernetes.cri.container-name":    in.Container.GetMetadata().GetName(),
		"io.kubernetes.cri.image-name":        in.Container.GetImage().GetImage(),
	}
}

// fieldError names the field of the request that is wrong.
func fieldError(field, format string, args ...any) error {
	return fmt.Errorf("%s: %s", field, fmt.Sprintf(format, args...))
}
