package plugin_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	types100 "github.com/containernetworking/cni/pkg/types/100"

	"github.com/berth-io/berth/cni/internal/netnstest"
	"github.com/berth-io/berth/cni/plugin"
)

// lab is a host in a network namespace of its own, with a plugin.
type lab struct {
	t       testing.TB
	host    *netnstest.NS
	dataDir string
	plugin  *plugin.Plugin
	conf    map[string]any
}

func newLab(t testing.TB, subnets ...string) *lab {
	t.Helper()
	l := &lab{t: t, host: netnstest.New(t), dataDir: t.TempDir(), plugin: plugin.New(plugin.Config{})}
	routes := []map[string]any{}
	for _, s := range subnets {
		dst := "0.0.0.0/0"
		if filepath.Base(s) != s && s[0] == 'f' {
			dst = "::/0"
		}
		routes = append(routes, map[string]any{"dst": dst})
	}
	l.conf = map[string]any{
		"cniVersion": "1.1.0", "name": "podnet", "type": "berth-cni",
		"isGateway": true, "ipMasq": true, "hairpinMode": true,
		"ipam": map[string]any{"subnets": subnets, "routes": routes, "dataDir": l.dataDir},
	}
	return l
}

// with returns a copy of the configuration with a field set.
func (l *lab) with(key string, value any) map[string]any {
	conf := map[string]any{}
	for k, v := range l.conf {
		conf[k] = v
	}
	conf[key] = value
	return conf
}

func environ(command, id, netns string) []string {
	return []string{"CNI_COMMAND=" + command, "CNI_CONTAINERID=" + id, "CNI_NETNS=" + netns, "CNI_IFNAME=eth0",
		"CNI_PATH=/opt/cni/bin", "CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=pod-" + id}
}

// call runs one command on the host.
func (l *lab) call(command, id, netns string, conf map[string]any) (out []byte, err error) {
	stdin, err := json.Marshal(conf)
	if err != nil {
		return nil, err
	}
	err = l.host.Do(func() (err error) {
		out, err = l.plugin.Handle(context.Background(), environ(command, id, netns), stdin)
		return err
	})
	return out, err
}

// add attaches pod and returns the result.
func (l *lab) add(id string, pod *netnstest.NS, conf map[string]any) *types100.Result {
	l.t.Helper()
	out, err := l.call("ADD", id, pod.Path, conf)
	if err != nil {
		l.t.Fatalf("ADD %s: %v", id, err)
	}
	var result types100.Result
	if err := json.Unmarshal(out, &result); err != nil {
		l.t.Fatalf("result of ADD %s: %v: %s", id, err, out)
	}
	return &result
}

func (l *lab) must(command, id, netns string, conf map[string]any) {
	l.t.Helper()
	if _, err := l.call(command, id, netns, conf); err != nil {
		l.t.Fatalf("%s %s: %v", command, id, err)
	}
}

// leases lists what the data directory holds but markers and the lock.
func (l *lab) leases() []string {
	l.t.Helper()
	var out []string
	err := filepath.WalkDir(l.dataDir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		name := filepath.Base(path)
		if name != "lock" && name != "last-reserved-0" && name != "last-reserved-1" {
			out = append(out, name)
		}
		return nil
	})
	if err != nil {
		l.t.Fatal(err)
	}
	return out
}

func containerID(i int) string { return fmt.Sprintf("%064x", i) }
