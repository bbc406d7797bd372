// Command demo is a tour of a Berth node on a terminal: a redis pod with an
// init container, a ConfigMap and probes; a container that dies; a daemon that
// is killed; the pod's timeline; and a clean-up that leaves nothing behind.
// Everything happens in a network namespace of its own, with images made on
// the spot. It exits 0 only if every step was seen to work.
package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/berth-io/berth/tests/harness"
)

const redisImage = harness.Registry + "/redis:1"

// manifest is shown to the reader, and is what runs.
const manifest = `apiVersion: v1
kind: ConfigMap
metadata: {name: redis-config}
data:
  redis.conf: |
    dir /data
    appendonly yes
    save ""
    protected-mode no
---
apiVersion: v1
kind: Pod
metadata: {name: shop, labels: {app: shop}}
spec:
  terminationGracePeriodSeconds: 5
  initContainers:
  - name: seed                       # writes redis' journal before redis starts
    image: registry.test/busybox:1
    command: [sh, -c]
    args:
    - printf '*3\r\n$3\r\nSET\r\n$8\r\ngreeting\r\n$17\r\nhello from a file\r\n' > /data/appendonly.aof;
      chmod 666 /data/appendonly.aof
    volumeMounts: [{name: data, mountPath: /data}]
  containers:
  - name: redis
    image: registry.test/redis:1
    command: [redis-server, /etc/redis/redis.conf]
    ports: [{containerPort: 6379}]
    readinessProbe: {tcpSocket: {port: 6379}, periodSeconds: 1}
    livenessProbe: {exec: {command: [redis-cli, ping]}, periodSeconds: 5}
    resources: {requests: {cpu: 50m, memory: 32Mi}, limits: {memory: 128Mi}}
    volumeMounts:
    - {name: data, mountPath: /data}
    - {name: config, mountPath: /etc/redis}
  - name: web
    image: registry.test/busybox:1
    command: [sh, -c, "echo It works > /tmp/index.html && exec httpd -f -p 8080 -h /tmp"]
    readinessProbe: {httpGet: {path: /index.html, port: 8080}, periodSeconds: 1}
  volumes:
  - {name: data, emptyDir: {}}
  - {name: config, configMap: {name: redis-config}}
`

func main() { os.Exit(harness.Main("demo", tour)) }

// step prints a heading; the demo is read by people.
func step(format string, args ...any) {
	fmt.Printf("\n\033[1m== %s\033[0m\n\n", fmt.Sprintf(format, args...))
}

// run shows a command and what it prints.
func run(n *harness.Node, args ...string) {
	fmt.Printf("$ berth %s\n%s", strings.Join(args, " "), n.MustCLI(args...))
}

func tour(t harness.TB) {
	step("A node in a network namespace of its own")
	n := harness.NewNode(t, harness.Options{MoreImages: func(n *harness.Node) error {
		redis, err := n.Builder().Redis()
		if err != nil {
			return err
		}
		return n.Registry.Push("redis:1", redis)
	}})
	n.Start()
	fmt.Printf("the daemon is in control, pid %d\n", n.Pid())
	run(n, "image", "pull", "-q", redisImage)
	run(n, "image", "pull", "-q", harness.Busybox)

	step("A manifest: two containers, an init container, a ConfigMap, probes")
	fmt.Print(manifest)
	start := time.Now()
	shop := n.Apply(t, "shop", manifest)
	pod := shop.WaitReady()
	fmt.Printf("\nReady, %d ms after the file was written\n\n", time.Since(start).Milliseconds())
	run(n, "get", "pods", "-o", "wide")
	address := pod.Status.PodIP + ":6379"
	mustSay(t, n, address, "hello from a file")

	step("A container dies")
	before := containerOf(t, n, "redis-server")
	fmt.Printf("$ kill -9 %d    # redis-server\n", before.Pid)
	if err := syscall.Kill(before.Pid, syscall.SIGKILL); err != nil {
		t.Fatalf("kill redis: %v", err)
	}
	shop.Wait("redis restarted", func(p corev1.Pod) string {
		if c, ok := harness.Container(p, "redis"); !ok || c.RestartCount != 1 || !c.Ready {
			return "not restarted and ready yet"
		}
		return ""
	})
	run(n, "get", "pods")
	run(n, "get", "events")
	mustSay(t, n, address, "hello from a file")

	step("The daemon dies, the pods do not notice")
	containers := n.Containers()
	fmt.Printf("$ kill -9 %d    # berth node\n", n.Pid())
	n.Kill()
	mustSay(t, n, address, "hello from a file")
	n.Launch()
	back := time.Now()
	n.WaitReady()
	fmt.Printf("the daemon is back in control after %d ms\n", time.Since(back).Milliseconds())
	for _, c := range containers {
		if !sameProcess(n, c) {
			t.Fatalf("process %d (%s) did not survive the daemon", c.Pid, c.Args)
		}
		fmt.Printf("  still the same process: %6d %s\n", c.Pid, c.Args)
	}
	run(n, "get", "pods")

	step("Where the time went")
	run(n, "explain", "pod", "shop")

	step("Clean-up")
	fmt.Println("$ rm manifests/shop.yaml")
	shop.Delete()
	n.Stop()
	n.CheckNothingLeft()
	if !t.Failed() {
		fmt.Println("no process, mount, namespace, link, cgroup, address lease, rule or file is left of the pod")
	}
}

// mustSay reads the seeded key through the pod's address.
func mustSay(t harness.TB, n *harness.Node, address, want string) {
	t.Helper()
	got, err := ask(n, address)
	if err != nil || got != want {
		t.Fatalf("redis at %s: %q, %v; want %q", address, got, err, want)
	}
	fmt.Printf("\nredis at %s, GET greeting: %q\n", address, got)
}

func ask(n *harness.Node, address string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	conn, err := n.Dial(ctx, "tcp", address)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return "", err
	}
	if _, err := fmt.Fprint(conn, "GET greeting\r\n"); err != nil {
		return "", err
	}
	r := bufio.NewReader(conn)
	if _, err := r.ReadString('\n'); err != nil { // the length
		return "", err
	}
	line, err := r.ReadString('\n')
	return strings.TrimSpace(line), err
}

func containerOf(t harness.TB, n *harness.Node, program string) harness.Process {
	t.Helper()
	for _, p := range n.Containers() {
		if filepath.Base(p.Program) == program {
			return p
		}
	}
	t.Fatalf("no process runs %s: %v", program, n.Containers())
	return harness.Process{}
}

func sameProcess(n *harness.Node, want harness.Process) bool {
	for _, p := range n.Containers() {
		if p.Pid == want.Pid && p.Start == want.Start {
			return true
		}
	}
	return false
}
