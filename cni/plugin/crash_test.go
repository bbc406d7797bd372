package plugin_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/berth-io/berth/cni/internal/netnstest"
)

// buildPlugin compiles cmd/berth-cni.
func buildPlugin(t testing.TB, tags string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "berth-cni")
	cmd := exec.Command("go", "build", "-tags", tags, "-o", path, "github.com/berth-io/berth/cmd/berth-cni")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build berth-cni: %v: %s", err, out)
	}
	return path
}

// exec runs the plugin as a process on the host.
func (l *lab) exec(binary, command, id, netns string, conf map[string]any, extraEnv ...string) (out []byte, err error) {
	stdin, err := json.Marshal(conf)
	if err != nil {
		return nil, err
	}
	err = l.host.Do(func() error {
		cmd := exec.Command(binary)
		cmd.Env = append(environ(command, id, netns), "PATH="+os.Getenv("PATH"))
		cmd.Env = append(cmd.Env, extraEnv...)
		cmd.Stdin = bytes.NewReader(stdin)
		var err error
		out, err = cmd.Output()
		return err
	})
	return out, err
}

// killed tells whether err is that of a process that died by SIGKILL.
func killed(err error) bool {
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return false
	}
	status, ok := exit.Sys().(syscall.WaitStatus)
	return ok && status.Signal() == syscall.SIGKILL
}

// wantNothing asserts that nothing of sandbox "a" is left on the host.
func (l *lab) wantNothing(t *testing.T) {
	t.Helper()
	if leases := l.leases(); len(leases) > 0 {
		t.Errorf("leases left: %v", leases)
	}
	if links := run(t, l.host, "ip", "-o", "link"); strings.Contains(links, "veth") || strings.Contains(links, "berth-cni podnet a") {
		t.Errorf("links left:\n%s", links)
	}
	wantNoRules(t, l, "a")
}

// failpoints returns the failpoints that command passes, as name:n.
func (l *lab) failpoints(t *testing.T, binary, command string, pod *netnstest.NS, conf map[string]any) []string {
	t.Helper()
	trace := filepath.Join(t.TempDir(), "trace")
	if out, err := l.exec(binary, command, "a", pod.Path, conf, "BERTH_FAILPOINT_TRACE="+trace); err != nil {
		t.Fatalf("%s: %v: %s", command, err, out)
	}
	data, err := os.ReadFile(trace)
	if err != nil {
		t.Fatalf("no failpoint was passed: %v", err)
	}
	var names []string
	seen := map[string]int{}
	for _, name := range strings.Fields(string(data)) {
		seen[name]++
		names = append(names, fmt.Sprintf("%s:%d", name, seen[name]))
	}
	return names
}

func TestACrashAtAnyStepLeavesNothingThatDelGCOrARetryDoesNotFind(t *testing.T) {
	if testing.Short() {
		t.Skip("starts many processes")
	}
	binary := buildPlugin(t, "failpoints")
	eachBackend(t, func(t *testing.T, backend string) {
		newConf := func(l *lab) map[string]any {
			l.conf = l.with("portmapBackend", backend)
			l.conf = l.with("ipMasqBackend", backend)
			return l.with("runtimeConfig", map[string]any{"portMappings": []map[string]any{
				{"hostPort": 8080, "containerPort": 80}}})
		}
		probe := newLab(t, "10.88.0.0/16", "fd00:88::/64")
		conf := newConf(probe)
		pod := netnstest.New(t)
		adds := probe.failpoints(t, binary, "ADD", pod, conf)
		dels := probe.failpoints(t, binary, "DEL", pod, conf)
		for _, want := range []string{"cni/bridge-made:1", "cni/bridge-addressed:1", "cni/masq-made:1", "cni/attachment-recorded:1",
			"cni/lease-written:2", "cni/veth-made:1", "cni/pod-configured:1", "cni/ports-mapped:1"} {
			if !slices.Contains(adds, want) {
				t.Fatalf("ADD passes %v, without %s", adds, want)
			}
		}
		recoveries := map[string]func(t *testing.T, l *lab, pod *netnstest.NS, conf map[string]any){
			"DEL": func(t *testing.T, l *lab, pod *netnstest.NS, conf map[string]any) { l.must("DEL", "a", pod.Path, conf) },
			"DEL without the pod": func(t *testing.T, l *lab, pod *netnstest.NS, conf map[string]any) {
				pod.Close()
				l.must("DEL", "a", "", l.conf)
			},
			"GC": func(t *testing.T, l *lab, pod *netnstest.NS, conf map[string]any) {
				l.must("GC", "", "", l.with("cni.dev/valid-attachments", []any{}))
			},
			"another ADD, and DEL": retryAndDelete,
		}
		for _, point := range adds {
			for name, recover := range recoveries {
				t.Run("ADD dies at "+point+", then "+name, func(t *testing.T) {
					l := newLab(t, "10.88.0.0/16", "fd00:88::/64")
					conf := newConf(l)
					pod := netnstest.New(t)
					if _, err := l.exec(binary, "ADD", "a", pod.Path, conf, "BERTH_FAILPOINT="+point); !killed(err) {
						t.Fatalf("not killed: %v", err)
					}
					recover(t, l, pod, conf)
					l.wantNothing(t)
				})
			}
		}
		for _, point := range dels {
			for name, recover := range recoveries {
				t.Run("DEL dies at "+point+", then "+name, func(t *testing.T) {
					l := newLab(t, "10.88.0.0/16", "fd00:88::/64")
					conf := newConf(l)
					pod := netnstest.New(t)
					l.add("a", pod, conf)
					if _, err := l.exec(binary, "DEL", "a", pod.Path, conf, "BERTH_FAILPOINT="+point); !killed(err) {
						t.Fatalf("not killed: %v", err)
					}
					recover(t, l, pod, conf)
					l.wantNothing(t)
				})
			}
		}
	})
}

// retryAndDelete completes a cut ADD, shows that it is complete, and removes it.
func retryAndDelete(t *testing.T, l *lab, pod *netnstest.NS, conf map[string]any) {
	result := l.add("a", pod, conf)
	checked := map[string]any{}
	for k, v := range conf {
		checked[k] = v
	}
	checked["prevResult"] = result
	l.must("CHECK", "a", pod.Path, checked)
	serve(t, pod, ":80")
	wantSeen(t, "host to pod", l.host, "10.88.0.2:80", "10.88.0.1")
	l.must("DEL", "a", pod.Path, conf)
}

func TestAFailedAddLeavesNothing(t *testing.T) {
	l := newLab(t, "10.88.0.0/16")
	pod := netnstest.New(t)
	run(t, pod, "ip", "link", "add", "eth0", "type", "bridge")
	_, err := l.call("ADD", "a", pod.Path, l.conf)
	var cniErr *types.Error
	if !errors.As(err, &cniErr) || !strings.Contains(cniErr.Msg, "interface eth0 exists in") {
		t.Fatalf("ADD into a pod with an eth0: %v", err)
	}
	l.wantNothing(t)
}
