package nri

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/nri/pkg/api"
	"github.com/google/go-cmp/cmp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-io/berth/cri/spec"
	"github.com/berth-io/berth/cri/store"
)

func TestLimitsAreTheSameThereAndBack(t *testing.T) {
	want := &runtimeapi.LinuxContainerResources{
		CpuPeriod: 100000, CpuQuota: -1, CpuShares: 512, MemoryLimitInBytes: 64 << 20, MemorySwapLimitInBytes: 128 << 20,
		CpusetCpus: "0-1", CpusetMems: "0", Unified: map[string]string{"memory.high": "max"},
		HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB", Limit: 4 << 20}},
	}
	if got := toCRI(fromCRI(want)); !proto.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if got := toCRI(fromCRI(&runtimeapi.LinuxContainerResources{})); !proto.Equal(got, &runtimeapi.LinuxContainerResources{}) {
		t.Errorf("from nothing: %v", got)
	}
	if fromCRI(nil) != nil || toCRI(nil) != nil {
		t.Error("no limits have become some")
	}
}

func TestAnAdjustmentChangesWhatItNamesAndNothingElse(t *testing.T) {
	base := func() *specs.Spec {
		return &specs.Spec{
			Process:     &specs.Process{Args: []string{"run"}, Env: []string{"A=1", "B=2"}},
			Mounts:      []specs.Mount{{Destination: "/proc", Type: "proc", Source: "proc"}, {Destination: "/data", Source: "/old", Type: "bind"}},
			Annotations: map[string]string{"keep": "1", "drop": "1"},
			Hooks:       &specs.Hooks{},
			Linux: &specs.Linux{
				CgroupsPath: "/pod/c",
				Namespaces:  []specs.LinuxNamespace{{Type: specs.MountNamespace}, {Type: specs.NetworkNamespace, Path: "/ns/net"}},
				Devices:     []specs.LinuxDevice{{Path: "/dev/old", Type: "c", Major: 1, Minor: 3}},
				Resources:   &specs.LinuxResources{CPU: &specs.LinuxCPU{}, Memory: &specs.LinuxMemory{}},
			},
		}
	}
	for name, c := range map[string]struct {
		adjust func(*api.ContainerAdjustment)
		want   func(*specs.Spec)
	}{
		"nothing": {func(*api.ContainerAdjustment) {}, func(*specs.Spec) {}},
		"a variable of the same name": {
			func(a *api.ContainerAdjustment) { a.AddEnv("B", "3"); a.AddEnv("C", "4") },
			func(s *specs.Spec) { s.Process.Env = []string{"A=1", "B=3", "C=4"} },
		},
		"arguments": {
			func(a *api.ContainerAdjustment) { a.SetArgs([]string{"other"}) },
			func(s *specs.Spec) { s.Process.Args = []string{"other"} },
		},
		"a mount in the place of another": {
			func(a *api.ContainerAdjustment) {
				a.AddMount(&api.Mount{Destination: "/data", Source: "/new", Type: "bind"})
			},
			func(s *specs.Spec) {
				s.Mounts[0], s.Mounts[1] = specs.Mount{Destination: "/data", Source: "/new", Type: "bind"}, s.Mounts[0]
			},
		},
		"annotations": {
			func(a *api.ContainerAdjustment) { a.RemoveAnnotation("drop"); a.AddAnnotation("new", "2") },
			func(s *specs.Spec) { s.Annotations = map[string]string{"keep": "1", "new": "2"} },
		},
		"a namespace and the cgroup": {
			func(a *api.ContainerAdjustment) {
				a.AddOrReplaceNamespace(&api.LinuxNamespace{Type: "network", Path: "/ns/other"})
				a.SetLinuxCgroupsPath("/elsewhere/c")
			},
			func(s *specs.Spec) { s.Linux.Namespaces[1].Path, s.Linux.CgroupsPath = "/ns/other", "/elsewhere/c" },
		},
		"a device that goes": {
			func(a *api.ContainerAdjustment) { a.RemoveDevice("/dev/old") },
			func(s *specs.Spec) { s.Linux.Devices = nil },
		},
		"limits that this host has no controller for": {
			func(a *api.ContainerAdjustment) {
				a.SetLinuxMemoryLimit(64 << 20)
				a.AddLinuxHugepageLimit("2MB", 1)
				a.AddLinuxUnified("memory.high", "1")
			},
			func(s *specs.Spec) { limit := int64(64 << 20); s.Linux.Resources.Memory.Limit = &limit },
		},
	} {
		t.Run(name, func(t *testing.T) {
			got, want, a := base(), base(), &api.ContainerAdjustment{}
			c.adjust(a)
			c.want(want)
			if err := New(Config{}).adjust(got, a); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(encode(t, want), encode(t, got)); diff != "" {
				t.Errorf("want -, got +:\n%s", diff)
			}
		})
	}
}

func encode(t *testing.T, s *specs.Spec) string {
	t.Helper()
	data, err := json.MarshalIndent(s, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestAdjustmentsThatCannotBeAreRefused(t *testing.T) {
	for want, adjust := range map[string]func(*api.ContainerAdjustment){
		"CDI is not supported":       func(a *api.ContainerAdjustment) { a.AddCDIDevice(&api.CDIDevice{Name: "a.b/c=d"}) },
		"classes are not configured": func(a *api.ContainerAdjustment) { a.SetLinuxBlockIOClass("gold") },
		"failed to adjust mounts": func(a *api.ContainerAdjustment) {
			a.AddMount(&api.Mount{Destination: "/x", Source: "/nowhere/at/all", Type: "bind", Options: []string{"rshared"}})
		},
	} {
		a := &api.ContainerAdjustment{}
		adjust(a)
		if err := New(Config{}).adjust(&specs.Spec{}, a); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %s", err, want)
		}
	}
}

// nothing is a runtime without pods.
type nothing struct{ err error }

func (nothing) Sandboxes() []store.Sandbox    { return nil }
func (nothing) Containers() []store.Container { return nil }
func (n nothing) Evict(context.Context, string, string) error {
	return n.err
}
func (n nothing) ChangeLimits(context.Context, string, *runtimeapi.LinuxContainerResources) error {
	return n.err
}

func TestASocketThatAnotherServesIsLeftAlone(t *testing.T) {
	dir := t.TempDir()
	config := Config{
		Socket: filepath.Join(dir, "nri.sock"), PluginDir: filepath.Join(dir, "none"), ConfigDir: filepath.Join(dir, "none"),
		RegistrationTimeout: time.Second, RequestTimeout: time.Second, Host: spec.Host{},
	}
	first, second := New(config), New(config)
	if err := first.Open(nothing{}); err != nil {
		t.Fatal(err)
	}
	if err := second.Open(nothing{}); !errors.Is(err, ErrSocketTaken) {
		t.Errorf("got %v", err)
	}
	first.Close()
	if _, err := os.Stat(config.Socket); !os.IsNotExist(err) {
		t.Errorf("the socket stays: %v", err)
	}
	if err := second.Open(nothing{}); err != nil {
		t.Errorf("once it is free: %v", err)
	}
	second.Close()
}

func TestWhatCannotBeUpdatedIsToldUnlessItDoesNotMatter(t *testing.T) {
	n := New(Config{})
	n.state = nothing{errors.New("no")}
	matters, not := &api.ContainerUpdate{}, &api.ContainerUpdate{}
	matters.SetContainerId("a")
	not.SetContainerId("b")
	not.SetIgnoreFailure()
	failed, err := n.update(t.Context(), []*api.ContainerUpdate{matters, not})
	if err != nil || len(failed) != 1 || failed[0].GetContainerId() != "a" {
		t.Errorf("got %v, %v", failed, err)
	}
}

func TestAnEndIsToldOnceAndOnlyOfWhatWasTold(t *testing.T) {
	n := New(Config{})
	if n.stop("a") || n.knows("a") {
		t.Error("nobody has heard of it")
	}
	n.tell("a", told{})
	if !n.stop("a") || n.stop("a") || !n.knows("a") {
		t.Error("it has not ended once")
	}
	n.forget("a")
	if n.knows("a") {
		t.Error("it is known after its removal")
	}
}
