package server

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-io/berth/cri/store"
)

// fakePlugins notes what it is told and refuses what it is told to.
type fakePlugins struct {
	noPlugins
	mu     sync.Mutex
	events []string
	refuse string
}

func (f *fakePlugins) note(event string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.events = append(f.events, event)
	if event == f.refuse {
		return errors.New("refused by a plugin")
	}
	return nil
}

func (f *fakePlugins) told() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return strings.Join(f.events, " ")
}

func (f *fakePlugins) RunPod(context.Context, store.Sandbox) error { return f.note("run-pod") }
func (f *fakePlugins) PodStopped(context.Context, store.Sandbox)   { _ = f.note("pod-stopped") }
func (f *fakePlugins) PodRemoved(context.Context, store.Sandbox)   { _ = f.note("pod-removed") }

func (f *fakePlugins) CreateContainer(_ context.Context, _ store.Sandbox, _ store.Container, s *specs.Spec) (*runtimeapi.LinuxContainerResources, error) {
	s.Linux.CgroupsPath = "/elsewhere/c"
	return &runtimeapi.LinuxContainerResources{CpuShares: 321}, f.note("create")
}

func (f *fakePlugins) StartContainer(context.Context, store.Sandbox, store.Container) error {
	return f.note("start")
}

func (f *fakePlugins) ContainerStopped(_ context.Context, _ store.Sandbox, c store.Container) func(context.Context) {
	_ = f.note("stopped:" + string(c.State))
	return nil
}

func (f *fakePlugins) ContainerRemoved(context.Context, store.Sandbox, store.Container) func(context.Context) {
	_ = f.note("removed")
	return nil
}

func startWith(t *testing.T, w *world, p Plugins) *Server {
	s := w.start(t)
	s.plugins = p
	t.Cleanup(s.Close)
	return s
}

func TestPluginsAreToldOfALifeInItsOrder(t *testing.T) {
	w := newWorld(t)
	p := &fakePlugins{}
	s := startWith(t, w, p)
	sandbox := runSandbox(t, s, "a")
	id := createContainer(t, s, sandbox, "c")
	if c, _ := s.containers.Get(id); c.Resources.GetCpuShares() != 321 || c.Cgroup != "/elsewhere/c" {
		t.Errorf("the record has %v and cgroup %s", c.Resources, c.Cgroup)
	}
	startContainer(t, s, id)
	if shown := s.Containers(); len(shown) != 1 || shown[0].ID != id {
		t.Errorf("shown to plugins: %v", shown)
	}
	if err := s.Evict(t.Context(), id, "a test"); err != nil {
		t.Fatal(err)
	}
	if st := containerState(t, s, id); st.ExitCode != 137 {
		t.Errorf("evicted with exit code %d", st.ExitCode)
	}
	removeSandbox(t, s, sandbox)
	if shown := s.Containers(); len(shown) != 0 {
		t.Errorf("shown to plugins: %v", shown)
	}
	if want := "run-pod create start stopped:exited pod-stopped removed pod-removed"; p.told() != want {
		t.Errorf("told %s, want %s", p.told(), want)
	}
	w.checkEmpty(t)
}

func TestWhatAPluginRefusesIsUndone(t *testing.T) {
	for refuse, want := range map[string]string{
		"run-pod": "run-pod pod-stopped pod-removed",
		"create":  "run-pod create removed pod-stopped pod-removed",
		"start":   "run-pod create start stopped:exited pod-stopped removed pod-removed",
	} {
		t.Run(refuse, func(t *testing.T) {
			w := newWorld(t)
			p := &fakePlugins{refuse: refuse}
			s := startWith(t, w, p)
			resp, err := s.RunPodSandbox(t.Context(), sandboxRequest("a"))
			if refuse != "run-pod" {
				if err != nil {
					t.Fatal(err)
				}
				made, createErr := s.CreateContainer(t.Context(), containerRequest(resp.PodSandboxId, "c"))
				err = createErr
				if refuse == "start" {
					_, err = s.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: made.GetContainerId()})
				}
			}
			if err == nil || !strings.Contains(err.Error(), "refused by a plugin") {
				t.Errorf("got %v", err)
			}
			if refuse != "run-pod" {
				removeSandbox(t, s, resp.PodSandboxId)
			}
			if p.told() != want {
				t.Errorf("told %s, want %s", p.told(), want)
			}
			w.checkEmpty(t)
		})
	}
}

func TestLimitsThatCannotBeWrittenStay(t *testing.T) {
	w := newWorld(t)
	s := startWith(t, w, noPlugins{})
	sandbox := runSandbox(t, s, "a")
	id := createContainer(t, s, sandbox, "c")
	startContainer(t, s, id)
	calls := filepath.Join(w.dir, "calls")
	script := "#!/bin/sh\nif [ \"$3\" = update ]; then cat >>" + calls + "; echo >>" + calls + "; echo nope >&2; exit 1; fi\n"
	if err := os.WriteFile(filepath.Join(w.dir, "runtime"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	_, err := s.UpdateContainerResources(t.Context(), &runtimeapi.UpdateContainerResourcesRequest{
		ContainerId: id, Linux: &runtimeapi.LinuxContainerResources{CpuShares: 500},
	})
	if err == nil || !strings.Contains(err.Error(), "nope") {
		t.Errorf("got %v", err)
	}
	if got := containerState(t, s, id).GetResources().GetLinux().GetCpuShares(); got != 0 {
		t.Errorf("the status has %d shares", got)
	}
	written, err := os.ReadFile(calls)
	if lines := strings.Fields(string(written)); err != nil || len(lines) != 2 || !strings.Contains(lines[0], "500") || strings.Contains(lines[1], "500") {
		t.Errorf("the runtime was told %q, %v", written, err)
	}
	removeSandbox(t, s, sandbox)
	w.checkEmpty(t)
}

func TestARuntimeThatHangsOverAnEndedContainerHoldsUpNoRestart(t *testing.T) {
	w := newWorld(t)
	s := w.start(t)
	hung, other := runSandbox(t, s, "hung"), runSandbox(t, s, "other")
	ended := createContainer(t, s, hung, "c")
	startContainer(t, s, ended)
	sh := w.shims.of(t, s, hung)
	s.Close()
	sh.hang = make(chan struct{})
	sh.exit(ended, 4) // nobody listens
	s = w.start(t)    // returns, though nothing can be deleted
	t.Cleanup(s.Close)
	if st := containerState(t, s, ended); st.ExitCode != 4 || st.State != runtimeapi.ContainerState_CONTAINER_EXITED {
		t.Errorf("the ended container: %v", st)
	}
	startContainer(t, s, createContainer(t, s, other, "c"))
	close(sh.hang)
	removeSandbox(t, s, hung)
	removeSandbox(t, s, other)
	w.checkEmpty(t)
}

func TestLimitsOfAnEndedContainerAreNotChanged(t *testing.T) {
	w := newWorld(t)
	s := startWith(t, w, noPlugins{})
	sandbox := runSandbox(t, s, "a")
	id := createContainer(t, s, sandbox, "c")
	startContainer(t, s, id)
	if err := s.Evict(t.Context(), id, "a test"); err != nil {
		t.Fatal(err)
	}
	err := s.ChangeLimits(t.Context(), id, &runtimeapi.LinuxContainerResources{CpuShares: 500})
	if status.Code(err) != codes.FailedPrecondition {
		t.Errorf("got %v", err)
	}
	if err := s.ChangeLimits(t.Context(), "nobody", nil); status.Code(err) != codes.NotFound {
		t.Errorf("got %v", err)
	}
	removeSandbox(t, s, sandbox)
	w.checkEmpty(t)
}
