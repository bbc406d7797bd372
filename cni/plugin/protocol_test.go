package plugin_test

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/berth-io/berth/cni/internal/netnstest"
	"github.com/berth-io/berth/cni/plugin"
)

func TestTheResultIsOfTheVersionOfTheConfiguration(t *testing.T) {
	for _, version := range []string{"0.3.1", "0.4.0", "1.0.0", "1.1.0"} {
		t.Run(version, func(t *testing.T) {
			l := newLab(t, "10.88.0.0/16", "fd00:88::/64")
			l.conf = l.with("cniVersion", version)
			l.conf = l.with("dns", map[string]any{"nameservers": []string{"10.96.0.10"}})
			pod := netnstest.New(t)
			out, err := l.call("ADD", "a", pod.Path, l.conf)
			if err != nil {
				t.Fatal(err)
			}
			var result struct {
				CNIVersion string
				Interfaces []struct{ Name, Mac, Sandbox string }
				IPs        []struct {
					Version, Address, Gateway string
					Interface                 int
				}
				Routes []struct{ Dst, GW string }
				DNS    types.DNS
			}
			if err := json.Unmarshal(out, &result); err != nil {
				t.Fatal(err)
			}
			if result.CNIVersion != version || len(result.Interfaces) != 3 || len(result.IPs) != 2 {
				t.Fatalf("result: %s", out)
			}
			if i := result.Interfaces[2]; i.Name != "eth0" || i.Sandbox != pod.Path || i.Mac != "0a:58:0a:58:00:02" {
				t.Errorf("container interface: %+v", i)
			}
			for i, want := range [][2]string{{"10.88.0.2/16", "10.88.0.1"}, {"fd00:88::2/64", "fd00:88::1"}} {
				if got := result.IPs[i]; got.Address != want[0] || got.Gateway != want[1] || got.Interface != 2 {
					t.Errorf("address %d: %+v", i, got)
				}
			}
			if got := fmt.Sprint(result.Routes); got != "[{0.0.0.0/0 10.88.0.1} {::/0 fd00:88::1}]" {
				t.Errorf("routes: %s", got)
			}
			if got := fmt.Sprint(result.DNS.Nameservers); got != "[10.96.0.10]" {
				t.Errorf("dns: %s", got)
			}
			if version != "0.3.1" {
				var prev map[string]any
				if err := json.Unmarshal(out, &prev); err != nil {
					t.Fatal(err)
				}
				l.must("CHECK", "a", pod.Path, l.with("prevResult", prev))
			}
			l.must("DEL", "a", pod.Path, l.conf)
		})
	}
}

func TestDelIsIdempotentAndNeedsNoNetworkNamespace(t *testing.T) {
	l := newLab(t, "10.88.0.0/16")
	pod := netnstest.New(t)
	l.must("DEL", "never-added", "", l.conf)
	l.add("a", pod, l.conf)
	pod.Close()
	l.must("DEL", "a", "/run/netns/is-gone", l.conf)
	l.must("DEL", "a", "", l.conf)
	l.wantNothing(t)
}

func TestARepeatedAddKeepsTheAddress(t *testing.T) {
	l := newLab(t, "10.88.0.0/16")
	first, second := netnstest.New(t), netnstest.New(t)
	a := l.add("a", first, l.conf).IPs[0].Address.String()
	b := l.add("a", second, l.conf).IPs[0].Address.String()
	if a != b {
		t.Errorf("the address changed from %s to %s", a, b)
	}
	serve(t, second, ":80")
	wantSeen(t, "host to pod", l.host, "10.88.0.2:80", "10.88.0.1")
}

func TestCheckNoticesWhatIsMissing(t *testing.T) {
	for _, test := range []struct{ name, pod, host, want string }{
		{"an address", "ip addr del 10.88.0.2/16 dev eth0", "", "interface eth0 in POD lacks address 10.88.0.2/16"},
		{"a route", "ip route del default", "", "interface eth0 in POD lacks the route to 0.0.0.0/0 by 10.88.0.1"},
		{"the interface up", "ip link set eth0 down", "", "interface eth0 in POD is down"},
		{"the bridge port", "", "ip link set VETH nomaster", "veth VETH is down or not in bridge berth0"},
		{"the port mappings", "", "nft delete table inet berth_cni", "0 of 2 port mapping rules are in nftables table berth_cni"},
	} {
		t.Run(test.name, func(t *testing.T) {
			l := newLab(t, "10.88.0.0/16")
			l.conf = l.with("runtimeConfig", map[string]any{"portMappings": []map[string]any{{"hostPort": 8080, "containerPort": 80}}})
			l.conf = l.with("portmapBackend", "nftables")
			pod := netnstest.New(t)
			result := l.add("a", pod, l.conf)
			veth := result.Interfaces[1].Name
			if test.pod != "" {
				run(t, pod, strings.Fields(test.pod)...)
			}
			if test.host != "" {
				run(t, l.host, strings.Fields(strings.ReplaceAll(test.host, "VETH", veth))...)
			}
			_, err := l.call("CHECK", "a", pod.Path, l.with("prevResult", result))
			want := strings.NewReplacer("POD", pod.Path, "VETH", veth).Replace(test.want)
			if err == nil || err.Error() != want {
				t.Errorf("CHECK: %v, want: %s", err, want)
			}
		})
	}
}

func TestFlushedMasqueradeIsRepaired(t *testing.T) {
	eachBackend(t, func(t *testing.T, backend string) {
		for _, command := range []string{"STATUS", "GC", "CHECK"} {
			t.Run(command, func(t *testing.T) {
				l := newLab(t, "10.88.0.0/16")
				l.conf = l.with("ipMasqBackend", backend)
				outside := withOutside(t, l)
				pod := netnstest.New(t)
				result := l.add("a", pod, l.conf)
				serve(t, outside, ":82")
				wantSeen(t, "pod to outside", pod, "192.168.50.2:82", "192.168.50.1")
				if backend == "nftables" {
					run(t, l.host, "nft", "flush", "ruleset")
				} else {
					run(t, l.host, "iptables", "-t", "nat", "-F")
				}
				conf := l.with("prevResult", result)
				conf["cni.dev/valid-attachments"] = []map[string]any{{"containerID": "a", "ifname": "eth0"}}
				l.must(command, "a", pod.Path, conf)
				wantSeen(t, "pod to outside", pod, "192.168.50.2:82", "192.168.50.1")
			})
		}
	})
}

func TestMasqueradeGoesWithItsField(t *testing.T) {
	eachBackend(t, func(t *testing.T, backend string) {
		l := newLab(t, "10.88.0.0/16")
		l.conf = l.with("ipMasqBackend", backend)
		outside := withOutside(t, l)
		run(t, outside, "ip", "route", "add", "10.88.0.0/16", "via", "192.168.50.1")
		serve(t, outside, ":82")
		pod := netnstest.New(t)
		l.add("a", pod, l.conf)
		wantSeen(t, "pod to outside", pod, "192.168.50.2:82", "192.168.50.1")
		l.conf = l.with("ipMasq", false)
		l.add("a", pod, l.conf)
		wantSeen(t, "pod to outside without ipMasq", pod, "192.168.50.2:82", "10.88.0.2")
	})
}

func TestGCKeepsWhatIsValid(t *testing.T) {
	l := newLab(t, "10.88.0.0/16")
	a, b := netnstest.New(t), netnstest.New(t)
	l.add("a", a, l.conf)
	l.add("b", b, l.conf)
	l.must("GC", "", "", l.with("cni.dev/valid-attachments", []map[string]any{{"containerID": "b", "ifname": "eth0"}}))
	leases := l.leases()
	slices.Sort(leases)
	if got := fmt.Sprint(leases); got != "[10.88.0.3 b:eth0]" {
		t.Errorf("leases after GC: %s", got)
	}
	serve(t, b, ":80")
	wantSeen(t, "host to the valid pod", l.host, "10.88.0.3:80", "10.88.0.1")
}

func TestGCFindsVethsAndRulesWithoutRecords(t *testing.T) {
	l := newLab(t, "10.88.0.0/16")
	l.add("a", netnstest.New(t), l.with("runtimeConfig", map[string]any{
		"portMappings": []map[string]any{{"hostPort": 8080, "containerPort": 80}}}))
	if err := os.RemoveAll(l.dataDir + "/podnet"); err != nil {
		t.Fatal(err)
	}
	l.must("GC", "", "", l.with("cni.dev/valid-attachments", []any{}))
	l.wantNothing(t)
}

func TestLeasesOfAnotherBootAreFree(t *testing.T) {
	l := newLab(t, "10.88.0.0/30")
	l.plugin = plugin.New(plugin.Config{BootID: "first"})
	l.add("a", netnstest.New(t), l.conf)
	_, err := l.call("ADD", "b", netnstest.New(t).Path, l.conf)
	const want = "no free address in 10.88.0.1-10.88.0.2: remove pods or add a range to ipam.ranges"
	if cniErr, ok := err.(*types.Error); !ok || cniErr.Msg != want || cniErr.Code != types.ErrTryAgainLater {
		t.Fatalf("ADD with all addresses leased: %#v", err)
	}
	l.host = netnstest.New(t) // the reboot
	l.plugin = plugin.New(plugin.Config{BootID: "second"})
	if got := l.add("b", netnstest.New(t), l.conf).IPs[0].Address.IP.String(); got != "10.88.0.2" {
		t.Errorf("address after the reboot: %s", got)
	}
	// The runtime still cleans up the sandbox of before.
	l.must("DEL", "a", "", l.conf)
	leases := l.leases()
	slices.Sort(leases)
	if got := fmt.Sprint(leases); got != "[10.88.0.2 b:eth0]" {
		t.Errorf("leases: %s", got)
	}
}

func TestManyAddsAtOnceAreAllDifferentAndComplete(t *testing.T) {
	const processes, goroutines = 10, 90
	binary := buildPlugin(t, "")
	l := newLab(t, "10.88.0.0/16", "fd00:88::/64")
	pods := make([]*netnstest.NS, processes+goroutines)
	for i := range pods {
		pods[i] = netnstest.New(t)
	}
	var all sync.WaitGroup
	for i, pod := range pods {
		all.Go(func() {
			var err error
			if i < processes {
				_, err = l.exec(binary, "ADD", containerID(i), pod.Path, l.conf)
			} else {
				_, err = l.call("ADD", containerID(i), pod.Path, l.conf)
			}
			if err != nil {
				t.Errorf("ADD %d: %v", i, err)
			}
		})
	}
	all.Wait()
	addresses := map[string]bool{}
	for _, pod := range pods {
		for _, field := range strings.Fields(run(t, pod, "ip", "-o", "addr", "show", "dev", "eth0", "scope", "global")) {
			if strings.HasPrefix(field, "10.88.") && strings.HasSuffix(field, "/16") || strings.HasPrefix(field, "fd00:") {
				addresses[field] = true
			}
		}
	}
	if len(addresses) != 2*len(pods) {
		t.Errorf("%d different addresses for %d pods", len(addresses), len(pods))
	}
	for i, pod := range pods {
		all.Go(func() { l.must("DEL", containerID(i), pod.Path, l.conf) })
	}
	all.Wait()
	l.wantNothing(t)
}

func TestCallsLeakNeitherThreadsNorFiles(t *testing.T) {
	l := newLab(t, "10.88.0.0/16")
	pod := netnstest.New(t)
	count := func(dir string) int {
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	cycle := func() {
		l.add("a", pod, l.conf)
		l.must("DEL", "a", pod.Path, l.conf)
	}
	// Deletions go on in the kernel for a while, each with its thread and socket.
	settle := func(dir string, limit int) int {
		deadline := time.Now().Add(5 * time.Second)
		for count(dir) > limit && time.Now().Before(deadline) {
			time.Sleep(10 * time.Millisecond)
		}
		return count(dir)
	}
	files := count("/proc/self/fd")
	for range 20 {
		cycle()
	}
	threads := count("/proc/self/task")
	for range 60 {
		cycle()
	}
	// The pool of threads may vary a little with what overlaps.
	const slack = 10
	if now := settle("/proc/self/task", threads+slack); now > threads+slack {
		t.Errorf("threads grew from %d to %d", threads, now)
	}
	if now := settle("/proc/self/fd", files); now > files {
		t.Errorf("open files grew from %d to %d", files, now)
	}
}

func TestTheCommandSpeaksTheProtocol(t *testing.T) {
	binary := buildPlugin(t, "")
	l := newLab(t, "10.88.0.0/16")
	pod := netnstest.New(t)
	if out, err := l.exec(binary, "ADD", "a", pod.Path, l.conf); err != nil || !json.Valid(out) {
		t.Errorf("ADD: %v: %s", err, out)
	}
	if out, err := l.exec(binary, "DEL", "a", pod.Path, l.conf); err != nil || len(out) > 0 {
		t.Errorf("DEL: %v: %s", err, out)
	}
	out, err := l.exec(binary, "VERSION", "", "", nil)
	if want := `{"cniVersion":"1.1.0","supportedVersions":["0.3.1","0.4.0","1.0.0","1.1.0"]}`; err != nil || strings.TrimSpace(string(out)) != want {
		t.Errorf("VERSION: %v: %s", err, out)
	}
	out, err = l.exec(binary, "ADD", "a", "/does/not/exist", l.conf)
	if want := `{"code":8,"msg":"unusable network namespace: open /does/not/exist: no such file or directory"}`; err == nil || string(out) != want {
		t.Errorf("ADD with a bad namespace: %v: %s", err, out)
	}
}
