package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-io/berth/cri/cdi"
	"github.com/berth-io/berth/cri/handler"
	"github.com/berth-io/berth/cri/host"
	"github.com/berth-io/berth/cri/image"
	"github.com/berth-io/berth/cri/spec"
	"github.com/berth-io/berth/cri/store"
	"github.com/berth-io/berth/internal/failpoint"
)

// CreateContainer makes all that a container needs to start: its record, its
// root file system and its OCI bundle.
func (s *Server) CreateContainer(ctx context.Context, req *runtimeapi.CreateContainerRequest) (*runtimeapi.CreateContainerResponse, error) {
	sb, err := s.sandboxes.Find(req.GetPodSandboxId())
	if err != nil {
		return nil, findError("sandbox", req.GetPodSandboxId(), err)
	}
	if !sb.Ready() {
		return nil, status.Errorf(codes.FailedPrecondition, "sandbox %s is not ready but %s", sb.ID, sb.State)
	}
	if err := spec.ValidateContainer(req.GetConfig(), sb.Config); err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	name := containerName(req.GetConfig().GetMetadata(), sb.ID)
	id, err := s.join(ctx, "container "+name, func(ctx context.Context) (string, error) {
		return s.createContainer(ctx, name, sb, req.GetConfig())
	})
	if err != nil {
		return nil, err
	}
	return &runtimeapi.CreateContainerResponse{ContainerId: id}, nil
}

func containerName(m *runtimeapi.ContainerMetadata, sandboxID string) string {
	return strings.Join([]string{m.GetName(), strconv.FormatUint(uint64(m.GetAttempt()), 10), sandboxID}, "_")
}

func (s *Server) createContainer(ctx context.Context, name string, sb store.Sandbox, config *runtimeapi.ContainerConfig) (string, error) {
	if held, ok := s.containers.Named(name); ok {
		if held.State == store.ContainerCreated {
			return held.ID, nil // the answer to an earlier request was lost
		}
		return "", status.Errorf(codes.AlreadyExists, "container %s exists as %s, and is %s: remove it or ask for another attempt", name, held.ID, held.State)
	}
	src, err := s.sourceOf(ctx, config)
	if err != nil {
		return "", err
	}
	volumes, err := s.imageVolumesOf(config)
	if err != nil {
		return "", err
	}
	tl := newTimeline()
	c, err := s.newContainer(name, sb, config, src.image)
	if err != nil {
		return "", err
	}
	c.VolumeChains = chainsOf(volumes)
	if src.chain != "" {
		c.VolumeChains = append(c.VolumeChains, src.chain)
	}
	if c.SELinux, err = s.cfg.Labels.Container(sb.SELinux, selinuxOptions(config), isPrivileged(config)); err != nil {
		return "", status.Errorf(codes.InvalidArgument, "config.%v", err)
	}
	if err := s.containers.Add(c); err != nil {
		s.cfg.Labels.Release(c.SELinux)
		return "", err
	}
	failpoint.Hit("cri/container-recorded")
	made, err := s.buildContainer(ctx, sb, c, src, volumes, tl)
	if err == nil {
		c, err = s.containers.Update(c.ID, func(c *store.Container) error {
			c.User, c.Resources, c.Cgroup, c.Checkpoint, c.Timeline = made.User, made.Resources, made.Cgroup, made.Checkpoint, tl.done()
			return c.Move(store.ContainerCreated)
		})
	}
	if err != nil {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), operationTimeout)
		defer cancel()
		if undoErr := s.removeContainer(undo, c.ID); undoErr != nil {
			err = errors.Join(err, fmt.Errorf("undo it: %w", undoErr))
		}
		if status.Code(err) != codes.Unknown {
			return "", err // worded for the caller
		}
		return "", fmt.Errorf("create container %s: %w", name, err)
	}
	failpoint.Hit("cri/container-created")
	s.log.Info("container created", "container", c.ID, "name", config.GetMetadata().GetName(), "sandbox", sb.ID, "pod", podName(sb), "took", time.Since(tl.began))
	s.plugins.ContainerCreated(ctx, sb, c)
	s.publish(sb.ID, c.ID, runtimeapi.ContainerEventType_CONTAINER_CREATED_EVENT)
	return c.ID, nil
}

// newContainer fills in the record that is written before anything is made.
func (s *Server) newContainer(name string, sb store.Sandbox, config *runtimeapi.ContainerConfig, img image.Image) (store.Container, error) {
	id := newID()
	cg, err := spec.ContainerCgroup(sb.Cgroup, id, s.cfg.Host)
	if err != nil {
		return store.Container{}, status.Error(codes.InvalidArgument, err.Error())
	}
	c := store.Container{
		ID: id, SandboxID: sb.ID, Name: name, Config: config,
		ImageID: img.ID, ImageRef: imageRef(img), ChainID: img.ChainID,
		Resources: config.GetLinux().GetResources(), Cgroup: cg.Path,
		StopSignal: stopSignal(config, img), CreatedAt: time.Now(),
		Status: store.Status{State: store.ContainerCreating},
	}
	if dir := sb.Config.GetLogDirectory(); dir != "" && config.GetLogPath() != "" {
		c.LogPath = filepath.Join(dir, config.GetLogPath())
	}
	if _, err := signalNumber(c.StopSignal); err != nil {
		return store.Container{}, status.Errorf(codes.InvalidArgument, "stop signal: %v", err)
	}
	return c, nil
}

// imageRef is the digested reference, or the ID of an image that came from no
// registry.
func imageRef(img image.Image) string {
	if len(img.RepoDigests) > 0 {
		return img.RepoDigests[0]
	}
	return img.ID
}

// buildContainer makes the side effects of a creation; removeContainer undoes
// them, whichever there are. It returns the record with what came out.
func (s *Server) buildContainer(ctx context.Context, sb store.Sandbox, c store.Container, src source, volumes []imageVolume, tl *timeline) (store.Container, error) {
	img := src.image
	if err := s.retainImage(c); err != nil {
		return c, status.Errorf(codes.NotFound, "image %q: %v", c.Config.GetImage().GetImage(), err)
	}
	done := tl.step("rootfs")
	layer := s.layer(c.ID)
	layer.Context = c.SELinux.File
	if err := layer.Create(img.Layers, s.userNS(sb)); err != nil {
		return c, err
	}
	done()
	failpoint.Hit("cri/rootfs-mounted")
	sources, err := s.mountImages(sb, c, volumes)
	if err != nil {
		return c, err
	}
	failpoint.Hit("cri/images-mounted")
	if src.restored() {
		if c.Checkpoint, err = s.restoreRootfs(ctx, c, src); err != nil {
			return c, err
		}
	}
	defer tl.step("spec")()
	if c.LogPath != "" {
		if err := os.MkdirAll(filepath.Dir(c.LogPath), 0o755); err != nil {
			return c, fmt.Errorf("create the log directory: %w", err)
		}
	}
	runtime, err := s.runtimeOf(sb)
	if err != nil {
		return c, err
	}
	in, err := s.specInput(sb, c, img, runtime, sources)
	if err != nil {
		return c, err
	}
	host, err := s.hostFor(ctx, runtime, c.Config)
	if err != nil {
		return c, err
	}
	built, user, err := spec.Build(in, host)
	if err != nil {
		return c, status.Error(codes.InvalidArgument, err.Error())
	}
	if err := s.injectCDI(c, built, user); err != nil {
		return c, status.Error(codes.InvalidArgument, err.Error())
	}
	c.User = user
	s.noteOOMScore(c, built)
	if c, err = s.askPlugins(ctx, sb, c, built); err != nil {
		return c, err
	}
	config, err := json.Marshal(built)
	if err != nil {
		return c, fmt.Errorf("encode the OCI configuration: %w", err)
	}
	if err := os.WriteFile(filepath.Join(s.containers.Dir(c.ID), "config.json"), config, 0o600); err != nil {
		return c, fmt.Errorf("write the OCI configuration: %w", err)
	}
	if err := s.openBundle(sb, c); err != nil {
		return c, err
	}
	failpoint.Hit("cri/bundle-written")
	return c, nil
}

// askPlugins lets plugins change the specification. What follows from it goes
// into the record before anything is made.
func (s *Server) askPlugins(ctx context.Context, sb store.Sandbox, c store.Container, built *specs.Spec) (store.Container, error) {
	score := built.Process.OOMScoreAdj
	limits, err := s.plugins.CreateContainer(ctx, sb, c, built)
	if err != nil {
		return c, err
	}
	if now := built.Process.OOMScoreAdj; now != nil && now != score {
		limits = mergeResources(limits, &runtimeapi.LinuxContainerResources{OomScoreAdj: int64(*now)})
	}
	c.Resources = mergeResources(c.Resources, limits)
	if built.Linux.CgroupsPath == "" {
		return c, errors.New("an NRI plugin has taken the container's cgroup path away")
	}
	cg, err := spec.CgroupOf(built.Linux.CgroupsPath, s.cfg.Host)
	c.Cgroup = cg.Path
	return c, err
}

// injectCDI adds the CDI devices of the request, and the groups they need.
func (s *Server) injectCDI(c store.Container, built *specs.Spec, user *runtimeapi.LinuxContainerUser) error {
	names, err := cdi.Names(c.Config)
	if err != nil {
		return err
	}
	if err := cdi.Inject(built, names, s.cfg.CDISpecDirs); err != nil {
		return err
	}
	for _, gid := range built.Process.User.AdditionalGids {
		if !slices.Contains(user.SupplementalGroups, int64(gid)) {
			user.SupplementalGroups = append(user.SupplementalGroups, int64(gid))
		}
	}
	return nil
}

// noteOOMScore tells once that scores are not what was asked for.
func (s *Server) noteOOMScore(c store.Container, built *specs.Spec) {
	asked := c.Config.GetLinux().GetResources().GetOomScoreAdj()
	if built.Process.OOMScoreAdj == nil || int64(*built.Process.OOMScoreAdj) == asked {
		return
	}
	s.warnOOM.Do(func() {
		s.log.Warn("without CAP_SYS_RESOURCE, OOM scores cannot be set lower than the daemon's own",
			"asked", asked, "set", *built.Process.OOMScoreAdj)
	})
}

// specInput gathers what the specification is made from.
func (s *Server) specInput(sb store.Sandbox, c store.Container, img image.Image, runtime *handler.Runtime, sources map[int]string) (spec.Input, error) {
	cg, err := spec.ContainerCgroup(sb.Cgroup, c.ID, s.cfg.Host)
	if err != nil {
		return spec.Input{}, err
	}
	hostname, err := s.hostname(sb)
	if err != nil {
		return spec.Input{}, err
	}
	in := spec.Input{
		ID: c.ID, SandboxID: sb.ID, Sandbox: sb.Config, Container: c.Config, Image: img.Config,
		Hostname: hostname, Rootfs: s.layer(c.ID).Mount, CgroupsPath: cg.OCI,
		PodMounts: s.podMounts(sb, c.Config), SELinux: c.SELinux,
	}
	if in.Accounts, err = host.Accounts(in.Rootfs); err != nil {
		return in, err
	}
	if err := s.joinNamespaces(&in, sb, c.Config); err != nil {
		return in, err
	}
	sc := c.Config.GetLinux().GetSecurityContext()
	if in.Devices, in.DeviceRules, err = host.Asked(c.Config.GetDevices()); err != nil {
		return in, status.Errorf(codes.InvalidArgument, "config.devices: %v", err)
	}
	if sc.GetPrivileged() && !runtime.PrivilegedWithoutHostDevices {
		all, err := host.Devices()
		if err != nil {
			return in, err
		}
		in.Devices = append(in.Devices, slices.DeleteFunc(all, func(d specs.LinuxDevice) bool {
			return slices.ContainsFunc(in.Devices, func(asked specs.LinuxDevice) bool { return asked.Path == d.Path })
		})...)
	}
	if file := spec.SeccompFile(sc); file != "" {
		if in.SeccompProfile, err = os.ReadFile(file); err != nil {
			return in, status.Errorf(codes.InvalidArgument, "config.linux.security_context.seccomp: read the seccomp profile: %v", err)
		}
	}
	volumes, err := imageVolumes(s.layer(c.ID), img, sb, c.Config.GetMounts())
	if err != nil {
		return in, err
	}
	in.PodMounts = append(in.PodMounts, volumes...)
	if in.Mounts, err = requestMounts(c.Config.GetMounts(), sources, s.userNS(sb)); err != nil {
		return in, err
	}
	return in, s.relabel(c, volumes, in.Mounts)
}

// relabel gives the volumes that the image declares the container's label, and
// those that the request wants to have it.
func (s *Server) relabel(c store.Container, volumes, requested []spec.Mount) error {
	for _, v := range volumes {
		if err := s.cfg.Labels.Relabel(v.Source, c.SELinux); err != nil {
			return err
		}
	}
	for i, m := range c.Config.GetMounts() {
		if !m.GetSelinuxRelabel() || m.GetImage().GetImage() != "" {
			continue
		}
		if err := s.cfg.Labels.Relabel(requested[i].Source, c.SELinux); err != nil {
			return status.Errorf(codes.InvalidArgument, "config.mounts[%s].selinux_relabel: %v", m.GetContainerPath(), err)
		}
	}
	return nil
}

func selinuxOptions(config *runtimeapi.ContainerConfig) *runtimeapi.SELinuxOption {
	return config.GetLinux().GetSecurityContext().GetSelinuxOptions()
}

func isPrivileged(config *runtimeapi.ContainerConfig) bool {
	return config.GetLinux().GetSecurityContext().GetPrivileged()
}
