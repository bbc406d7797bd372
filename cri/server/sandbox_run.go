package server

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-io/berth/cri/network"
	"github.com/berth-io/berth/cri/ns"
	"github.com/berth-io/berth/cri/rootfs"
	"github.com/berth-io/berth/cri/spec"
	"github.com/berth-io/berth/cri/store"
	"github.com/berth-io/berth/internal/failpoint"
)

// RunPodSandbox makes a sandbox: its namespaces and network, its files and its
// shim, side by side. There is no pause container.
func (s *Server) RunPodSandbox(ctx context.Context, req *runtimeapi.RunPodSandboxRequest) (*runtimeapi.RunPodSandboxResponse, error) {
	if err := spec.ValidateSandbox(req.GetConfig()); err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	runtime, err := s.newHandler(req.GetRuntimeHandler())
	if err != nil {
		return nil, err
	}
	if spec.UserNamespace(req.GetConfig()) != nil {
		if err := s.noUserNamespaces(ctx, runtime); err != nil {
			return nil, status.Errorf(codes.FailedPrecondition, "config.linux.security_context.namespace_options.userns_options: pods cannot have user namespaces here: %v", err)
		}
	}
	name := sandboxName(req.GetConfig().GetMetadata())
	id, err := s.join(ctx, "sandbox "+name, func(ctx context.Context) (string, error) {
		return s.runSandbox(ctx, name, runtime.Name, req)
	})
	if err != nil {
		return nil, err
	}
	return &runtimeapi.RunPodSandboxResponse{PodSandboxId: id}, nil
}

func sandboxName(m *runtimeapi.PodSandboxMetadata) string {
	return strings.Join([]string{m.GetName(), m.GetNamespace(), m.GetUid(), strconv.FormatUint(uint64(m.GetAttempt()), 10)}, "_")
}

func (s *Server) runSandbox(ctx context.Context, name, runtime string, req *runtimeapi.RunPodSandboxRequest) (string, error) {
	held, ok := s.sandboxes.Named(name)
	if ok && held.State == store.SandboxCreating {
		// A daemon was killed over it, and its restart could not undo it yet.
		if err := s.recoverSandbox(ctx, held); err != nil {
			return "", fmt.Errorf("undo an interrupted creation of sandbox %s: %w", name, err)
		}
		held, ok = s.sandboxes.Named(name)
	}
	if ok && held.Ready() {
		return held.ID, nil // the answer to an earlier request was lost
	}
	if ok {
		return "", status.Errorf(codes.AlreadyExists, "sandbox %s exists as %s, and is %s: remove it or ask for another attempt", name, held.ID, held.State)
	}
	tl := newTimeline()
	sb := store.Sandbox{
		ID: newID(), Name: name, Config: req.GetConfig(), Handler: req.GetRuntimeHandler(), Runtime: runtime,
		BootID: s.cfg.BootID, CreatedAt: time.Now(), State: store.SandboxCreating,
	}
	s.placeCgroup(&sb)
	if _, err := spec.ContainerCgroup(sb.Cgroup, sb.ID, s.cfg.Host); err != nil {
		return "", status.Error(codes.InvalidArgument, err.Error())
	}
	var err error
	if sb.SELinux, err = s.cfg.Labels.Pod(sb.Config.GetLinux().GetSecurityContext().GetSelinuxOptions()); err != nil {
		return "", status.Errorf(codes.InvalidArgument, "config.%v", err)
	}
	if err := s.sandboxes.Add(sb); err != nil {
		s.cfg.Labels.Release(sb.SELinux)
		return "", err
	}
	failpoint.Hit("cri/sandbox-recorded")
	log := s.log.With("sandbox", sb.ID, "pod", podName(sb))
	ips, err := s.setUpSandbox(ctx, sb, tl)
	if err == nil {
		told := sb
		told.IPs = ips
		err = s.plugins.RunPod(ctx, told)
	}
	if err == nil {
		sb, err = s.sandboxes.Update(sb.ID, func(sb *store.Sandbox) error {
			sb.IPs, sb.Timeline = ips, tl.done()
			return sb.Move(store.SandboxReady)
		})
	}
	if err != nil {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), operationTimeout)
		defer cancel()
		if undoErr := s.removeSandbox(undo, sb.ID); undoErr != nil {
			err = errors.Join(err, fmt.Errorf("undo it: %w", undoErr))
		}
		return "", fmt.Errorf("run sandbox %s: %w", name, err)
	}
	failpoint.Hit("cri/sandbox-ready")
	p := s.pod(sb.ID)
	s.watch(sb.ID, p.client())
	log.Info("sandbox started", "ips", ips, "took", time.Since(tl.began))
	s.publish(sb.ID, sb.ID, runtimeapi.ContainerEventType_CONTAINER_CREATED_EVENT)
	s.publish(sb.ID, sb.ID, runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT)
	return sb.ID, nil
}

func podName(sb store.Sandbox) string {
	m := sb.Config.GetMetadata()
	return m.GetNamespace() + "/" + m.GetName()
}

// ownCgroups has the cgroups of sandboxes that nobody made one for.
const ownCgroups = "/berth"

// placeCgroup says where the containers' cgroups go. Without a parent in the
// request, as crictl's users write it, the sandbox gets one of its own.
func (s *Server) placeCgroup(sb *store.Sandbox) {
	sb.Cgroup = sb.Config.GetLinux().GetCgroupParent()
	if sb.Cgroup != "" {
		return
	}
	if s.cfg.Host.SystemdCgroup {
		sb.Cgroup = "system.slice"
		return
	}
	sb.Cgroup, sb.OwnCgroup = path.Join(ownCgroups, sb.ID), true
}

// setUpSandbox makes everything a sandbox has but its record. It returns the
// addresses of the pod.
func (s *Server) setUpSandbox(ctx context.Context, sb store.Sandbox, tl *timeline) ([]string, error) {
	var ips []string
	group, ctx := errgroup.WithContext(ctx)
	network := func() (err error) {
		ips, err = s.setUpNetwork(ctx, sb, tl)
		return err
	}
	if sb.UserNamespace() != nil {
		// Its namespaces are made by its first process, which is the shim's.
		group.Go(func() error {
			if err := s.startShim(ctx, sb, tl); err != nil {
				return err
			}
			if err := s.startInit(ctx, sb, tl); err != nil {
				return err
			}
			return network()
		})
	} else {
		group.Go(func() error {
			if err := s.startShim(ctx, sb, tl); err != nil || sb.Namespaces().GetPid() != runtimeapi.NamespaceMode_POD {
				return err
			}
			return s.startInit(ctx, sb, tl)
		})
		group.Go(func() error {
			if err := s.createNamespaces(sb, tl); err != nil {
				return err
			}
			return network()
		})
	}
	group.Go(func() error {
		defer tl.step("files")()
		return s.createSandboxFiles(sb)
	})
	return ips, group.Wait()
}

func (s *Server) setUpNetwork(ctx context.Context, sb store.Sandbox, tl *timeline) ([]string, error) {
	if sb.HostNetwork() {
		return nil, nil
	}
	defer tl.step("network")()
	result, err := s.network.Setup(ctx, s.networkSandbox(sb))
	if err != nil {
		return nil, err
	}
	failpoint.Hit("cri/network-up")
	var ips []string
	for _, ip := range result.IPs {
		ips = append(ips, ip.String())
	}
	return ips, nil
}

func (s *Server) startShim(ctx context.Context, sb store.Sandbox, tl *timeline) error {
	defer tl.step("shim")()
	runtime, err := s.runtimeOf(sb)
	if err != nil {
		return err
	}
	client, err := s.shims.Start(ctx, s.shimConfig(sb.ID, runtime))
	if err != nil {
		return fmt.Errorf("start the shim: %w", err)
	}
	s.pod(sb.ID).setShim(client)
	failpoint.Hit("cri/shim-started")
	return nil
}

func (s *Server) networkSandbox(sb store.Sandbox) network.Sandbox {
	m := sb.Config.GetMetadata()
	n := network.Sandbox{
		ID: sb.ID, Name: m.GetName(), Namespace: m.GetNamespace(), UID: m.GetUid(),
		Annotations: sb.Config.GetAnnotations(),
	}
	if p := ns.Path(s.nsDir(sb.ID), ns.Net); ns.Pinned(p) {
		n.NetNS = p
	}
	for _, p := range sb.Config.GetPortMappings() {
		n.PortMappings = append(n.PortMappings, network.PortMapping{
			HostPort: p.GetHostPort(), ContainerPort: p.GetContainerPort(),
			Protocol: strings.ToLower(p.GetProtocol().String()), HostIP: p.GetHostIp(),
		})
	}
	return n
}

const shmSize = 64 << 20

// createSandboxFiles makes what the containers of a pod share besides
// namespaces: the shared memory and the files in /etc.
func (s *Server) createSandboxFiles(sb store.Sandbox) error {
	if sb.OwnCgroup {
		if _, err := s.cfg.Cgroups.Ensure(sb.Cgroup); err != nil {
			return err
		}
		failpoint.Hit("cri/cgroup-created")
		if err := s.limitPod(sb, sb.Config); err != nil {
			return err
		}
	}
	dir := s.sandboxes.Dir(sb.ID)
	if sb.Namespaces().GetIpc() != runtimeapi.NamespaceMode_NODE {
		shm := s.shmDir(sb.ID)
		if err := os.Mkdir(shm, 0o1777); err != nil {
			return fmt.Errorf("create the pod's shared memory: %w", err)
		}
		uid, gid := hostRoot(sb)
		options := fmt.Sprintf("mode=1777,size=%d,uid=%d,gid=%d", shmSize, uid, gid) + rootfs.Context(sb.SELinux.File)
		if err := unix.Mount("shm", shm, "tmpfs", unix.MS_NOEXEC|unix.MS_NOSUID|unix.MS_NODEV, options); err != nil {
			return fmt.Errorf("mount the pod's shared memory on %s: %w", shm, err)
		}
		failpoint.Hit("cri/shm-mounted")
	}
	resolv, err := resolvConf(sb.Config.GetDnsConfig())
	if err != nil {
		return err
	}
	hosts, err := os.ReadFile("/etc/hosts")
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("read the node's hosts file: %w", err)
	}
	hostname, err := s.hostname(sb)
	if err != nil {
		return err
	}
	for name, content := range map[string][]byte{
		"resolv.conf": resolv, "hosts": hosts, "hostname": []byte(hostname + "\n"),
	} {
		file := path.Join(dir, name)
		if err := os.WriteFile(file, content, 0o644); err != nil {
			return fmt.Errorf("write the pod's %s: %w", name, err)
		}
		if uid, gid := hostRoot(sb); uid != 0 || gid != 0 {
			if err := os.Chown(file, uid, gid); err != nil {
				return fmt.Errorf("give the pod its %s: %w", name, err)
			}
		}
		if err := s.cfg.Labels.Relabel(file, sb.SELinux); err != nil {
			return err
		}
	}
	return nil
}

func (s *Server) hostname(sb store.Sandbox) (string, error) {
	if h := sb.Config.GetHostname(); h != "" {
		return h, nil
	}
	h, err := os.Hostname()
	if err != nil {
		return "", fmt.Errorf("read the node's hostname: %w", err)
	}
	return h, nil
}

// resolvConf is the node's file where the request says nothing.
func resolvConf(dns *runtimeapi.DNSConfig) ([]byte, error) {
	var b strings.Builder
	if len(dns.GetSearches()) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(dns.GetSearches(), " "))
	}
	for _, server := range dns.GetServers() {
		fmt.Fprintf(&b, "nameserver %s\n", server)
	}
	if len(dns.GetOptions()) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(dns.GetOptions(), " "))
	}
	if b.Len() > 0 {
		return []byte(b.String()), nil
	}
	node, err := os.ReadFile("/etc/resolv.conf")
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("read the node's resolv.conf: %w", err)
	}
	return node, nil
}
