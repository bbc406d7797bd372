// Package cri is Berth's CRI runtime: it puts the image store, the network,
// the shims and the CRI server together and serves them on a unix socket.
//
//	server     the CRI services, one file per call
//	image      images and their layers
//	network    the pod network, through CNI
//	shim       one process per sandbox, parent of its containers
//	handler    the OCI runtimes behind runtime handlers
//	nri        plugins that take part in the life of pods and containers
//	streaming  what is behind the URLs of Exec, Attach and PortForward
//	events     container events for whoever watches
//	checkpoint archives of containers that go on later
//	cdi, host  devices by vendors' files, and what the host has
//	seccomp    the filters that the OCI runtime installs
//	selinux    how pods and containers are labelled
//	store      records of sandboxes and containers
//	ns, rootfs, cgroup   the kernel's part of a sandbox and a container
//	stats, metrics       what they use, and cAdvisor's names for it
//	spec       what the CRI asks for, as an OCI specification
package cri

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-io/berth/cri/cdi"
	"github.com/berth-io/berth/cri/cgroup"
	"github.com/berth-io/berth/cri/handler"
	"github.com/berth-io/berth/cri/host"
	"github.com/berth-io/berth/cri/image"
	"github.com/berth-io/berth/cri/imagesvc"
	"github.com/berth-io/berth/cri/network"
	"github.com/berth-io/berth/cri/nri"
	"github.com/berth-io/berth/cri/rootfs"
	"github.com/berth-io/berth/cri/seccomp"
	"github.com/berth-io/berth/cri/selinux"
	"github.com/berth-io/berth/cri/server"
	"github.com/berth-io/berth/cri/shim/enter"
)

const (
	// maxMessage bounds a gRPC message, as in other runtimes: a list of many
	// pods does not fit in the library's 4 MiB.
	maxMessage = 16 << 20
	// stopTimeout is how long requests under way may take when Run ends.
	stopTimeout = 5 * time.Second
	// lockTimeout is how long New waits for another daemon to go.
	lockTimeout = 2 * time.Second
	// runtimeTimeout bounds one command of the OCI runtime.
	runtimeTimeout = 2 * time.Minute
)

// The cgroup drivers.
const (
	DriverCgroupfs = "cgroupfs"
	DriverSystemd  = "systemd"
)

// Config of the runtime.
type Config struct {
	RunDir        string // state of this boot, /run/berth; keep it short: it leads to sockets
	StateDir      string // writable layers, /var/lib/berth
	Socket        string // unix socket to serve on
	ShimBinary    string
	RuntimeBinary string // the OCI runtime of the handler HandlerRunc
	RuntimeRoot   string // its --root; empty: RunDir/runc
	// Handlers are the OCI runtimes of runtime handlers by name. HandlerRunc
	// is there by itself; one of that name takes its place. An empty root is
	// RunDir/runtime-NAME, no timeout two minutes.
	Handlers map[string]handler.Config
	// DefaultHandler is that of pods that name none; empty: HandlerRunc.
	DefaultHandler string
	// CDISpecDirs have the files of CDI vendors; empty: no CDI devices.
	CDISpecDirs  []string
	CgroupDriver string // DriverCgroupfs or DriverSystemd
	// SELinux labels pods and containers where the kernel has SELinux, and
	// keeps pods apart by pairs of so many categories.
	SELinux           bool
	SELinuxCategories int
	// Rlimits are those of containers' processes.
	Rlimits []specs.POSIXRlimit
	Version string // of the build
	Network network.Config
	Image   image.Config
	NRI     NRIConfig
	// PodCIDRs takes the pod subnets that a kubelet assigns; nil: nobody does.
	PodCIDRs server.PodCIDRs `json:"-"`
	Logger   *slog.Logger
}

// NRIConfig is for plugins of the node resource interface; see nri.Config.
type NRIConfig struct {
	Wanted   bool // serve plugins
	Required bool // do not run without, where another runtime has the socket

	Socket, PluginDir, ConfigDir        string
	RegistrationTimeout, RequestTimeout time.Duration
}

// Runtime is a CRI runtime. Make it with New, then Run it once.
type Runtime struct {
	cfg     Config
	log     *slog.Logger
	lock    *os.File
	images  *image.Store
	network *network.Network
	filters *seccomp.Filters
	sealed  *os.File // the shim's program; nil where it cannot be sealed
	server  *server.Server
	plugins *nri.NRI // nil without NRI
	streams net.Listener
	serving chan struct{}
}

// New opens everything and starts nothing. While the Runtime is not closed, no
// other can be made on the same RunDir.
func New(ctx context.Context, cfg Config) (_ *Runtime, err error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.RuntimeRoot == "" {
		cfg.RuntimeRoot = filepath.Join(cfg.RunDir, "runc")
	}
	if cfg.CgroupDriver != DriverCgroupfs && cfg.CgroupDriver != DriverSystemd {
		return nil, fmt.Errorf("cgroup driver %q: it is %s or %s", cfg.CgroupDriver, DriverCgroupfs, DriverSystemd)
	}
	r := &Runtime{cfg: cfg, log: cfg.Logger, serving: make(chan struct{})}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.Close())
		}
	}()
	if r.lock, err = lockDir(cfg.RunDir); err != nil {
		return nil, err
	}
	if r.images, err = image.Open(ctx, cfg.Image); err != nil {
		return nil, fmt.Errorf("open the image store: %w", err)
	}
	r.network = network.New(cfg.Network)
	if r.streams, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		return nil, fmt.Errorf("listen for exec, attach and port-forward: %w", err)
	}
	if r.sealed, err = enter.Seal(cfg.ShimBinary); err != nil {
		r.log.Warn("the OCI runtime starts the commands that are executed in containers, which takes longer", "reason", err)
	}
	config, err := r.serverConfig(ctx)
	if err != nil {
		return nil, err
	}
	if cfg.NRI.Wanted {
		r.plugins = nri.New(r.nriConfig(config))
		config.Plugins = r.plugins
	}
	r.server, err = server.New(config, r.images, r.network, shims{})
	return r, err
}

func (r *Runtime) serverConfig(ctx context.Context) (server.Config, error) {
	cfg := r.cfg
	cgroups, err := cgroup.Open()
	if err != nil {
		return server.Config{}, err
	}
	r.filters = seccomp.New(seccomp.Config{
		Dir: filepath.Join(cfg.RunDir, "seccomp"), Runtime: cfg.RuntimeBinary, SystemdCgroup: cfg.CgroupDriver == DriverSystemd,
		Cgroups: cgroups, Timeout: runtimeTimeout, Logger: r.log,
	})
	bootID, err := host.BootID()
	if err != nil {
		return server.Config{}, err
	}
	probed, err := host.Probe(cgroups.Unified, cfg.CgroupDriver == DriverSystemd)
	if err != nil {
		return server.Config{}, err
	}
	if probed.AppArmor != "" {
		if err := host.LoadAppArmor(); err != nil {
			return server.Config{}, err
		}
	}
	probed.Rlimits = cfg.Rlimits
	labels, err := r.labels()
	if err != nil {
		return server.Config{}, err
	}
	handlers, err := cfg.handlers()
	if err != nil {
		return server.Config{}, err
	}
	c := server.Config{
		RunDir: cfg.RunDir, StateDir: cfg.StateDir, ShimBinary: cfg.ShimBinary,
		Handlers: handlers, NoIDMap: r.noIDMap(), CDISpecDirs: cfg.CDISpecDirs,
		Host: probed, Labels: labels, Cgroups: cgroups, BootID: bootID, Version: cfg.Version,
		StreamAddr: r.streams.Addr().String(), Logger: r.log,
		Sealed: r.sealed, Filters: r.filters,
	}
	if cfg.PodCIDRs != nil {
		c.PodCIDRs = podCIDRs{cfg.PodCIDRs, r.network}
	}
	return c, nil
}

// labels are nil on a node that labels nothing.
func (r *Runtime) labels() (*selinux.Labels, error) {
	switch {
	case !r.cfg.SELinux:
		return nil, nil
	case !host.HasSELinux():
		r.log.Warn("containers are not labelled: the kernel has no SELinux, or it is switched off")
		return nil, nil
	}
	return selinux.New(host.SELinux{}, r.cfg.SELinuxCategories)
}

func (r *Runtime) nriConfig(c server.Config) nri.Config {
	n := r.cfg.NRI
	return nri.Config{
		Socket: n.Socket, PluginDir: n.PluginDir, ConfigDir: n.ConfigDir,
		RegistrationTimeout: n.RegistrationTimeout, RequestTimeout: n.RequestTimeout,
		Version: c.Version, Host: c.Host, Logger: r.log,
		ContainerDir: filepath.Join(c.RunDir, "containers"), NamespaceDir: filepath.Join(c.RunDir, "ns"),
		CDI: func(s *specs.Spec, devices []string) error { return cdi.Inject(s, devices, c.CDISpecDirs) },
	}
}

// openPlugins starts NRI once all records are in order, and before anything
// can be made that plugins would miss.
func (r *Runtime) openPlugins() error {
	if r.plugins == nil {
		return nil
	}
	err := r.plugins.Open(r.server)
	if errors.Is(err, nri.ErrSocketTaken) && !r.cfg.NRI.Required {
		r.log.Warn("this node runs without NRI plugins", "reason", err)
		return nil
	}
	return err
}

// HandlerRunc is the runtime handler that is always there.
const HandlerRunc = "runc"

func (cfg Config) handlers() (*handler.Set, error) {
	all := map[string]handler.Config{HandlerRunc: {
		Path: cfg.RuntimeBinary, Root: cfg.RuntimeRoot, SystemdCgroup: cfg.CgroupDriver == DriverSystemd, Enter: true,
	}}
	maps.Copy(all, cfg.Handlers)
	for name, h := range all {
		if h.Root == "" {
			h.Root = filepath.Join(cfg.RunDir, "runtime-"+name)
		}
		if h.Timeout == 0 {
			h.Timeout = runtimeTimeout
		}
		all[name] = h
	}
	standard := cfg.DefaultHandler
	if standard == "" {
		standard = HandlerRunc
	}
	return handler.NewSet(all, standard)
}

// noIDMap tries whether containers can have ID-mapped root file systems here.
func (r *Runtime) noIDMap() error {
	err := rootfs.ProbeIDMap(r.cfg.Image.Root, r.cfg.StateDir)
	if err != nil {
		r.log.Info("pods cannot have user namespaces here", "reason", err)
	}
	return err
}

// podCIDRs lets the network know at once what an assignment changed.
type podCIDRs struct {
	server.PodCIDRs
	network *network.Network
}

func (p podCIDRs) Assign(cidrs []netip.Prefix) error {
	if err := p.PodCIDRs.Assign(cidrs); err != nil {
		return err
	}
	p.network.Reload()
	return nil
}

// lockDir keeps two daemons from working on one directory.
func lockDir(dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return nil, fmt.Errorf("create the run directory: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, "cri.lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the lock of the run directory: %w", err)
	}
	// A daemon that was killed while it started a process holds the lock a
	// moment longer, through the child that has not become another program yet.
	deadline := time.Now().Add(lockTimeout)
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	for errors.Is(err, unix.EWOULDBLOCK) && time.Now().Before(deadline) {
		time.Sleep(10 * time.Millisecond)
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	}
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("another daemon works on %s: stop it or use another run directory: %w", dir, err)
	}
	return f, nil
}

// Serving is closed when the socket answers.
func (r *Runtime) Serving() <-chan struct{} { return r.serving }

// Run takes control of what an earlier daemon left, then serves until ctx
// ends. Containers go on running after it. Run closes the Runtime.
func (r *Runtime) Run(ctx context.Context) (err error) {
	defer func() { err = errors.Join(err, r.Close()) }()
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return r.network.Run(ctx) })
	if err := r.server.Restart(ctx); err != nil {
		return fmt.Errorf("take control of the sandboxes: %w", err)
	}
	if err := r.openPlugins(); err != nil {
		return err
	}
	group.Go(func() error { return r.images.Run(ctx) })
	group.Go(func() error { return r.filters.Run(ctx) })
	listener, err := r.listen()
	if err != nil {
		return err
	}
	streams := &http.Server{Handler: r.server.StreamHandler(), ReadHeaderTimeout: time.Minute}
	group.Go(func() error {
		if err := streams.Serve(r.streams); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serve exec, attach and port-forward: %w", err)
		}
		return nil
	})
	rpc := grpc.NewServer(grpc.MaxRecvMsgSize(maxMessage), grpc.MaxSendMsgSize(maxMessage))
	runtimeapi.RegisterRuntimeServiceServer(rpc, r.server)
	runtimeapi.RegisterImageServiceServer(rpc, r.server)
	imagesvc.Register(rpc, r.images)
	group.Go(func() error { return rpc.Serve(listener) })
	group.Go(func() error {
		<-ctx.Done()
		// Event streams never end by themselves.
		force := time.AfterFunc(stopTimeout, rpc.Stop)
		defer force.Stop()
		r.server.EndEvents()
		rpc.GracefulStop()
		return streams.Close()
	})
	r.log.Info("CRI served", "socket", r.cfg.Socket)
	close(r.serving)
	return group.Wait()
}

// listen takes the place of a socket that a killed daemon left.
func (r *Runtime) listen() (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(r.cfg.Socket), 0o755); err != nil {
		return nil, fmt.Errorf("create the socket's directory: %w", err)
	}
	if err := os.Remove(r.cfg.Socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("remove the old socket: %w", err)
	}
	listener, err := net.Listen("unix", r.cfg.Socket)
	if err != nil {
		return nil, fmt.Errorf("listen on the CRI socket: %w", err)
	}
	if err := os.Chmod(r.cfg.Socket, 0o660); err != nil {
		return nil, errors.Join(fmt.Errorf("set the mode of the CRI socket: %w", err), listener.Close())
	}
	return listener, nil
}

// Close lets go of everything but the shims and their containers. It is for a
// Runtime that is not run; Run does it itself.
func (r *Runtime) Close() error {
	var errs []error
	if r.server != nil {
		r.server.Close()
		r.server = nil
	}
	if r.plugins != nil {
		r.plugins.Close()
		r.plugins = nil
	}
	if r.streams != nil {
		if err := r.streams.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	if r.images != nil {
		errs = append(errs, r.images.Close())
		r.images = nil
	}
	if r.sealed != nil {
		errs = append(errs, r.sealed.Close())
		r.sealed = nil
	}
	if r.lock != nil {
		errs = append(errs, r.lock.Close())
		r.lock = nil
	}
	return errors.Join(errs...)
}
