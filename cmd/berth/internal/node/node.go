// Package node is the daemon: it wires the roles of this host together and
// runs them. Roles talk to each other through their public seams only (CRI,
// CNI), so a role that runs elsewhere is a role less here.
package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"time"

	containerdlog "github.com/containerd/log"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sync/errgroup"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/berth-io/berth/agent"
	"github.com/berth-io/berth/agent/kubeletconfig"
	"github.com/berth-io/berth/agent/logrotate"
	"github.com/berth-io/berth/agent/plan"
	"github.com/berth-io/berth/agent/resources/machine"
	"github.com/berth-io/berth/cmd/berth/internal/config"
	"github.com/berth-io/berth/cmd/berth/internal/idle"
	"github.com/berth-io/berth/cni/plugin"
	"github.com/berth-io/berth/cri"
	"github.com/berth-io/berth/cri/handler"
	"github.com/berth-io/berth/cri/image"
	"github.com/berth-io/berth/cri/network"
	"github.com/berth-io/berth/systemd/notify"
)

// gcPercent trades a little CPU for a smaller heap: the daemon's garbage is
// short-lived, and its memory is what pods cannot have.
const gcPercent = 50

// Run runs the roles until ctx ends. Pods run on without it. Kubelet is how the
// agent belongs to a cluster; nil: it does not.
func Run(ctx context.Context, c config.Config, kubelet *kubeletconfig.Config, version string, log *slog.Logger) error {
	if os.Geteuid() != 0 {
		return errors.New("the node makes namespaces, mounts and cgroups: it must run as root")
	}
	if kubelet != nil && kubelet.LockFile != "" {
		var release func()
		var err error
		if ctx, release, err = lock(ctx, kubelet.LockFile, kubelet.ExitOnLockContention); err != nil {
			return err
		}
		defer release()
	}
	debug.SetGCPercent(gcPercent)
	// The image library has a logger of its own, and says there what its
	// caller is told as an error anyway.
	if err := containerdlog.SetLevel("error"); err != nil {
		return fmt.Errorf("set the image library's log level: %w", err)
	}
	group, ctx := errgroup.WithContext(ctx)
	podNetwork, err := openPodNetwork(c)
	if err != nil {
		return err
	}
	if err := podNetwork.Configure(); err != nil {
		return err
	}
	serving := closed()
	if c.Has(config.RoleCRI) {
		runtime, err := newRuntime(ctx, c, podNetwork, version, log)
		if err != nil {
			return err
		}
		group.Go(func() error { return named("runtime", runtime.Run(ctx)) })
		serving = runtime.Serving()
	}
	if c.Has(config.RoleAgent) {
		a, err := newAgent(c, kubelet, log)
		if err != nil {
			return err
		}
		group.Go(func() error { return named("agent", a.Run(ctx)) })
		group.Go(func() error { return ready(ctx, a.InControl(), c, log) })
	} else {
		group.Go(func() error {
			select {
			case <-ctx.Done():
				return nil
			case <-serving:
				return notify.Ready("serving " + strings.Join(c.Roles, ", "))
			}
		})
	}
	group.Go(func() error { return notify.Watchdog(ctx, alive(c)) })
	group.Go(func() error { return idle.Run(ctx) })
	err = group.Wait()
	if stopErr := notify.Stopping(); stopErr != nil {
		log.Warn("the service manager does not know that the node stops", "err", stopErr)
	}
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// closed is for a role that runs elsewhere.
func closed() <-chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}

func newRuntime(ctx context.Context, c config.Config, podCIDRs *podNetwork, version string, log *slog.Logger) (*cri.Runtime, error) {
	cniPlugins := map[string]network.Plugin{}
	if c.Has(config.RoleNetwork) {
		cniPlugins[plugin.Type] = plugin.New(plugin.Config{}).Handle
	}
	limits, err := rlimits(c)
	if err != nil {
		return nil, err
	}
	r, err := cri.New(ctx, cri.Config{
		RunDir: c.RunDir, StateDir: c.RootDir, Socket: c.CRISocket, ShimBinary: c.ShimBinary,
		RuntimeBinary: c.RuntimeBinary, Handlers: handlers(c), DefaultHandler: c.DefaultRuntime,
		CgroupDriver: c.CgroupDriver, Version: version,
		CDISpecDirs: c.CDISpecDirs, Rlimits: limits,
		SELinux: c.SELinux.Enable, SELinuxCategories: c.SELinux.CategoryRange,
		Network: network.Config{
			ConfDir: c.CNIConfDir, BinDirs: c.CNIBinDirs, CacheDir: filepath.Join(c.RunDir, "cni-cache"),
			Plugins: cniPlugins, Logger: log,
		},
		Image:    imageConfig(c, log),
		PodCIDRs: podCIDRs,
		NRI:      nriConfig(c),
		Logger:   log,
	})
	if err != nil {
		return nil, named("runtime", err)
	}
	return r, nil
}

// handlers are the runtimes that the configuration names.
func handlers(c config.Config) map[string]handler.Config {
	all := map[string]handler.Config{}
	for name, r := range c.Runtimes {
		all[name] = handler.Config{
			Path: r.Path, Root: r.Root, Args: r.Args, Timeout: r.Timeout.Duration,
			SystemdCgroup:                c.CgroupDriver == cri.DriverSystemd,
			PrivilegedWithoutHostDevices: r.PrivilegedWithoutHostDevices,
		}
	}
	return all
}

// rlimits are the configuration's, in OCI's words. Its -1 is the largest number
// there.
func rlimits(c config.Config) ([]specs.POSIXRlimit, error) {
	limits, err := c.Ulimits()
	var list []specs.POSIXRlimit
	for _, u := range limits {
		list = append(list, specs.POSIXRlimit{Type: "RLIMIT_" + strings.ToUpper(u.Name), Soft: uint64(u.Soft), Hard: uint64(u.Hard)})
	}
	return list, err
}

// nriConfig: unless the configuration says that it is wanted, NRI is served
// where no other runtime does.
func nriConfig(c config.Config) cri.NRIConfig {
	n := c.NRI
	return cri.NRIConfig{
		Wanted: n.Enable == nil || *n.Enable, Required: n.Enable != nil && *n.Enable,
		Socket: n.SocketPath, PluginDir: n.PluginPath, ConfigDir: n.ConfigPath,
		RegistrationTimeout: n.RegistrationTimeout.Duration, RequestTimeout: n.RequestTimeout.Duration,
	}
}

func imageConfig(c config.Config, log *slog.Logger) image.Config {
	return image.Config{
		Root: filepath.Join(c.RootDir, "images"), CertsDirs: c.CertsDirs, Log: log,
		MaxParallelPulls: c.Images.MaxParallelPulls, MaxParallelLayers: c.Images.MaxParallelDownloads,
		MaxParallelUnpack: c.Images.MaxParallelUnpacks,
		MaxLayerBytes:     c.Images.MaxLayerSize.Value(), MaxUnpackedBytes: c.Images.MaxImageSize.Value(),
		MaxLayerEntries: c.Images.MaxLayerEntries, ProgressTimeout: c.Images.PullProgressTimeout.Duration,
		PinnedImages: c.Images.Pinned, AuthFile: c.Images.AuthFile,
	}
}

func newAgent(c config.Config, kubelet *kubeletconfig.Config, log *slog.Logger) (*agent.Agent, error) {
	if kubelet != nil {
		for _, w := range kubelet.Warnings {
			log.Warn(w)
		}
		if len(c.ClusterDNS) == 0 {
			c.ClusterDNS = kubelet.ClusterDNS
		}
		if err := setKernel("/proc/sys", kubelet.ProtectKernelDefaults, log); err != nil {
			return nil, err
		}
	}
	host, err := podNode(c, kubelet)
	if err != nil {
		return nil, err
	}
	boot, err := bootID()
	if err != nil {
		return nil, err
	}
	info, err := machine.Read(os.DirFS("/"))
	if err != nil {
		return nil, err
	}
	if kubelet != nil && *kubelet.FailSwapOn && info.SwapBytes > 0 {
		return nil, errors.New("running with swap on is not supported: switch it off (swapoff -a), or set failSwapOn to false")
	}
	reserved, disk, err := reservation(info, kubelet, c.KubeletDir)
	if err != nil {
		return nil, err
	}
	resources, err := machine.Capacity(info, reserved, disk, machine.Devices{})
	if err != nil {
		return nil, err
	}
	host.Allocatable = resources.Allocatable
	own, err := ownResources(kubelet, info, reserved, disk, resources)
	if err != nil {
		return nil, err
	}
	cluster, err := newCluster(kubelet, host, own, resources, log)
	if err != nil {
		return nil, err
	}
	logs, err := logRotation(kubelet)
	if err != nil {
		return nil, err
	}
	a, err := agent.New(agent.Config{
		Node: host, RuntimeSock: c.CRISocket, ImageSock: imageSocket(kubelet), APISocket: c.APISocket,
		ManifestDir: c.ManifestDir, Rescan: c.Rescan.Duration,
		StateDir: filepath.Join(c.RootDir, "agent"), ContainerLogsDir: c.ContainerLogsDir, Logs: logs,
		Cgroups: cgroupConfig(c, kubelet, info, resources), Reserved: reservedCgroups(kubelet, reserved),
		Backoff: backoff(kubelet), RuntimeTimeout: requestTimeout(kubelet),
		IDsPerPod: idsPerPod(kubelet), BootID: boot, Log: log, Cluster: cluster,
	})
	if err != nil {
		return nil, named("agent", err)
	}
	return a, nil
}

// imageSocket is that of a runtime with an image service of its own; empty: the
// runtime's.
func imageSocket(k *kubeletconfig.Config) string {
	if k == nil {
		return ""
	}
	return strings.TrimPrefix(k.ImageServiceEndpoint, "unix://")
}

// idsPerPod are the IDs of a pod with a user namespace; zero: the default. Its
// range is validated.
func idsPerPod(k *kubeletconfig.Config) uint32 {
	if k == nil || k.UserNamespaces == nil || k.UserNamespaces.IDsPerPod == nil {
		return 0
	}
	return uint32(*k.UserNamespaces.IDsPerPod)
}

// backoff is that of restarts: the kubelet's, or what it is told.
func backoff(k *kubeletconfig.Config) plan.Backoff {
	b := plan.KubeletBackoff
	if k == nil || k.CrashLoopBackOff.MaxContainerRestartPeriod == nil {
		return b
	}
	b.Max = k.CrashLoopBackOff.MaxContainerRestartPeriod.Duration
	b.Base, b.ResetAfter = min(b.Base, b.Max), 2*max(b.Max, 5*time.Minute)
	return b
}

// logRotation is how containers' logs are rotated: the kubelet's defaults, or
// what it is told.
func logRotation(k *kubeletconfig.Config) (logrotate.Config, error) {
	if k == nil {
		k = kubeletconfig.Default()
	}
	size, err := resource.ParseQuantity(k.ContainerLogMaxSize)
	if err != nil {
		return logrotate.Config{}, fmt.Errorf("containerLogMaxSize %q: %w", k.ContainerLogMaxSize, err)
	}
	return logrotate.Config{
		MaxBytes: size.Value(), MaxFiles: int(*k.ContainerLogMaxFiles), Workers: int(*k.ContainerLogMaxWorkers),
		Every: k.ContainerLogMonitorInterval.Duration,
	}, nil
}

// requestTimeout bounds a request to the runtime: the kubelet's default, or
// what it is told.
func requestTimeout(k *kubeletconfig.Config) time.Duration {
	if k == nil {
		return 2 * time.Minute
	}
	return k.RuntimeRequestTimeout.Duration
}

// ready tells the service manager once every pod has its worker again.
func ready(ctx context.Context, inControl <-chan struct{}, c config.Config, log *slog.Logger) error {
	start := time.Now()
	select {
	case <-ctx.Done():
		return nil
	case <-inControl:
	}
	log.Info("in control", "node", c.NodeName, "took", time.Since(start).Round(time.Millisecond))
	// What starting needed, pods can have.
	debug.FreeOSMemory()
	return notify.Ready("in control of " + c.NodeName)
}

// alive asks the daemon's own API, as a user would: a hung daemon does not
// answer.
func alive(c config.Config) func(context.Context) error {
	if !c.Has(config.RoleAgent) {
		return func(context.Context) error { return nil }
	}
	client := &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", c.APISocket)
		},
	}}
	return func(ctx context.Context) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://berth/healthz", nil)
		if err != nil {
			return err
		}
		resp, err := client.Do(req)
		if err != nil {
			return err
		}
		return resp.Body.Close()
	}
}

func named(role string, err error) error {
	if err == nil || errors.Is(err, context.Canceled) {
		return err
	}
	return fmt.Errorf("%s: %w", role, err)
}
