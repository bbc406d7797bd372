package plugin_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/berth-io/berth/cni/internal/netnstest"
)

// dialTimeout bounds every attempt to connect; refusals come at once.
const dialTimeout = 2 * time.Second

// serve answers on address in ns, over tcp and udp, with the address that the
// client is seen with.
func serve(t testing.TB, ns *netnstest.NS, address string) {
	t.Helper()
	var listener net.Listener
	var packets net.PacketConn
	ns.Must(t, func() (err error) {
		if listener, err = net.Listen("tcp", address); err != nil {
			return err
		}
		packets, err = net.ListenPacket("udp", address)
		return err
	})
	t.Cleanup(func() { listener.Close(); packets.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			io.WriteString(conn, host(conn.RemoteAddr()))
			conn.Close()
		}
	}()
	go func() {
		buf := make([]byte, 16)
		for {
			_, from, err := packets.ReadFrom(buf)
			if err != nil {
				return
			}
			packets.WriteTo([]byte(host(from)), from)
		}
	}()
}

func host(addr net.Addr) string {
	return netip.MustParseAddrPort(addr.String()).Addr().Unmap().String()
}

// dial asks a server started by serve, from ns, who the client is.
func dial(ns *netnstest.NS, network, address string) (seen string, err error) {
	err = ns.Do(func() error {
		conn, err := net.DialTimeout(network, address, dialTimeout)
		if err != nil {
			return err
		}
		defer conn.Close()
		if err := conn.SetDeadline(time.Now().Add(dialTimeout)); err != nil {
			return err
		}
		if network == "udp" {
			if _, err := conn.Write([]byte("who")); err != nil {
				return err
			}
		}
		buf := make([]byte, 64)
		n, err := conn.Read(buf)
		seen = string(buf[:n])
		if errors.Is(err, io.EOF) {
			err = nil
		}
		return err
	})
	return seen, err
}

func wantSeen(t *testing.T, what string, ns *netnstest.NS, address, want string) {
	t.Helper()
	for _, network := range []string{"tcp", "udp"} {
		seen, err := dial(ns, network, address)
		if err != nil {
			t.Errorf("%s by %s: %v", what, network, err)
		} else if seen != want {
			t.Errorf("%s by %s: the server sees %s, want %s", what, network, seen, want)
		}
	}
}

func run(t testing.TB, ns *netnstest.NS, args ...string) string {
	t.Helper()
	var out []byte
	ns.Must(t, func() (err error) {
		out, err = exec.Command(args[0], args[1:]...).CombinedOutput()
		if err != nil {
			err = fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, out)
		}
		return err
	})
	return string(out)
}

// withOutside links the host to a namespace that stands for the world.
func withOutside(t *testing.T, l *lab) *netnstest.NS {
	outside := netnstest.New(t)
	netnstest.Connect(t, l.host, outside, "up0",
		[]string{"192.168.50.1/24", "fd50::1/64"}, []string{"192.168.50.2/24", "fd50::2/64"}, false)
	return outside
}

// backends are the values of ipMasqBackend and portmapBackend.
func eachBackend(t *testing.T, f func(t *testing.T, backend string)) {
	for backend, program := range map[string]string{"nftables": "nft", "iptables": "iptables"} {
		t.Run(backend, func(t *testing.T) {
			if _, err := exec.LookPath(program); err != nil {
				t.Skip(program + " is not installed")
			}
			f(t, backend)
		})
	}
}

func TestPodsReachEachOtherTheHostAndOutside(t *testing.T) {
	eachBackend(t, func(t *testing.T, backend string) {
		l := newLab(t, "10.88.0.0/16", "fd00:88::/64")
		l.conf = l.with("ipMasqBackend", backend)
		outside := withOutside(t, l)
		a, b := netnstest.New(t), netnstest.New(t)
		l.add("a", a, l.conf)
		l.add("b", b, l.conf)
		serve(t, a, ":80")
		serve(t, l.host, ":81")
		serve(t, outside, ":82")
		wantSeen(t, "pod to pod", b, "10.88.0.2:80", "10.88.0.3")
		wantSeen(t, "pod to pod", b, "[fd00:88::2]:80", "fd00:88::3")
		wantSeen(t, "pod to host", b, "10.88.0.1:81", "10.88.0.3")
		wantSeen(t, "pod to host", b, "[fd00:88::1]:81", "fd00:88::3")
		wantSeen(t, "host to pod", l.host, "10.88.0.2:80", "10.88.0.1")
		wantSeen(t, "host to pod", l.host, "[fd00:88::2]:80", "fd00:88::1")
		wantSeen(t, "pod to its own loopback", a, "127.0.0.1:80", "127.0.0.1")
		wantSeen(t, "pod to outside", b, "192.168.50.2:82", "192.168.50.1")
		wantSeen(t, "pod to outside", b, "[fd50::2]:82", "fd50::1")
	})
}

func TestPodsIgnoreRouterAdvertisements(t *testing.T) {
	l := newLab(t, "10.88.0.0/16")
	pod := netnstest.New(t)
	l.add("a", pod, l.conf)
	if got := run(t, pod, "cat", "/proc/sys/net/ipv6/conf/eth0/accept_ra"); got != "0\n" {
		t.Errorf("accept_ra of the pod is %q, want 0", got)
	}
}

func TestHostPortsReachThePodFromEverywhere(t *testing.T) {
	eachBackend(t, func(t *testing.T, backend string) {
		l := newLab(t, "10.88.0.0/16", "fd00:88::/64")
		l.conf = l.with("portmapBackend", backend)
		outside := withOutside(t, l)
		run(t, outside, "ip", "route", "add", "10.88.0.0/16", "via", "192.168.50.1")
		pod, other := netnstest.New(t), netnstest.New(t)
		ports := l.with("runtimeConfig", map[string]any{"portMappings": []map[string]any{
			{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
			{"hostPort": 8080, "containerPort": 80, "protocol": "UDP"},
			{"hostPort": 8081, "containerPort": 80, "protocol": "tcp", "hostIP": "192.168.50.1"},
			{"hostPort": 0, "containerPort": 99, "protocol": "tcp"},
		}})
		result := l.add("a", pod, ports)
		l.add("b", other, l.conf)
		serve(t, pod, ":80")

		wantSeen(t, "outside to host port", outside, "192.168.50.1:8080", "192.168.50.2")
		wantSeen(t, "outside to host port", outside, "[fd50::1]:8080", "fd50::2")
		wantSeen(t, "host to its own port", l.host, "192.168.50.1:8080", "192.168.50.1")
		wantSeen(t, "host to its own port", l.host, "[fd50::1]:8080", "fd50::1")
		wantSeen(t, "host by localhost", l.host, "127.0.0.1:8080", "10.88.0.1")
		wantSeen(t, "pod to itself by host port", pod, "192.168.50.1:8080", "10.88.0.1")
		wantSeen(t, "pod to itself by host port", pod, "[fd50::1]:8080", "fd00:88::1")
		wantSeen(t, "other pod by host port", other, "192.168.50.1:8080", "10.88.0.1")
		wantSeen(t, "other pod by host port", other, "[fd50::1]:8080", "fd00:88::1")
		if seen, err := dial(outside, "tcp", "192.168.50.1:8081"); err != nil || seen != "192.168.50.2" {
			t.Errorf("host port with a host IP: %q, %v", seen, err)
		}
		if _, err := dial(other, "tcp", "10.88.0.1:8081"); err == nil {
			t.Error("a host port with a host IP answers on another address of the host")
		}
		if _, err := dial(outside, "tcp", "[fd50::1]:8081"); err == nil {
			t.Error("a host port with an IPv4 host IP answers by IPv6")
		}

		ports["prevResult"] = result
		l.must("CHECK", "a", pod.Path, ports)
		l.must("DEL", "a", pod.Path, ports)
		if _, err := dial(outside, "tcp", "192.168.50.1:8080"); err == nil {
			t.Error("the host port answers after DEL")
		}
		wantNoRules(t, l, "a")
	})
}

// wantNoRules asserts that no packet filter names sandbox.
func wantNoRules(t *testing.T, l *lab, sandbox string) {
	t.Helper()
	tag := "podnet:" + sandbox + ":eth0"
	for _, list := range [][]string{{"nft", "list", "ruleset"}, {"iptables-save"}, {"ip6tables-save"}} {
		if _, err := exec.LookPath(list[0]); err != nil {
			continue
		}
		if rules := run(t, l.host, list...); strings.Contains(rules, tag) {
			t.Errorf("%s still has rules of sandbox %s:\n%s", list[0], sandbox, rules)
		}
	}
}

func TestPublishedPortsDoNotOpenLocalhostToPods(t *testing.T) {
	eachBackend(t, func(t *testing.T, backend string) {
		l := newLab(t, "10.88.0.0/16")
		l.conf = l.with("portmapBackend", backend)
		pod := netnstest.New(t)
		l.add("a", pod, l.with("runtimeConfig", map[string]any{"portMappings": []map[string]any{
			{"hostPort": 8080, "containerPort": 80}}}))
		serve(t, l.host, "127.0.0.1:9999")
		// What a pod with NET_ADMIN would do to reach the host's 127.0.0.1.
		run(t, pod, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/conf/all/route_localnet; ip addr del 127.0.0.1/8 dev lo; "+
			"ip route del local 127.0.0.0/8 dev lo table local 2>/dev/null; ip route del local 127.0.0.1 dev lo table local 2>/dev/null; ip route add 127.0.0.1 via 10.88.0.1")
		if seen, err := dial(pod, "tcp", "127.0.0.1:9999"); err == nil {
			t.Errorf("the pod reaches the host's localhost as %s", seen)
		}
	})
}
