package server

import (
	"context"
	"fmt"
	"math"
	"path"
	"syscall"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-io/berth/cri/ns"
	"github.com/berth-io/berth/cri/shim"
	"github.com/berth-io/berth/cri/spec"
	"github.com/berth-io/berth/cri/store"
	"github.com/berth-io/berth/internal/failpoint"
)

// startInit starts the pod's first process and pins its namespaces: that of
// process IDs, if the containers share it, and with a user namespace all that
// the pod has. Without a shared one the process has nothing more to do then.
func (s *Server) startInit(ctx context.Context, sb store.Sandbox, tl *timeline) error {
	defer tl.step("init")()
	client := s.pod(sb.ID).client()
	var spec shim.Init
	var kinds []ns.Kind
	if u := sb.UserNamespace(); u != nil {
		want := podNamespaces(sb)
		if err := ns.Check(want); err != nil {
			return status.Errorf(codes.InvalidArgument, "config.linux.sysctls: %v", err)
		}
		spec.UIDs, spec.GIDs, spec.SetUp = idMaps(u.GetUids()), idMaps(u.GetGids()), &want
		kinds = append([]ns.Kind{ns.User}, want.Kinds...)
	}
	shared := sb.Namespaces().GetPid() == runtimeapi.NamespaceMode_POD
	if shared {
		kinds = append(kinds, ns.PID)
		initCgroup, err := s.initCgroup(sb)
		if err != nil {
			return err
		}
		if _, err := s.cfg.Cgroups.Ensure(initCgroup); err != nil {
			return err
		}
		failpoint.Hit("cri/init-cgroup-created")
		spec.CgroupDirs = s.cfg.Cgroups.Dirs(initCgroup)
	}
	pid, err := client.Init(ctx, spec)
	if err != nil {
		return fmt.Errorf("start the pod's init process: %w", err)
	}
	failpoint.Hit("cri/init-started")
	for _, kind := range kinds {
		if err := ns.Pin(s.nsDir(sb.ID), kind, pid); err != nil {
			return err
		}
	}
	if shared {
		return nil
	}
	if err := client.EndInit(ctx); err != nil {
		return err
	}
	failpoint.Hit("cri/init-ended")
	return nil
}

func idMaps(maps []*runtimeapi.IDMapping) []syscall.SysProcIDMap {
	var list []syscall.SysProcIDMap
	for _, m := range maps {
		list = append(list, syscall.SysProcIDMap{ContainerID: int(m.GetContainerId()), HostID: int(m.GetHostId()), Size: int(m.GetLength())})
	}
	return list
}

// initCgroup is where the init of a shared pid namespace is accounted: with
// the pod, beside its containers.
func (s *Server) initCgroup(sb store.Sandbox) (string, error) {
	c, err := spec.ContainerCgroup(sb.Cgroup, sb.ID, s.cfg.Host)
	return path.Join(path.Dir(c.Path), "init-"+sb.ID), err
}

func (s *Server) createNamespaces(sb store.Sandbox, tl *timeline) error {
	defer tl.step("namespaces")()
	want := podNamespaces(sb)
	if err := ns.Check(want); err != nil {
		return status.Errorf(codes.InvalidArgument, "config.linux.sysctls: %v", err)
	}
	if err := ns.Create(s.nsDir(sb.ID), want); err != nil {
		return err
	}
	failpoint.Hit("cri/namespaces-created")
	return nil
}

// podNamespaces says which namespaces a pod has of its own. Unprivileged
// processes may bind low ports and send pings inside a pod's own network
// namespace, as with every other CRI runtime today.
func podNamespaces(sb store.Sandbox) ns.Spec {
	want := ns.Spec{Sysctls: map[string]string{}}
	if !sb.HostNetwork() {
		want.Kinds = append(want.Kinds, ns.Net, ns.UTS)
		want.Hostname = sb.Config.GetHostname()
		want.Sysctls["net.ipv4.ip_unprivileged_port_start"] = "0"
		want.Sysctls["net.ipv4.ping_group_range"] = fmt.Sprintf("0 %d", lastGroup(sb))
	}
	if sb.Namespaces().GetIpc() != runtimeapi.NamespaceMode_NODE {
		want.Kinds = append(want.Kinds, ns.IPC)
	}
	for k, v := range sb.Config.GetLinux().GetSysctls() {
		want.Sysctls[k] = v
	}
	return want
}

// lastGroup is the last of the groups from 0 on that there are in the pod: the
// kernel takes no other for the groups that may send pings.
func lastGroup(sb store.Sandbox) uint32 {
	u := sb.UserNamespace()
	if u == nil {
		return math.MaxInt32
	}
	for _, m := range u.GetGids() {
		if m.GetContainerId() == 0 {
			return min(m.GetLength()-1, math.MaxInt32)
		}
	}
	return 0
}

// hostRoot is who the root user of a pod is on the host.
func hostRoot(sb store.Sandbox) (uid, gid int) {
	u := sb.UserNamespace()
	return rootOf(u.GetUids()), rootOf(u.GetGids())
}

func rootOf(maps []*runtimeapi.IDMapping) int {
	for _, m := range maps {
		if m.GetContainerId() == 0 {
			return int(m.GetHostId())
		}
	}
	return 0
}
