package spec

import (
	"path"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Mount is a bind mount of a resolved source.
type Mount struct {
	Source            string
	Destination       string
	ReadOnly          bool
	RecursiveReadOnly bool
	Propagation       runtimeapi.MountPropagation
	// Shared and Slave say how the mount that holds the source propagates.
	Shared, Slave bool
}

// defaultMounts are what a container has without asking. /dev/shm is the pod's
// and comes as a pod mount.
func defaultMounts(privileged bool, host Host) []specs.Mount {
	mode := "ro"
	if privileged {
		mode = "rw"
	}
	cgroupOptions := []string{"nosuid", "noexec", "nodev", "relatime", mode}
	if privileged {
		// The mount shares the host's superblock: options left out here would
		// be taken from the host.
		cgroupOptions = append(cgroupOptions, host.CgroupOptions...)
	}
	return []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", mode}},
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: cgroupOptions},
	}
}

// setMounts lists the default mounts, then the others with parents before
// children. A mount of the request takes the place of the pod's or the default
// one at the same path; one at /dev takes the place of all below it.
func setMounts(s *specs.Spec, in Input, host Host) error {
	taken := map[string]bool{}
	for _, m := range in.Mounts {
		taken[path.Clean(m.Destination)] = true
	}
	overridden := func(destination string) bool {
		return taken[destination] || taken["/dev"] && strings.HasPrefix(destination, "/dev/")
	}
	for _, m := range defaultMounts(securityContext(in.Container).GetPrivileged(), host) {
		if !overridden(m.Destination) {
			s.Mounts = append(s.Mounts, m)
		}
	}
	binds := slices.Clone(in.Mounts)
	for _, m := range in.PodMounts {
		if !overridden(m.Destination) {
			binds = append(binds, m)
		}
	}
	slices.SortStableFunc(binds, func(a, b Mount) int { return depth(a.Destination) - depth(b.Destination) })
	for _, m := range binds {
		options, err := bindOptions(m, host)
		if err != nil {
			return err
		}
		switch {
		case m.Propagation == runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL:
			s.Linux.RootfsPropagation = "rshared"
		case m.Propagation == runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER && s.Linux.RootfsPropagation == "":
			s.Linux.RootfsPropagation = "rslave"
		}
		s.Mounts = append(s.Mounts, specs.Mount{Source: m.Source, Destination: m.Destination, Type: "bind", Options: options})
	}
	return nil
}

func depth(p string) int {
	return strings.Count(strings.TrimSuffix(path.Clean(p), "/"), "/")
}

func bindOptions(m Mount, host Host) ([]string, error) {
	options := []string{"rbind"}
	switch m.Propagation {
	case runtimeapi.MountPropagation_PROPAGATION_PRIVATE:
		options = append(options, "rprivate")
	case runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL:
		if !m.Shared {
			return nil, fieldError("mounts["+m.Destination+"].propagation", "bidirectional needs a shared mount, and %s is not on one", m.Source)
		}
		options = append(options, "rshared")
	case runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER:
		if !m.Shared && !m.Slave {
			return nil, fieldError("mounts["+m.Destination+"].propagation", "host-to-container needs a shared or slave mount, and %s is not on one", m.Source)
		}
		options = append(options, "rslave")
	default:
		return nil, fieldError("mounts["+m.Destination+"].propagation", "%v is not known", m.Propagation)
	}
	switch {
	case m.RecursiveReadOnly && !m.ReadOnly:
		return nil, fieldError("mounts["+m.Destination+"].recursive_read_only", "it needs readonly beside it")
	case m.RecursiveReadOnly && m.Propagation != runtimeapi.MountPropagation_PROPAGATION_PRIVATE:
		return nil, fieldError("mounts["+m.Destination+"].recursive_read_only", "it needs private propagation")
	case m.RecursiveReadOnly && !host.RecursiveReadOnly:
		return nil, fieldError("mounts["+m.Destination+"].recursive_read_only", "this kernel or runtime cannot do it (Linux 5.12)")
	case m.RecursiveReadOnly:
		return append(options, "rro"), nil
	case m.ReadOnly:
		return append(options, "ro"), nil
	}
	return append(options, "rw"), nil
}
