package network

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"
)

// recorder is an in-process plugin that remembers its calls.
type recorder struct {
	mu     sync.Mutex
	calls  []call
	fail   map[string]error // by command
	result string
}

type call struct {
	command, id, netns string
	conf               map[string]any
}

func (r *recorder) plugin(_ context.Context, environ []string, stdin []byte) ([]byte, error) {
	c := call{}
	for _, e := range environ {
		k, v, _ := strings.Cut(e, "=")
		switch k {
		case "CNI_COMMAND":
			c.command = v
		case "CNI_CONTAINERID":
			c.id = v
		case "CNI_NETNS":
			c.netns = v
		}
	}
	if err := json.Unmarshal(stdin, &c.conf); err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.calls = append(r.calls, c)
	if err := r.fail[c.command]; err != nil {
		return nil, err
	}
	if c.command == "ADD" {
		return []byte(r.result), nil
	}
	return nil, nil
}

func (r *recorder) take() []call {
	r.mu.Lock()
	defer r.mu.Unlock()
	calls := r.calls
	r.calls = nil
	return calls
}

const (
	dualStack = `{"cniVersion":"1.1.0",
		"interfaces":[{"name":"br0"},{"name":"eth0","sandbox":"/ns"}],
		"ips":[{"address":"10.1.0.5/24","interface":1},{"address":"fd00::5/64","interface":1},{"address":"10.1.0.1/24","interface":0}]}`
	conflist = `{"cniVersion":"1.1.0","name":"pods","plugins":[{"type":"own","capabilities":{"portMappings":true}}]}`
)

func newNetwork(t *testing.T, r *recorder) (*Network, string) {
	t.Helper()
	dir := t.TempDir()
	conf := filepath.Join(dir, "net.d")
	if err := os.MkdirAll(conf, 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(conf, "10-pods.conflist"), conflist)
	n := New(Config{
		ConfDir: conf, BinDirs: []string{filepath.Join(dir, "bin")}, CacheDir: filepath.Join(dir, "cache"),
		Plugins: map[string]Plugin{"own": r.plugin},
	})
	return n, conf
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func sandbox() Sandbox {
	return Sandbox{
		ID: "abc", NetNS: "/ns", Name: "web", Namespace: "default", UID: "u1",
		PortMappings: []PortMapping{{HostPort: 8080, ContainerPort: 80, Protocol: "tcp"}, {ContainerPort: 90, Protocol: "tcp"}},
	}
}

func TestSetupCallsAnInProcessPluginAndReturnsThePodsAddressesInOrder(t *testing.T) {
	r := &recorder{result: dualStack}
	n, _ := newNetwork(t, r)
	got, err := n.Setup(context.Background(), sandbox())
	if err != nil {
		t.Fatal(err)
	}
	if len(got.IPs) != 2 || got.IPs[0].String() != "10.1.0.5" || got.IPs[1].String() != "fd00::5" {
		t.Errorf("addresses are %v", got.IPs)
	}
	calls := r.take()
	if len(calls) != 1 || calls[0].command != "ADD" || calls[0].netns != "/ns" {
		t.Fatalf("calls are %v", calls)
	}
	ports, _ := json.Marshal(calls[0].conf["runtimeConfig"])
	if want := `{"portMappings":[{"containerPort":80,"hostIP":"","hostPort":8080,"protocol":"tcp"}]}`; string(ports) != want {
		t.Errorf("runtimeConfig is %s, want %s", ports, want)
	}
}

func TestAFailedSetupIsUndone(t *testing.T) {
	r := &recorder{fail: map[string]error{"ADD": &types.Error{Code: 11, Msg: "no address left"}}}
	n, _ := newNetwork(t, r)
	_, err := n.Setup(context.Background(), sandbox())
	if err == nil || !strings.Contains(err.Error(), "attach the sandbox to network pods") || !strings.Contains(err.Error(), "no address left") {
		t.Errorf("error is %v", err)
	}
	if calls := r.take(); len(calls) != 2 || calls[1].command != "DEL" {
		t.Errorf("calls are %v", calls)
	}
}

func TestTeardownUsesTheConfigurationTheSandboxWasAttachedWith(t *testing.T) {
	r := &recorder{result: dualStack}
	n, conf := newNetwork(t, r)
	if _, err := n.Setup(context.Background(), sandbox()); err != nil {
		t.Fatal(err)
	}
	r.take()
	write(t, filepath.Join(conf, "10-pods.conflist"), strings.Replace(conflist, `"pods"`, `"other"`, 1))
	n.Reload()
	if err := n.Teardown(context.Background(), sandbox()); err != nil {
		t.Fatal(err)
	}
	var names []any
	for _, c := range r.take() {
		names = append(names, c.conf["name"])
	}
	if len(names) != 2 || names[0] != "pods" || names[1] != "other" {
		t.Errorf("DEL went to %v", names)
	}
	if err := n.Teardown(context.Background(), sandbox()); err != nil {
		t.Errorf("again: %v", err)
	}
}

func TestGCDetachesWhatIsNotLive(t *testing.T) {
	r := &recorder{result: dualStack}
	n, _ := newNetwork(t, r)
	dead, live := sandbox(), sandbox()
	dead.ID, live.ID = "dead", "live"
	for _, s := range []Sandbox{dead, live} {
		if _, err := n.Setup(context.Background(), s); err != nil {
			t.Fatal(err)
		}
	}
	r.take()
	if err := n.GC(context.Background(), []Sandbox{live}); err != nil {
		t.Fatal(err)
	}
	calls := r.take()
	if len(calls) != 2 || calls[0].command != "DEL" || calls[0].id != "dead" || calls[1].command != "GC" {
		t.Fatalf("calls are %v", calls)
	}
	valid, _ := json.Marshal(calls[1].conf["cni.dev/valid-attachments"])
	if want := `[{"containerID":"live","ifname":"eth0"}]`; string(valid) != want {
		t.Errorf("valid attachments are %s, want %s", valid, want)
	}
}

func TestStatusSaysWhatIsMissing(t *testing.T) {
	r := &recorder{}
	n, conf := newNetwork(t, r)
	if err := n.Status(context.Background()); err != nil {
		t.Errorf("with a network: %v", err)
	}
	r.fail = map[string]error{"STATUS": &types.Error{Code: 50, Msg: "no range yet"}}
	if err := n.Status(context.Background()); err == nil || !strings.Contains(err.Error(), "network pods is not ready") {
		t.Errorf("with an unready plugin: %v", err)
	}
	write(t, filepath.Join(conf, "10-pods.conflist"), "{")
	n.Reload()
	if n.Name() != "pods" {
		t.Error("a broken file took the network away")
	}
	if err := os.Remove(filepath.Join(conf, "10-pods.conflist")); err != nil {
		t.Fatal(err)
	}
	n.Reload()
	if err := n.Status(context.Background()); !errors.Is(err, ErrNoNetwork) {
		t.Errorf("without a network: %v", err)
	}
}

func TestAFileWithOnePluginIsAList(t *testing.T) {
	r := &recorder{}
	n, conf := newNetwork(t, r)
	write(t, filepath.Join(conf, "00-old.conf"), `{"cniVersion":"0.3.1","name":"old","type":"own"}`)
	if n.Reload(); n.Name() != "old" {
		t.Errorf("network is %q", n.Name())
	}
}

func TestTheDefaultIsUsedWhileTheDirectoryHasNoNetwork(t *testing.T) {
	r := &recorder{}
	n, conf := newNetwork(t, r)
	n.cfg.Default = []byte(strings.Replace(conflist, `"pods"`, `"default"`, 1))
	if n.Reload(); n.Name() != "pods" {
		t.Errorf("with a file: %s", n.Name())
	}
	if err := os.Remove(filepath.Join(conf, "10-pods.conflist")); err != nil {
		t.Fatal(err)
	}
	if n.Reload(); n.Name() != "default" {
		t.Errorf("without: %s", n.Name())
	}
}

func TestRunSeesANewConfiguration(t *testing.T) {
	r := &recorder{}
	n, conf := newNetwork(t, r)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- n.Run(ctx) }()
	write(t, filepath.Join(conf, "00-first.conflist"), strings.Replace(conflist, `"pods"`, `"first"`, 1))
	for deadline := time.Now().Add(10 * time.Second); n.Name() != "first"; {
		if time.Now().After(deadline) {
			t.Fatalf("still %s", n.Name())
		}
		time.Sleep(5 * time.Millisecond)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
