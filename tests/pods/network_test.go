package pods

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/berth-io/berth/tests/harness"
)

func TestNetwork(t *testing.T) {
	run(t, []scenario{
		{"a pod has an address of the node's range on eth0", "address", `
spec:
  containers:
  - {name: main, image: $BOX, command: [testbox, report]}
`, func(t *testing.T, p *harness.Pod) {
			r := p.Report("main")
			pod := p.WaitReady()
			ip, err := netip.ParseAddr(pod.Status.PodIP)
			if err != nil {
				t.Fatal(err)
			}
			equal(t, "in range", netip.MustParsePrefix(p.Node().Config.Network.PodCIDRs[0]).Contains(ip), true)
			contains(t, "eth0", strings.Join(r.Interfaces["eth0"], " "), ip.String()+"/")
			contains(t, "lo", strings.Join(r.Interfaces["lo"], " "), "127.0.0.1/8")
			equal(t, "interfaces", len(r.Interfaces), 2)
			equal(t, "pod IPs", len(pod.Status.PodIPs) > 0 && pod.Status.PodIPs[0].IP == pod.Status.PodIP, true)
			equal(t, "host IP", pod.Status.HostIP, harness.NodeIP)
		}},
		{"pods reach each other by their own addresses", "talk", `
spec:
  containers:
  - {name: main, image: $BOX, command: [testbox, serve, --udp, ":9001"]}
---
apiVersion: v1
kind: Pod
metadata: {name: talk-client}
spec:
  containers:
  - {name: main, image: $BOX}
`, func(t *testing.T, p *harness.Pod) {
			client := p.Node().Pod(t, "default", "talk-client")
			from := client.WaitReady().Status.PodIP
			to := p.WaitReady().Status.PodIP
			p.WaitLog("main", "serving")
			trimmed(t, "source address", client.Exec("main", "testbox", "get", "http://"+to+":8080/remote"), from)
			trimmed(t, "UDP", client.Exec("main", "testbox", "send", "--network", "udp", to+":9001", "ping"), "talk ping")
			trimmed(t, "from the node", fetch(t, p.Node().Dial, "http://"+to+":8080/"), "talk")
		}},
		{"containers of a pod share the loopback", "loopback", `
spec:
  containers:
  - {name: server, image: $BOX, command: [testbox, serve, --http, "127.0.0.1:8080", --name, near]}
  - {name: client, image: $BOX}
`, func(t *testing.T, p *harness.Pod) {
			p.WaitReady()
			p.WaitLog("server", "serving")
			trimmed(t, "answer", p.Exec("client", "testbox", "get", "http://127.0.0.1:8080/"), "near")
		}},
		{"what leaves the node has the node's address", "masquerade", `
spec:
  containers:
  - {name: main, image: $BOX}
`, func(t *testing.T, p *harness.Pod) {
			p.WaitReady()
			l, err := p.Node().ListenOutside(harness.OutsideIP + ":7777")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			go http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				host, _, _ := net.SplitHostPort(r.RemoteAddr)
				fmt.Fprint(w, host)
			}))
			trimmed(t, "source address", p.Exec("main", "testbox", "get", "http://"+harness.OutsideIP+":7777/"), harness.NodeIP)
		}},
		{"a host network pod has the node's address and interfaces", "hostnet", `
spec:
  hostNetwork: true
  containers:
  - name: main
    image: $BOX
    command: [testbox, report]
    ports: [{containerPort: 6543}]
`, func(t *testing.T, p *harness.Pod) {
			r := p.Report("main")
			pod := p.WaitReady()
			equal(t, "pod IP", pod.Status.PodIP, harness.NodeIP)
			contains(t, "eth0", strings.Join(r.Interfaces["eth0"], " "), harness.NodeIP)
			equal(t, "nameservers", nameservers(r.Resolv), nameservers(hostFile(t, "/etc/resolv.conf")))
		}},
		{"host ports lead to the pod from outside, from the node and from itself", "hostport", `
spec:
  containers:
  - name: main
    image: $BOX
    command: [testbox, serve, --http, ":8080", --udp, ":9001", --tcp, ":9000"]
    ports:
    - {containerPort: 8080, hostPort: 30080}
    - {containerPort: 9000, hostPort: 30090, hostIP: 192.0.2.10}
    - {containerPort: 9001, hostPort: 30080, protocol: UDP}
`, func(t *testing.T, p *harness.Pod) {
			p.WaitReady()
			p.WaitLog("main", "serving")
			n := p.Node()
			at := "http://" + harness.NodeIP + ":30080/"
			trimmed(t, "from outside", fetch(t, n.DialOutside, at), "hostport")
			trimmed(t, "the source address is kept", fetch(t, n.DialOutside, at+"remote"), harness.OutsideIP)
			trimmed(t, "from the node", fetch(t, n.Dial, at), "hostport")
			trimmed(t, "from itself", p.Exec("main", "testbox", "get", at), "hostport")
			trimmed(t, "UDP from outside", sendLine(t, n.DialOutside, "udp", harness.NodeIP+":30080", "x"), "hostport x")
			trimmed(t, "on one address", sendLine(t, n.DialOutside, "tcp", harness.NodeIP+":30090", "y"), "hostport y")
			p.Delete()
			ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
			defer cancel()
			if c, err := n.DialOutside(ctx, "tcp", harness.NodeIP+":30080"); err == nil {
				c.Close()
				t.Error("the host port is open after the pod is gone")
			}
		}},
		{"a pod keeps its address when a container restarts", "keepaddress", `
spec:
  containers:
  - {name: main, image: $BOX, command: [testbox, exit, --after, 3s, --code, "1"]}
`, func(t *testing.T, p *harness.Pod) {
			ip := p.WaitReady().Status.PodIP
			pod := p.Wait("a restart", func(pod corev1.Pod) string {
				if s, _ := harness.Container(pod, "main"); s.RestartCount == 0 {
					return "not yet"
				}
				return ""
			})
			equal(t, "address", pod.Status.PodIP, ip)
		}},
	})
}

type dial = func(ctx context.Context, network, address string) (net.Conn, error)

func fetch(t *testing.T, d dial, url string) string {
	t.Helper()
	c := http.Client{Timeout: time.Minute, Transport: &http.Transport{DialContext: d, DisableKeepAlives: true}}
	resp, err := c.Get(url)
	if err != nil {
		t.Errorf("%v", err)
		return ""
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Errorf("GET %s: %v", url, err)
	}
	return string(body)
}

func sendLine(t *testing.T, d dial, network, address, line string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	c, err := d(ctx, network, address)
	if err != nil {
		t.Errorf("%v", err)
		return ""
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(time.Minute))
	fmt.Fprintln(c, line)
	answer, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		t.Errorf("%s %s: %v", network, address, err)
	}
	return answer
}
