package podspec

import (
	"context"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-io/berth/csi/volume"
)

// mapped are mounts in which the container sees the owners of files as if it
// had no user namespace. The kubelet maps all mounts of such a pod.
func mapped(mounts []*runtimeapi.Mount, u *runtimeapi.UserNamespace) []*runtimeapi.Mount {
	for _, m := range mounts {
		m.UidMappings, m.GidMappings = u.GetUids(), u.GetGids()
	}
	return mounts
}

// ContainerConfig is the configuration of a container, with its environment
// resolved from objects. Errors that the user can mend are *ConfigError.
func ContainerConfig(ctx context.Context, c Container, node Node, objects volume.Objects) (*runtimeapi.ContainerConfig, error) {
	env, err := Env(ctx, c, node, objects)
	if err != nil {
		return nil, err
	}
	sc, err := containerSecurity(c, node)
	if err != nil {
		return nil, err
	}
	signal, err := stopSignal(c.Container)
	if err != nil {
		return nil, &ConfigError{Message: err.Error()}
	}
	annotations, err := containerAnnotations(c)
	if err != nil {
		return nil, err
	}
	lookup := envLookup(env)
	return &runtimeapi.ContainerConfig{
		Metadata:    &runtimeapi.ContainerMetadata{Name: c.Container.Name, Attempt: c.Attempt},
		Image:       &runtimeapi.ImageSpec{Image: c.ImageRef, UserSpecifiedImage: c.Container.Image},
		Command:     expandAll(c.Container.Command, lookup),
		Args:        expandAll(c.Container.Args, lookup),
		WorkingDir:  c.Container.WorkingDir,
		Envs:        env,
		Mounts:      mapped(c.Mounts, c.UserNamespace),
		Labels:      containerLabels(c.Pod, c.Container),
		Annotations: annotations,
		LogPath:     LogPath(c.Container.Name, c.Attempt),
		Stdin:       c.Container.Stdin,
		StdinOnce:   c.Container.StdinOnce,
		Tty:         c.Container.TTY,
		StopSignal:  signal,
		Linux:       &runtimeapi.LinuxContainerConfig{Resources: c.Resources, SecurityContext: sc},
	}, nil
}
