package server

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-io/berth/cri/host"
	"github.com/berth-io/berth/cri/rootfs"
	"github.com/berth-io/berth/cri/spec"
	"github.com/berth-io/berth/cri/store"
)

// podMounts are the files and the shared memory that every container of the
// pod sees, unless its request mounts something else there.
func (s *Server) podMounts(sb store.Sandbox, config *runtimeapi.ContainerConfig) []spec.Mount {
	dir := s.sandboxes.Dir(sb.ID)
	readOnly := config.GetLinux().GetSecurityContext().GetReadonlyRootfs()
	shm := s.shmDir(sb.ID)
	if sb.Namespaces().GetIpc() == runtimeapi.NamespaceMode_NODE {
		shm = "/dev/shm"
	}
	return []spec.Mount{
		{Source: filepath.Join(dir, "hostname"), Destination: "/etc/hostname", ReadOnly: readOnly},
		{Source: filepath.Join(dir, "hosts"), Destination: "/etc/hosts", ReadOnly: readOnly},
		{Source: filepath.Join(dir, "resolv.conf"), Destination: "/etc/resolv.conf", ReadOnly: readOnly},
		{Source: shm, Destination: "/dev/shm"},
	}
}

// requestMounts prepares the mounts of a request: a source that is not there
// becomes a directory, as in every CRI runtime, and symbolic links on the host
// are followed. images are the sources of those that mount an image. A mount
// whose IDs cannot be mapped in the user namespace userNS is refused here, where
// the reason is known.
func requestMounts(asked []*runtimeapi.Mount, images map[int]string, userNS string) ([]spec.Mount, error) {
	var mounts []spec.Mount
	for i, a := range asked {
		source := a.GetHostPath()
		if dir, ok := images[i]; ok {
			source = dir
		}
		if _, err := os.Stat(source); errors.Is(err, os.ErrNotExist) {
			if err := os.MkdirAll(source, 0o755); err != nil {
				return nil, fmt.Errorf("create the source of the mount on %s: %w", a.GetContainerPath(), err)
			}
		} else if err != nil {
			return nil, fmt.Errorf("look at the source of the mount on %s: %w", a.GetContainerPath(), err)
		}
		source, err := host.Resolve(source)
		if err != nil {
			return nil, err
		}
		m := spec.Mount{
			Source: source, Destination: a.GetContainerPath(),
			ReadOnly: a.GetReadonly(), RecursiveReadOnly: a.GetRecursiveReadOnly(),
			Propagation: a.GetPropagation(),
			UIDs:        a.GetUidMappings(), GIDs: a.GetGidMappings(),
		}
		if images[i] != "" {
			m.Propagation = runtimeapi.MountPropagation_PROPAGATION_PRIVATE // nothing is ever mounted in an image
			m.UIDs, m.GIDs = nil, nil                                       // they are mapped where the image is mounted
		}
		if userNS != "" && len(m.UIDs) > 0 {
			if err := rootfs.CheckIDMap(source, userNS); err != nil {
				return nil, status.Errorf(codes.FailedPrecondition, "mounts[%s].uidMappings: %v", a.GetContainerPath(), err)
			}
		}
		if m.Propagation != runtimeapi.MountPropagation_PROPAGATION_PRIVATE {
			if m.Shared, m.Slave, err = host.Propagation(source); err != nil {
				return nil, err
			}
		}
		mounts = append(mounts, m)
	}
	return mounts, nil
}
