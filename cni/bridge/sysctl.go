package bridge

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
)

const sysctlRoot = "/proc/sys"

// setSysctl writes value to name ("net/ipv4/ip_forward") in the network
// namespace of the calling thread, unless it is there already. A sysctl that
// does not exist (IPv6 compiled out or disabled) is skipped.
func setSysctl(name, value string) error {
	path := filepath.Join(sysctlRoot, name)
	old, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil && strings.TrimSpace(string(old)) == value {
		return nil
	}
	if err := os.WriteFile(path, []byte(value), 0); err != nil {
		return fmt.Errorf("set sysctl %s to %s: %w", name, value, err)
	}
	return nil
}

// enableForwarding lets the host route for the families of gateways.
func enableForwarding(gateways []netip.Prefix) error {
	var v4, v6 bool
	for _, gw := range gateways {
		if gw.Addr().Is4() {
			v4 = true
		} else {
			v6 = true
		}
	}
	if v4 {
		if err := setSysctl("net/ipv4/ip_forward", "1"); err != nil {
			return err
		}
	}
	if !v6 {
		return nil
	}
	if err := keepRouterAdvertisements(); err != nil {
		return err
	}
	return setSysctl("net/ipv6/conf/all/forwarding", "1")
}

// keepRouterAdvertisements lets the links that learn their routes from router
// advertisements (accept_ra=1) go on doing so (accept_ra=2) once the host
// forwards: a forwarding host ignores advertisements by default, and would lose
// its default route when the present one expires
// (Documentation/networking/ip-sysctl.rst, accept_ra).
func keepRouterAdvertisements() error {
	links, err := filepath.Glob(sysctlRoot + "/net/ipv6/conf/*/accept_ra")
	if err != nil {
		return err
	}
	for _, path := range links {
		name := filepath.Base(filepath.Dir(path))
		if name == "all" || name == "default" || name == "lo" || strings.HasPrefix(name, vethPrefix) {
			continue
		}
		value, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue // the link went away
		}
		if err != nil {
			return fmt.Errorf("read sysctl %s: %w", path, err)
		}
		if strings.TrimSpace(string(value)) != "1" {
			continue
		}
		if err := setSysctl("net/ipv6/conf/"+name+"/accept_ra", "2"); err != nil {
			return err
		}
	}
	return nil
}

// RouteLocalnet lets packets from 127.0.0.0/8 leave through the bridge, which
// a connection to localhost that is redirected to a pod needs. The caller keeps
// pods from reaching 127.0.0.0/8 of the host through it.
func RouteLocalnet(bridge string) error {
	return setSysctl("net/ipv4/conf/"+bridge+"/route_localnet", "1")
}
