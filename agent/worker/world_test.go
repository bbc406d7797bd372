package worker_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-io/berth/agent/act"
	"github.com/berth-io/berth/agent/allocation"
	"github.com/berth-io/berth/agent/checkpoint"
	"github.com/berth-io/berth/agent/event"
	"github.com/berth-io/berth/agent/images"
	"github.com/berth-io/berth/agent/internal/fakecri"
	"github.com/berth-io/berth/agent/internal/fakehost"
	"github.com/berth-io/berth/agent/observed"
	"github.com/berth-io/berth/agent/plan"
	"github.com/berth-io/berth/agent/podspec"
	"github.com/berth-io/berth/agent/worker"
)

// world is a node with a fake runtime, in a bubble of time. What an agent has
// in memory goes with it; the runtime and the directories stay.
type world struct {
	t       *testing.T
	dir     string
	bootID  string
	fits    func(pod *v1.Pod, others []*v1.Pod) (string, bool) // nil: all do
	runtime *fakecri.Runtime
	volumes *fakehost.Volumes
	cgroups *fakehost.Cgroups
	hooks   *fakehost.Hooks
	claims  *fakehost.Claims

	// of the agent that runs
	events  *event.Recorder
	kept    *checkpoint.Store
	ledger  *allocation.Ledger
	parts   worker.Parts
	config  worker.Config
	end     context.CancelFunc
	ctx     context.Context
	running sync.WaitGroup
	mu      sync.Mutex
	workers map[string]*worker.Worker
	counted []string
}

func (w *world) count(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.counted = append(w.counted, fmt.Sprintf(format, args...))
}
func (w *world) PodBegun(pod *v1.Pod, seen time.Time) { w.count("begun %s", pod.Name) }
func (w *world) PodChanged(before, after *v1.Pod, seen time.Time) {
	if before.Status.Phase != after.Status.Phase {
		w.count("%s, seen %v", after.Status.Phase, !seen.IsZero())
	}
}
func (w *world) PodSynced(operation string, took time.Duration) {
	if operation != "sync" { // how often a worker looks is its business
		w.count("%s in %v", operation, took)
	}
}
func (w *world) ContainerStarted(pod *v1.Pod, name, code string) {
	w.count("start %s %q", name, code)
}
func (w *world) ResizeRequested(before, after *v1.Pod) {
	if !allocation.Of(before).Equal(allocation.Of(after)) {
		w.count("resize requested")
	}
}
func (w *world) PodResized(took time.Duration, success bool) { w.count("resized %v", success) }

// inWorld runs a test on a node of its own. Nothing waits for real.
func inWorld(t *testing.T, test func(w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &world{
			t: t, dir: t.TempDir(), bootID: "boot-1", runtime: fakecri.New(),
			volumes: &fakehost.Volumes{}, cgroups: &fakehost.Cgroups{}, hooks: &fakehost.Hooks{}, claims: &fakehost.Claims{},
		}
		w.runtime.HasImages("busybox")
		w.startAgent()
		defer w.stopAgent()
		test(w)
	})
}

func (w *world) startAgent() {
	w.t.Helper()
	log := slog.New(slog.DiscardHandler)
	var err error
	if w.events, err = event.Open(event.Config{Path: filepath.Join(w.dir, "events"), NodeName: "node", Keep: 1000, Log: log}); err != nil {
		w.t.Fatal(err)
	}
	if w.kept, err = checkpoint.Open(filepath.Join(w.dir, "kept")); err != nil {
		w.t.Fatal(err)
	}
	w.workers = map[string]*worker.Worker{}
	store := observed.New(observed.Config{Runtime: w.runtime, Relist: 5 * time.Minute, Log: log, Changed: func(uid string) {
		w.mu.Lock()
		found := w.workers[uid]
		w.mu.Unlock()
		if found != nil {
			found.Poke()
		}
	}})
	node := podspec.Node{
		Name: "node", HostIPs: []string{"192.0.2.1"},
		PodLogsDir: filepath.Join(w.dir, "logs"), KubeletDir: filepath.Join(w.dir, "kubelet"),
	}
	actor := act.New(act.Parts{
		Sandboxes: w.runtime, Containers: w.runtime, Images: images.New(w.runtime, w.events, images.Config{}),
		Volumes: w.volumes, Objects: fakehost.NoObjects{}, Cgroups: w.cgroups, Hooks: w.hooks, Logs: fakehost.Logs{}, Claims: w.claims, Events: w.events,
	}, act.Config{Node: node, Parallel: 2, RuntimeTimeout: 2 * time.Minute, Log: log})
	fits := w.fits
	if fits == nil {
		fits = func(*v1.Pod, []*v1.Pod) (string, bool) { return "", true }
	}
	w.ledger = allocation.NewLedger(allocation.Config{Fits: fits})
	w.parts = worker.Parts{Actor: actor, Observations: store, Events: w.events, Checkpoints: w.kept, Allocations: w.ledger}
	w.config = worker.Config{
		Backoff: plan.KubeletBackoff, HostIPs: node.HostIPs, RuntimeName: "fake", BootID: w.bootID, Counts: w, Resizes: w, Log: log,
		ProbeExec: func(ctx context.Context, id string, command []string, timeout time.Duration) ([]byte, int, error) {
			resp, err := w.runtime.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: command})
			return resp.GetStdout(), int(resp.GetExitCode()), err
		},
	}
	w.ctx, w.end = context.WithCancel(w.t.Context())
	w.running.Go(func() { _ = store.Run(w.ctx) })
	<-store.Synced()
}

// stopAgent ends the agent as a crash would, as far as what it keeps goes: it
// keeps nothing on its way out.
func (w *world) stopAgent() {
	w.end()
	w.running.Wait()
	w.events.Close()
}

// restartAgent starts another, with the workers that the checkpoints tell of.
func (w *world) restartAgent() {
	w.t.Helper()
	w.stopAgent()
	w.startAgent()
	kept, errs := w.kept.Load()
	if len(errs) > 0 {
		w.t.Fatal(errs)
	}
	for _, k := range kept {
		w.run(worker.Restore(w.parts, w.config, k))
	}
	synctest.Wait()
}

func (w *world) start(pod *v1.Pod) *worker.Worker {
	return w.run(worker.New(w.parts, w.config, pod, time.Now()))
}

func (w *world) run(k *worker.Worker) *worker.Worker {
	uid := string(k.Pod().UID)
	w.mu.Lock()
	w.workers[uid] = k
	w.mu.Unlock()
	w.running.Go(func() { _ = k.Run(w.ctx) })
	synctest.Wait()
	return k
}

// worker finds the worker of this agent.
func (w *world) worker(name string) *worker.Worker {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.workers[name+"-uid"]
}

// reasons are the reasons of all events so far, oldest first.
func (w *world) reasons() []string {
	var out []string
	for _, e := range w.events.List() {
		out = append(out, e.Reason)
	}
	return out
}

func (w *world) wantEvent(reason, text string) {
	w.t.Helper()
	synctest.Wait()
	for _, e := range w.events.List() {
		if e.Reason == reason && strings.Contains(e.Message, text) {
			return
		}
	}
	w.t.Errorf("no event %s with %q among %q", reason, text, w.reasons())
}

func (w *world) wantNoEvent(reason string) {
	w.t.Helper()
	synctest.Wait()
	for _, e := range w.events.List() {
		if e.Reason == reason {
			w.t.Errorf("there is an event %s: %s", reason, e.Message)
		}
	}
}

func (w *world) wantRunning(names ...string) {
	w.t.Helper()
	synctest.Wait()
	if got := w.runtime.Running(); !slices.Equal(got, names) {
		w.t.Errorf("%q run, want %q", got, names)
	}
}

// wantCalls checks the calls that changed something since mark.
func (w *world) wantCalls(mark int, want ...string) {
	w.t.Helper()
	synctest.Wait()
	if got := w.runtime.Calls()[mark:]; !slices.Equal(got, want) {
		w.t.Errorf("the runtime was asked for\n %q, want\n %q", got, want)
	}
}

func (w *world) mark() int {
	synctest.Wait()
	return len(w.runtime.Calls())
}

// wantNothingLeft checks that the pod has left no trace.
func (w *world) wantNothingLeft(k *worker.Worker) {
	w.t.Helper()
	synctest.Wait()
	select {
	case <-k.Done():
	default:
		w.t.Errorf("the worker is not done: %+v", k.Explain().Stuck)
	}
	if !w.runtime.Empty() || len(w.volumes.UIDs()) > 0 || len(w.cgroups.UIDs()) > 0 {
		w.t.Errorf("left: in the runtime %v, volumes %v, cgroups %v", !w.runtime.Empty(), w.volumes.UIDs(), w.cgroups.UIDs())
	}
	for _, dir := range []string{"kubelet/pods", "logs", "kept"} {
		entries, err := os.ReadDir(filepath.Join(w.dir, dir))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			w.t.Error(err)
		}
		for _, e := range entries {
			w.t.Errorf("left: %s/%s", dir, e.Name())
		}
	}
}

func phaseOf(k *worker.Worker) v1.PodPhase {
	synctest.Wait()
	return k.Pod().Status.Phase
}

func isReady(k *worker.Worker) bool {
	c := condition(k, v1.PodReady)
	return c != nil && c.Status == v1.ConditionTrue
}

func waitingReason(k *worker.Worker, container string) string {
	synctest.Wait()
	s := k.Pod().Status
	for _, c := range slices.Concat(s.InitContainerStatuses, s.ContainerStatuses) {
		if c.Name == container && c.State.Waiting != nil {
			return c.State.Waiting.Reason
		}
	}
	return ""
}

// pod is a pod of containers that run until they are told to stop.
func pod(name string, containers ...string) *v1.Pod {
	grace := int64(30)
	p := &v1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default", UID: types.UID(name + "-uid")},
		Spec:       v1.PodSpec{RestartPolicy: v1.RestartPolicyAlways, TerminationGracePeriodSeconds: &grace, DNSPolicy: v1.DNSDefault},
	}
	for _, c := range containers {
		p.Spec.Containers = append(p.Spec.Containers, container(c))
	}
	return p
}

func container(name string) v1.Container {
	return v1.Container{Name: name, Image: "busybox", ImagePullPolicy: v1.PullIfNotPresent, TerminationMessagePath: "/dev/termination-log"}
}

func sidecar(name string) v1.Container {
	c, always := container(name), v1.ContainerRestartPolicyAlways
	c.RestartPolicy = &always
	return c
}

func execHandler(command string) *v1.LifecycleHandler {
	return &v1.LifecycleHandler{Exec: &v1.ExecAction{Command: []string{command}}}
}

// tries is how often volumes were set up or refreshed.
func (w *world) tries() int {
	synctest.Wait()
	return w.volumes.Tries()
}
