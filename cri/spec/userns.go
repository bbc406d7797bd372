package spec

import (
	"fmt"
	"math"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// maxMappings is how many lines the kernel takes for a user namespace
// (user_namespaces(7)).
const maxMappings = 340

// UserNamespace returns the ID mappings of a pod's user namespace, nil where
// the pod is in the node's. A request that says nothing means the node's: the
// CRI has it otherwise for kubelets from before there were user namespaces,
// but they send no mappings either, and no runtime can invent them.
func UserNamespace(pod *runtimeapi.PodSandboxConfig) *runtimeapi.UserNamespace {
	return ownUserNamespace(pod.GetLinux().GetSecurityContext().GetNamespaceOptions())
}

func ownUserNamespace(o *runtimeapi.NamespaceOption) *runtimeapi.UserNamespace {
	if u := o.GetUsernsOptions(); u != nil && u.GetMode() == runtimeapi.NamespaceMode_POD {
		return u
	}
	return nil
}

const usernsField = "config.linux.security_context.namespace_options.userns_options"

// validateUserNamespace checks a pod's. The namespaces of the node that are
// refused beside it belong to the node's user namespace: in such a pod /proc
// and /dev/mqueue could not be mounted. The API server refuses the same.
func validateUserNamespace(o *runtimeapi.NamespaceOption) error {
	u := o.GetUsernsOptions()
	switch {
	case u == nil:
		return nil
	case u.GetMode() == runtimeapi.NamespaceMode_NODE && len(u.GetUids())+len(u.GetGids()) > 0:
		return fieldError(usernsField, "ID mappings are for mode POD, not NODE")
	case u.GetMode() == runtimeapi.NamespaceMode_NODE:
		return nil
	case u.GetMode() != runtimeapi.NamespaceMode_POD:
		return fieldError(usernsField+".mode", "it is POD or NODE, not %v", u.GetMode())
	case o.GetPid() == runtimeapi.NamespaceMode_NODE:
		return fieldError(usernsField, "a pod with a user namespace cannot use the node's pid namespace")
	case o.GetIpc() == runtimeapi.NamespaceMode_NODE:
		return fieldError(usernsField, "a pod with a user namespace cannot use the node's ipc namespace")
	}
	if err := validateMappings(usernsField+".uids", u.GetUids()); err != nil {
		return err
	}
	if err := validateMappings(usernsField+".gids", u.GetGids()); err != nil {
		return err
	}
	for field, maps := range map[string][]*runtimeapi.IDMapping{".uids": u.GetUids(), ".gids": u.GetGids()} {
		if _, ok := hostID(maps, 0); !ok {
			return fieldError(usernsField+field, "ID 0 of the container must be mapped")
		}
	}
	return nil
}

// validateMappings refuses what the kernel would, with a better reason.
func validateMappings(field string, maps []*runtimeapi.IDMapping) error {
	if len(maps) == 0 || len(maps) > maxMappings {
		return fieldError(field, "it must have 1 to %d mappings, not %d", maxMappings, len(maps))
	}
	for i, m := range maps {
		length := uint64(m.GetLength())
		if length == 0 || uint64(m.GetContainerId())+length > math.MaxUint32 || uint64(m.GetHostId())+length > math.MaxUint32 {
			return fieldError(fmt.Sprintf("%s[%d]", field, i), "%d IDs from %d, on the host from %d: a mapping has at least one ID and none above %d",
				length, m.GetContainerId(), m.GetHostId(), uint32(math.MaxUint32-1))
		}
		for j, o := range maps[:i] {
			if overlap(m.GetContainerId(), m.GetLength(), o.GetContainerId(), o.GetLength()) ||
				overlap(m.GetHostId(), m.GetLength(), o.GetHostId(), o.GetLength()) {
				return fieldError(fmt.Sprintf("%s[%d]", field, i), "it overlaps with [%d]", j)
			}
		}
	}
	return nil
}

func overlap(a, lengthA, b, lengthB uint32) bool {
	return uint64(a) < uint64(b)+uint64(lengthB) && uint64(b) < uint64(a)+uint64(lengthA)
}

// hostID is an ID of the container as the host knows it.
func hostID(maps []*runtimeapi.IDMapping, id int64) (int64, bool) {
	for _, m := range maps {
		if d := id - int64(m.GetContainerId()); d >= 0 && d < int64(m.GetLength()) {
			return int64(m.GetHostId()) + d, true
		}
	}
	return 0, false
}

// sameUserNamespace: the containers of a pod are all in the pod's.
func sameUserNamespace(a, b *runtimeapi.UserNamespace) bool {
	return (a == nil) == (b == nil) && sameMappings(a.GetUids(), b.GetUids()) && sameMappings(a.GetGids(), b.GetGids())
}

func sameMappings(a, b []*runtimeapi.IDMapping) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i].GetContainerId() != b[i].GetContainerId() || a[i].GetHostId() != b[i].GetHostId() || a[i].GetLength() != b[i].GetLength() {
			return false
		}
	}
	return true
}

// checkMapped refuses users and groups that there are not in the pod's user
// namespace: the OCI runtime would fail without saying which.
func checkMapped(user *runtimeapi.LinuxContainerUser, u *runtimeapi.UserNamespace) error {
	if u == nil {
		return nil
	}
	if _, ok := hostID(u.GetUids(), user.GetUid()); !ok {
		return fmt.Errorf("user %d is not mapped in the pod's user namespace", user.GetUid())
	}
	for _, gid := range append([]int64{user.GetGid()}, user.GetSupplementalGroups()...) {
		if _, ok := hostID(u.GetGids(), gid); !ok {
			return fmt.Errorf("group %d is not mapped in the pod's user namespace", gid)
		}
	}
	return nil
}

func ociMappings(maps []*runtimeapi.IDMapping) []specs.LinuxIDMapping {
	var list []specs.LinuxIDMapping
	for _, m := range maps {
		list = append(list, specs.LinuxIDMapping{ContainerID: m.GetContainerId(), HostID: m.GetHostId(), Size: m.GetLength()})
	}
	return list
}
