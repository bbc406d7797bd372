package server

import (
	"fmt"
	"os"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-io/berth/cri/ns"
	"github.com/berth-io/berth/cri/spec"
	"github.com/berth-io/berth/cri/store"
)

// joinNamespaces says which namespaces a container shares. Those that the
// sandbox does not have are the node's.
func (s *Server) joinNamespaces(in *spec.Input, sb store.Sandbox, config *runtimeapi.ContainerConfig) error {
	in.Namespaces = map[specs.LinuxNamespaceType]string{}
	dir := s.nsDir(sb.ID)
	for kind, oci := range map[ns.Kind]specs.LinuxNamespaceType{
		ns.Net: specs.NetworkNamespace, ns.IPC: specs.IPCNamespace, ns.UTS: specs.UTSNamespace, ns.User: specs.UserNamespace,
	} {
		if path := ns.Path(dir, kind); ns.Pinned(path) {
			in.Namespaces[oci] = path
		}
	}
	o := config.GetLinux().GetSecurityContext().GetNamespaceOptions()
	switch o.GetPid() {
	case runtimeapi.NamespaceMode_CONTAINER:
		in.OwnPID = true
	case runtimeapi.NamespaceMode_POD:
		path := ns.Path(dir, ns.PID)
		if !ns.Pinned(path) {
			return status.Error(codes.InvalidArgument, "linux.security_context.namespace_options.pid: the pod was not created with a shared pid namespace")
		}
		in.Namespaces[specs.PIDNamespace] = path
	case runtimeapi.NamespaceMode_TARGET:
		target, err := s.containers.Find(o.GetTargetId())
		if err != nil {
			return findError("target container", o.GetTargetId(), err)
		}
		if target.SandboxID != sb.ID || target.State != store.ContainerRunning {
			return status.Errorf(codes.FailedPrecondition, "target container %s does not run in sandbox %s", target.ID, sb.ID)
		}
		in.Namespaces[specs.PIDNamespace] = fmt.Sprintf("/proc/%d/ns/pid", target.Pid)
	}
	return nil
}

// userNS is the path of the pod's user namespace, empty where it has none.
func (s *Server) userNS(sb store.Sandbox) string {
	if sb.UserNamespace() == nil {
		return ""
	}
	return ns.Path(s.nsDir(sb.ID), ns.User)
}

// openBundle lets the OCI runtime reach the bundle once it is, in the pod's user
// namespace, nobody on the host; other users of the host stay out.
func (s *Server) openBundle(sb store.Sandbox, c store.Container) error {
	if sb.UserNamespace() == nil {
		return nil
	}
	_, gid := hostRoot(sb)
	dir := s.containers.Dir(c.ID)
	if err := os.Chown(dir, 0, gid); err != nil {
		return fmt.Errorf("let the pod's user namespace into the bundle: %w", err)
	}
	if err := os.Chmod(dir, 0o710); err != nil {
		return fmt.Errorf("let the pod's user namespace into the bundle: %w", err)
	}
	return nil
}

// ownPID tells whether a container's processes end with its first: the kernel
// ends a pid namespace with its init.
func ownPID(c store.Container) bool {
	return c.Config.GetLinux().GetSecurityContext().GetNamespaceOptions().GetPid() == runtimeapi.NamespaceMode_CONTAINER
}
