// Package plugin is Berth's CNI plugin: bridge, address management, hairpin,
// masquerade and port mappings in one.
//
// Plugin.Handle answers one call of the CNI protocol, as a function: it takes
// the environment and standard input that an executed plugin would have and
// returns what that plugin would print. cmd/berth-cni wraps it as an
// executable; a runtime may call it in-process. Either way it works in the
// network namespace of the calling thread, changes nothing of the process, and
// runs a program only where packet filter rules change: once per network and
// boot for masquerade, and for pods with published ports.
//
// The order within ADD and DEL makes every step findable after kill -9 by what
// the step before has recorded; see the package comments of ipam, bridge and
// portmap.
package plugin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/utils"
	"github.com/containernetworking/cni/pkg/version"
	"sigs.k8s.io/knftables"

	"github.com/berth-io/berth/cni/bridge"
	"github.com/berth-io/berth/cni/ipam"
	"github.com/berth-io/berth/cni/netfilter"
)

// Type is the name of the plugin in a network configuration.
const Type = "berth-cni"

const bootIDFile = "/proc/sys/kernel/random/boot_id"

// Config configures a Plugin.
type Config struct {
	// BootID stamps leases; leases with another one are free. Empty: that of
	// the kernel.
	BootID string
}

// Plugin answers CNI calls. It may be used by many goroutines at once.
type Plugin struct {
	cfg Config

	mu  sync.Mutex
	nft knftables.Interface // opened when first needed
	// turns has a token per lease directory, so that goroutines of this process
	// wait for each other in order and only one contends for the file lock.
	turns map[string]chan struct{}
}

// New returns a Plugin. It starts nothing.
func New(cfg Config) *Plugin {
	return &Plugin{cfg: cfg, turns: map[string]chan struct{}{}}
}

// Handle answers one CNI call. environ holds the CNI_ variables ("KEY=value"),
// stdin the network configuration; the result is what the plugin prints. The
// error is always a *types.Error.
func (p *Plugin) Handle(ctx context.Context, environ []string, stdin []byte) ([]byte, error) {
	out, err := p.handle(ctx, environ, stdin)
	if err == nil {
		return out, nil
	}
	var cniErr *types.Error
	if errors.As(err, &cniErr) {
		return nil, cniErr
	}
	return nil, types.NewError(codeOf(err), err.Error(), "")
}

// codeOf returns the CNI error code of an error that has none.
func codeOf(err error) uint {
	var exhausted *ipam.Exhausted
	switch {
	case errors.Is(err, bridge.ErrNetNS):
		return types.ErrInvalidNetNS
	case errors.As(err, &exhausted), errors.Is(err, context.DeadlineExceeded):
		return types.ErrTryAgainLater
	}
	return types.ErrInternal
}

func (p *Plugin) handle(ctx context.Context, environ []string, stdin []byte) ([]byte, error) {
	env := parseEnviron(environ)
	if env.command == "VERSION" {
		var out bytes.Buffer
		err := supported().Encode(&out)
		return out.Bytes(), err
	}
	if err := env.validate(); err != nil {
		return nil, err
	}
	if err := checkVersion(env.command, stdin); err != nil {
		return nil, err
	}
	net, err := parseNetwork(stdin)
	if err != nil {
		return nil, types.NewError(types.ErrInvalidNetworkConfig, "network configuration: "+strings.ReplaceAll(err.Error(), "\n", "; "), "")
	}
	c, err := p.newCall(net, env)
	if err != nil {
		return nil, err
	}
	defer c.host.Close()
	switch env.command {
	case "ADD":
		result, err := c.add(ctx)
		if err != nil {
			return nil, err
		}
		return encode(result, net.cniVersion)
	case "DEL":
		return nil, c.del(ctx)
	case "CHECK":
		return nil, c.check(ctx)
	case "GC":
		return nil, c.gc(ctx)
	default:
		return nil, c.status(ctx)
	}
}

// supported returns the versions of the CNI specification that are spoken.
func supported() version.PluginInfo {
	return version.PluginSupports("0.3.1", "0.4.0", "1.0.0", "1.1.0")
}

// checkVersion refuses a configuration of an unknown version, and a command
// that its version does not have.
func checkVersion(command string, stdin []byte) error {
	configured, err := (&version.ConfigDecoder{}).Decode(stdin)
	if err != nil {
		return types.NewError(types.ErrDecodingFailure, "network configuration: "+err.Error(), "")
	}
	if err := (&version.Reconciler{}).Check(configured, supported()); err != nil {
		return types.NewError(types.ErrIncompatibleCNIVersion,
			fmt.Sprintf("cniVersion: %q is not supported; use one of %s", configured, strings.Join(supported().SupportedVersions(), ", ")), "")
	}
	since, ok := map[string]string{"CHECK": "0.4.0", "GC": "1.1.0", "STATUS": "1.1.0"}[command]
	if !ok {
		return nil
	}
	if enough, err := version.GreaterThanOrEqualTo(configured, since); err != nil || !enough {
		return types.NewError(types.ErrIncompatibleCNIVersion,
			fmt.Sprintf("cniVersion: %s needs %s or later, not %q", command, since, configured), "")
	}
	return nil
}

func encode(result *types100.Result, cniVersion string) ([]byte, error) {
	converted, err := result.GetAsVersion(cniVersion)
	if err != nil {
		return nil, fmt.Errorf("convert the result to version %s: %w", cniVersion, err)
	}
	out, err := json.Marshal(converted)
	if err != nil {
		return nil, fmt.Errorf("encode the result: %w", err)
	}
	return append(out, '\n'), nil
}

// environment is what the CNI_ variables say.
type environment struct {
	command     string
	containerID string
	netns       string
	ifName      string
	pod         string // namespace/name, when the runtime tells
	staticIP    string
}

func parseEnviron(environ []string) environment {
	vars := map[string]string{}
	for _, kv := range environ {
		if key, value, ok := strings.Cut(kv, "="); ok {
			vars[key] = value
		}
	}
	args := map[string]string{}
	for _, kv := range strings.Split(vars["CNI_ARGS"], ";") {
		if key, value, ok := strings.Cut(kv, "="); ok {
			args[key] = value
		}
	}
	env := environment{
		command:     vars["CNI_COMMAND"],
		containerID: vars["CNI_CONTAINERID"],
		netns:       vars["CNI_NETNS"],
		ifName:      vars["CNI_IFNAME"],
		staticIP:    args["IP"],
	}
	if args["K8S_POD_NAME"] != "" {
		env.pod = args["K8S_POD_NAMESPACE"] + "/" + args["K8S_POD_NAME"]
	}
	return env
}

// validate checks the variables that the command needs.
func (e environment) validate() error {
	needs := map[string][]string{
		"ADD":    {"CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"},
		"CHECK":  {"CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"},
		"DEL":    {"CNI_CONTAINERID", "CNI_IFNAME"},
		"GC":     {},
		"STATUS": {},
	}
	required, ok := needs[e.command]
	if !ok {
		return types.NewError(types.ErrInvalidEnvironmentVariables,
			fmt.Sprintf("CNI_COMMAND: %q is unknown: use ADD, DEL, CHECK, GC, STATUS or VERSION", e.command), "")
	}
	values := map[string]string{"CNI_CONTAINERID": e.containerID, "CNI_NETNS": e.netns, "CNI_IFNAME": e.ifName}
	for _, name := range required {
		if values[name] == "" {
			return types.NewError(types.ErrInvalidEnvironmentVariables, fmt.Sprintf("%s: not set, but %s needs it", name, e.command), "")
		}
	}
	if len(required) == 0 {
		return nil
	}
	if err := utils.ValidateContainerID(e.containerID); err != nil {
		return err
	}
	if err := utils.ValidateInterfaceName(e.ifName); err != nil {
		return err
	}
	if e.command == "ADD" && e.staticIP != "" {
		return types.NewError(types.ErrUnsupportedField, "CNI_ARGS: IP: static addresses are not supported by berth-cni", "")
	}
	return nil
}

// bootID returns the stamp of leases.
func (p *Plugin) bootID() (string, error) {
	if p.cfg.BootID != "" {
		return p.cfg.BootID, nil
	}
	id, err := os.ReadFile(bootIDFile)
	if err != nil {
		return "", fmt.Errorf("read the boot ID: %w", err)
	}
	return strings.TrimSpace(string(id)), nil
}

// openNFTables returns Berth's nftables table, opened once.
func (p *Plugin) openNFTables() (knftables.Interface, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.nft == nil {
		nft, err := netfilter.OpenNFTables()
		if err != nil {
			return nil, err
		}
		p.nft = nft
	}
	return p.nft, nil
}

// turn returns the token of a lease directory.
func (p *Plugin) turn(dir string) chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.turns[dir] == nil {
		p.turns[dir] = make(chan struct{}, 1)
	}
	return p.turns[dir]
}
