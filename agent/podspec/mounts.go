package podspec

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-io/berth/csi/volume"
)

const etcHosts = "/etc/hosts"

// MountSources says where on the host a container's mounts come from.
type MountSources struct {
	Volumes map[string]volume.Mounted
	// Images are those of image volumes, which the runtime mounts, by volume.
	Images map[string]*runtimeapi.ImageSpec
	// SubPath pins a subPath of a volume and returns the path to mount. index
	// is the mount's place in the container's volumeMounts.
	SubPath func(index int, vol volume.Mounted, subPath string, readOnly bool) (string, error)
	// HostsFile is the pod's hosts file, made with HostsFile; empty for none.
	// It is left out where the container mounts its own.
	HostsFile string
	// TerminationLog is an empty file of this container instance, mode 0666;
	// empty for none.
	TerminationLog string
	// RecursiveReadOnly tells that the runtime handler can make a mount and
	// everything below it read-only.
	RecursiveReadOnly bool
	// SELinux tells that the host runs it, so that the files made for the
	// container get the container's label.
	SELinux bool
}

// VolumeMounts lists a container's mounts: its volumes in the order of the
// spec, then the hosts file and the termination log. env is what Env returned
// and is used for subPathExpr. Errors are *ConfigError.
func VolumeMounts(c *v1.Container, env []*runtimeapi.KeyValue, src MountSources) ([]*runtimeapi.Mount, error) {
	var out []*runtimeapi.Mount
	hosts := src.HostsFile
	for i, m := range c.VolumeMounts {
		if m.MountPath == etcHosts {
			hosts = ""
		}
		mount, err := volumeMount(c, i, env, src)
		if err != nil {
			return nil, err
		}
		out = append(out, mount)
	}
	if hosts != "" {
		out = append(out, &runtimeapi.Mount{ContainerPath: etcHosts, HostPath: hosts, SelinuxRelabel: src.SELinux})
	}
	if src.TerminationLog != "" && c.TerminationMessagePath != "" {
		out = append(out, &runtimeapi.Mount{
			ContainerPath:  absolute(c.TerminationMessagePath),
			HostPath:       src.TerminationLog,
			SelinuxRelabel: src.SELinux,
		})
	}
	return out, nil
}

func volumeMount(c *v1.Container, index int, env []*runtimeapi.KeyValue, src MountSources) (*runtimeapi.Mount, error) {
	m := c.VolumeMounts[index]
	vol, ok := src.Volumes[m.Name]
	if !ok {
		return nil, configErrorf("cannot find volume %q to mount into container %q", m.Name, c.Name)
	}
	subPath, err := SubPathOf(m, env)
	if err != nil {
		return nil, err
	}
	propagation, err := propagationOf(m.MountPropagation)
	if err != nil {
		return nil, err
	}
	recursive, err := recursiveReadOnly(m, src.RecursiveReadOnly)
	if err != nil {
		return nil, err
	}
	mount := &runtimeapi.Mount{
		ContainerPath:     absolute(m.MountPath),
		HostPath:          vol.HostPath,
		Readonly:          m.ReadOnly || vol.ReadOnly,
		RecursiveReadOnly: recursive,
		Propagation:       propagation,
	}
	if image := src.Images[m.Name]; image != nil {
		mount.Image, mount.ImageSubPath = image, subPath
		return mount, nil
	}
	if subPath != "" {
		if mount.HostPath, err = src.SubPath(index, vol, subPath, mount.Readonly); err != nil {
			return nil, &ConfigError{
				Message: fmt.Sprintf("failed to prepare subPath for volumeMount %q of container %q", m.Name, c.Name),
				Err:     err,
			}
		}
	}
	return mount, nil
}

// SubPathOf is the subPath of a mount, or its expanded subPathExpr, checked to
// stay inside the volume as far as its text can tell; empty for none.
func SubPathOf(m v1.VolumeMount, env []*runtimeapi.KeyValue) (string, error) {
	subPath := m.SubPath
	if m.SubPathExpr != "" {
		missing := map[string]bool{}
		known := envLookup(env)
		subPath = expand(m.SubPathExpr, func(name string) (string, bool) {
			v, _ := known(name)
			if v == "" {
				missing[name] = true
			}
			return v, true
		})
		if len(missing) > 0 {
			return "", configErrorf("missing value for %s", strings.Join(slices.Sorted(maps.Keys(missing)), ", "))
		}
	}
	if path.IsAbs(subPath) {
		return "", configErrorf("error SubPath `%s` must not be an absolute path", subPath)
	}
	if slices.Contains(strings.Split(subPath, "/"), "..") {
		return "", configErrorf("unable to provision SubPath `%s`: must not contain '..'", subPath)
	}
	return subPath, nil
}

func propagationOf(mode *v1.MountPropagationMode) (runtimeapi.MountPropagation, error) {
	switch {
	case mode == nil, *mode == v1.MountPropagationNone:
		return runtimeapi.MountPropagation_PROPAGATION_PRIVATE, nil
	case *mode == v1.MountPropagationHostToContainer:
		return runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER, nil
	case *mode == v1.MountPropagationBidirectional:
		return runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL, nil
	default:
		return 0, configErrorf("invalid MountPropagation mode: %q", *mode)
	}
}

func recursiveReadOnly(m v1.VolumeMount, supported bool) (bool, error) {
	if m.RecursiveReadOnly == nil || *m.RecursiveReadOnly == v1.RecursiveReadOnlyDisabled {
		return false, nil
	}
	const prefix = "failed to resolve recursive read-only mode: "
	if !m.ReadOnly {
		return false, configErrorf(prefix+"volume %q requested recursive read-only mode, but it is not read-only", m.Name)
	}
	if m.MountPropagation != nil && *m.MountPropagation != v1.MountPropagationNone {
		return false, configErrorf(prefix+"volume %q requested recursive read-only mode, but it is not compatible with propagation %q", m.Name, *m.MountPropagation)
	}
	switch mode := *m.RecursiveReadOnly; {
	case mode == v1.RecursiveReadOnlyIfPossible, mode == v1.RecursiveReadOnlyEnabled && supported:
		return supported, nil
	case mode == v1.RecursiveReadOnlyEnabled:
		return false, configErrorf(prefix+"volume %q requested recursive read-only mode, but it is not supported by the runtime", m.Name)
	default:
		return false, configErrorf(prefix+"unknown recursive read-only mode %q", mode)
	}
}

// absolute makes a path of a container absolute: the CRI knows no working
// directory, and the kubelet reads a relative path from the root.
func absolute(p string) string {
	if path.IsAbs(p) {
		return p
	}
	return "/" + p
}
