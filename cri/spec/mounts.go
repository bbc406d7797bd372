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
	// UIDs and GIDs map the owners of the files; both are empty for none.
	UIDs, GIDs []*runtimeapi.IDMapping
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

// hostSys is the host's /sys, for a pod with a user namespace but without a
// network of its own: sysfs shows the network, and can be mounted only by who
// owns it.
func hostSys(host Host) specs.Mount {
	readOnly := "ro"
	if host.RecursiveReadOnly {
		readOnly = "rro"
	}
	return specs.Mount{Destination: "/sys", Type: "bind", Source: "/sys", Options: []string{"rbind", "rprivate", "nosuid", "noexec", "nodev", readOnly}}
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
	defaults := defaultMounts(securityContext(in.Container).GetPrivileged(), host)
	if UserNamespace(in.Sandbox) != nil && in.Namespaces[specs.NetworkNamespace] == "" {
		for i, m := range defaults {
			if m.Destination == "/sys" {
				defaults[i] = hostSys(host)
			}
		}
	}
	for _, m := range defaults {
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
		bind := specs.Mount{Source: m.Source, Destination: m.Destination, Type: "bind", Options: options}
		switch u := UserNamespace(in.Sandbox); {
		case len(m.UIDs) == 0:
		case sameMappings(m.UIDs, u.GetUids()) && sameMappings(m.GIDs, u.GetGids()):
			// As the user namespace says, which spares the OCI runtime to make another.
			bind.Options = append(bind.Options, "idmap")
		default:
			bind.UIDMappings, bind.GIDMappings = ociMappings(m.UIDs), ociMappings(m.GIDs)
		}
		s.Mounts = append(s.Mounts, bind)
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
