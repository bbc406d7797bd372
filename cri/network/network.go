package network

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
)

// ifName is the name of a pod's interface, as every kubelet expects it.
const ifName = "eth0"

// ErrNoNetwork means that no network configuration is there (yet).
var ErrNoNetwork = errors.New("no network is configured")

// Config of New.
type Config struct {
	ConfDir  string        // where network configurations are, /etc/cni/net.d
	BinDirs  []string      // where plugins are, /opt/cni/bin
	CacheDir string        // where libcni keeps what DEL needs, /var/lib/cni
	Timeout  time.Duration // bound on one setup or teardown; 0 means 2 minutes
	Logger   *slog.Logger  // nil: discarded
	// Plugins are the in-process plugins by type.
	Plugins map[string]Plugin `json:"-"`
	// Default is the configuration used while ConfDir has none; may be empty.
	Default []byte
}

// Network runs the first network configuration of a directory.
type Network struct {
	cfg Config
	cni *libcni.CNIConfig

	mu   sync.RWMutex
	list *libcni.NetworkConfigList
	err  error // why there is no list
}

// New reads the configuration once; Run follows its changes.
func New(cfg Config) *Network {
	if cfg.Timeout == 0 {
		cfg.Timeout = 2 * time.Minute
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	n := &Network{
		cfg: cfg,
		cni: libcni.NewCNIConfigWithCacheDir(cfg.BinDirs, cfg.CacheDir, newExec(cfg.Plugins)),
	}
	n.Reload()
	return n
}

// Reload takes the first valid configuration by file name. While there is
// none, the last good one stays: a half-written file must not take the network
// from the node.
func (n *Network) Reload() {
	n.mu.Lock() // before the files are read: the last to read them wins
	defer n.mu.Unlock()
	list, err := n.load()
	if err != nil {
		if n.list == nil || errors.Is(err, ErrNoNetwork) {
			n.list, n.err = nil, err
		}
		if n.list != nil {
			n.cfg.Logger.Warn("network configuration ignored, the last good one stays", "error", err)
		}
		return
	}
	if n.list == nil || string(n.list.Bytes) != string(list.Bytes) {
		n.cfg.Logger.Info("network configured", "network", list.Name, "cniVersion", list.CNIVersion)
	}
	n.list, n.err = list, nil
}

func (n *Network) load() (*libcni.NetworkConfigList, error) {
	list, err := firstList(n.cfg.ConfDir)
	if errors.Is(err, ErrNoNetwork) && len(n.cfg.Default) > 0 {
		if list, err = libcni.NetworkConfFromBytes(n.cfg.Default); err != nil {
			return nil, fmt.Errorf("default network configuration: %w", err)
		}
	}
	return list, err
}

func firstList(dir string) (*libcni.NetworkConfigList, error) {
	files, err := libcni.ConfFiles(dir, []string{".conf", ".conflist", ".json"})
	if err != nil {
		return nil, fmt.Errorf("read the network configurations in %s: %w", dir, err)
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("%w: put a CNI configuration into %s", ErrNoNetwork, dir)
	}
	slices.Sort(files)
	var errs []error
	for _, file := range files {
		list, err := loadList(file)
		if err == nil {
			return list, nil
		}
		errs = append(errs, fmt.Errorf("network configuration %s: %w", file, err))
	}
	return nil, errors.Join(errs...)
}

// loadList also takes the older files with one plugin and no list, which are
// still found on nodes.
func loadList(file string) (*libcni.NetworkConfigList, error) {
	if filepath.Ext(file) != ".conflist" {
		data, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		return listOfOne(data)
	}
	list, err := libcni.NetworkConfFromFile(file)
	if err != nil {
		return nil, err
	}
	if len(list.Plugins) == 0 {
		return nil, errors.New("it names no plugins")
	}
	return list, nil
}

func listOfOne(plugin []byte) (*libcni.NetworkConfigList, error) {
	var head struct {
		CNIVersion string `json:"cniVersion"`
		Name       string `json:"name"`
	}
	if err := json.Unmarshal(plugin, &head); err != nil {
		return nil, err
	}
	list, err := json.Marshal(map[string]any{
		"cniVersion": head.CNIVersion, "name": head.Name, "plugins": []json.RawMessage{plugin},
	})
	if err != nil {
		return nil, err
	}
	return libcni.NetworkConfFromBytes(list)
}

func (n *Network) current() (*libcni.NetworkConfigList, error) {
	n.mu.RLock()
	defer n.mu.RUnlock()
	return n.list, n.err
}

// Setup attaches a sandbox to the network. When it fails, what was done is
// undone.
func (n *Network) Setup(ctx context.Context, s Sandbox) (Result, error) {
	list, err := n.current()
	if err != nil {
		return Result{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, n.cfg.Timeout)
	defer cancel()
	added, err := n.cni.AddNetworkList(ctx, list, runtimeConf(s))
	if err != nil {
		err = fmt.Errorf("attach the sandbox to network %s: %w", list.Name, err)
		// The caller's time may be what ran out.
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), n.cfg.Timeout)
		defer cancel()
		if undoErr := n.cni.DelNetworkList(undo, list, runtimeConf(s)); undoErr != nil {
			err = errors.Join(err, fmt.Errorf("undo it: %w", undoErr))
		}
		return Result{}, err
	}
	r, err := types100.NewResultFromResult(added)
	if err != nil {
		return Result{}, fmt.Errorf("read the result of network %s: %w", list.Name, err)
	}
	return podResult(r)
}

// podResult picks the addresses of the pod's interface. Addresses without an
// interface are the pod's as well: a plugin need not say.
func podResult(r *types100.Result) (Result, error) {
	result := Result{Interface: ifName}
	for _, ip := range r.IPs {
		if ip.Interface != nil && *ip.Interface >= 0 && *ip.Interface < len(r.Interfaces) {
			if i := r.Interfaces[*ip.Interface]; i.Sandbox == "" || i.Name != ifName {
				continue
			}
		}
		addr, ok := netip.AddrFromSlice(ip.Address.IP)
		if !ok {
			return Result{}, fmt.Errorf("the network gave the pod the address %s, which is none", ip.Address)
		}
		result.IPs = append(result.IPs, addr.Unmap())
	}
	if len(result.IPs) == 0 {
		return Result{}, errors.New("the network gave the pod no address")
	}
	return result, nil
}

// Teardown detaches a sandbox from every network it was attached to. It is
// idempotent, and works when the network namespace is gone: s.NetNS is empty
// then.
func (n *Network) Teardown(ctx context.Context, s Sandbox) error {
	ctx, cancel := context.WithTimeout(ctx, n.cfg.Timeout)
	defer cancel()
	attached, err := n.cni.GetCachedAttachments(s.ID)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("find the networks of sandbox %s: %w", s.ID, err)
	}
	list, _ := n.current()
	var errs []error
	detached := map[string]bool{}
	for _, a := range attached {
		// The configuration the sandbox was attached with, which may have
		// changed since.
		with, err := libcni.ConfListFromBytes(a.Config)
		if err != nil {
			errs = append(errs, fmt.Errorf("read the cached network %s: %w", a.Network, err))
			continue
		}
		rt := &libcni.RuntimeConf{
			ContainerID: a.ContainerID, NetNS: s.NetNS, IfName: a.IfName,
			Args: a.CniArgs, CapabilityArgs: a.CapabilityArgs,
		}
		if err := n.cni.DelNetworkList(ctx, with, rt); err != nil {
			errs = append(errs, fmt.Errorf("detach the sandbox from network %s: %w", a.Network, err))
		}
		detached[a.Network] = true
	}
	// Without a cache entry the attachment may be half done: a crash between
	// the plugins and the entry.
	if list != nil && !detached[list.Name] {
		if err := n.cni.DelNetworkList(ctx, list, runtimeConf(s)); err != nil {
			errs = append(errs, fmt.Errorf("detach the sandbox from network %s: %w", list.Name, err))
		}
	}
	return errors.Join(errs...)
}

// Status is nil when a network is configured and its plugins say that they can
// attach sandboxes.
func (n *Network) Status(ctx context.Context) error {
	list, err := n.current()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, n.cfg.Timeout)
	defer cancel()
	if err := n.cni.GetStatusNetworkList(ctx, list); err != nil {
		return fmt.Errorf("network %s is not ready: %w", list.Name, err)
	}
	return nil
}

// Name of the configured network, empty when there is none.
func (n *Network) Name() string {
	if list, _ := n.current(); list != nil {
		return list.Name
	}
	return ""
}

// GC detaches every sandbox that is not among the live ones, and lets the
// plugins remove what else they find.
func (n *Network) GC(ctx context.Context, live []Sandbox) error {
	wanted := map[string]bool{}
	args := &libcni.GCArgs{ValidAttachments: []types.GCAttachment{}}
	for _, s := range live {
		wanted[s.ID] = true
		args.ValidAttachments = append(args.ValidAttachments, types.GCAttachment{ContainerID: s.ID, IfName: ifName})
	}
	attached, err := n.cni.GetCachedAttachments("")
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("find the attached sandboxes: %w", err)
	}
	var errs []error
	for _, a := range attached {
		if wanted[a.ContainerID] {
			continue
		}
		wanted[a.ContainerID] = true // once is enough
		errs = append(errs, n.Teardown(ctx, Sandbox{ID: a.ContainerID}))
	}
	if list, _ := n.current(); list != nil {
		ctx, cancel := context.WithTimeout(ctx, n.cfg.Timeout)
		defer cancel()
		if err := n.cni.GCNetworkList(ctx, list, args); err != nil {
			errs = append(errs, fmt.Errorf("collect the garbage of network %s: %w", list.Name, err))
		}
	}
	return errors.Join(errs...)
}

// runtimeConf carries what the kubelet's habits promise to plugins: the pod's
// identity in CNI_ARGS, its port mappings and annotations as capabilities.
func runtimeConf(s Sandbox) *libcni.RuntimeConf {
	rt := &libcni.RuntimeConf{
		ContainerID: s.ID, NetNS: s.NetNS, IfName: ifName,
		Args: [][2]string{
			{"IgnoreUnknown", "1"},
			{"K8S_POD_NAMESPACE", s.Namespace},
			{"K8S_POD_NAME", s.Name},
			{"K8S_POD_INFRA_CONTAINER_ID", s.ID},
			{"K8S_POD_UID", s.UID},
		},
		CapabilityArgs: map[string]any{},
	}
	if s.Name == "" {
		rt.Args = nil // known by its ID only
	}
	var ports []map[string]any
	for _, p := range s.PortMappings {
		if p.HostPort <= 0 {
			continue // the kubelet lists every container port
		}
		ports = append(ports, map[string]any{
			"hostPort": p.HostPort, "containerPort": p.ContainerPort,
			"protocol": p.Protocol, "hostIP": p.HostIP,
		})
	}
	if len(ports) > 0 {
		rt.CapabilityArgs["portMappings"] = ports
	}
	if len(s.Annotations) > 0 {
		rt.CapabilityArgs["io.kubernetes.cri.pod-annotations"] = s.Annotations
	}
	return rt
}
