package observed_test

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-io/berth/agent/internal/fakecri"
	"github.com/berth-io/berth/agent/observed"
	"github.com/berth-io/berth/agent/podspec"
)

const relist = 5 * time.Minute

// node is a runtime and a store that follows it, in a bubble of time.
type node struct {
	t       *testing.T
	runtime *fakecri.Runtime
	store   *observed.Store

	mu      sync.Mutex
	changed []string
	counts
}

// counts are the questions that were asked.
type counts struct{ lists, followed, refused atomic.Int64 }

func (c *counts) Relisted(_, _ time.Duration) { c.lists.Add(1) }
func (c *counts) PodRelisted(time.Duration)   {}
func (c *counts) RuntimeTold(time.Duration)   {}
func (c *counts) Following(err error) {
	if err != nil {
		c.refused.Add(1)
		return
	}
	c.followed.Add(1)
}

func follow(t *testing.T, r *fakecri.Runtime) *node {
	t.Helper()
	r.HasImages("busybox")
	n := &node{t: t, runtime: r}
	n.store = observed.New(observed.Config{
		Runtime: r, Relist: relist, Log: slog.New(slog.DiscardHandler), Counts: &n.counts,
		Changed: func(uid string) {
			n.mu.Lock()
			defer n.mu.Unlock()
			n.changed = append(n.changed, uid)
		},
	})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- n.store.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("Run returned %v", err)
		}
	})
	synctest.Wait()
	return n
}

// pod starts a pod with one container, named a, and returns the sandbox's ID.
func (n *node) pod(uid string) (sandbox, container string) {
	n.t.Helper()
	return startPod(n.t, n.runtime, uid, 0, map[string]string{podspec.LabelPodUID: uid})
}

func startPod(t *testing.T, r *fakecri.Runtime, uid string, attempt uint32, labels map[string]string) (sandbox, container string) {
	t.Helper()
	ctx := t.Context()
	sb, err := r.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: uid, Namespace: "default", Uid: uid, Attempt: attempt}, Labels: labels,
	}})
	if err != nil {
		t.Fatal(err)
	}
	c, err := r.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{
		PodSandboxId: sb.GetPodSandboxId(), SandboxConfig: &runtimeapi.PodSandboxConfig{LogDirectory: "/logs"},
		Config: &runtimeapi.ContainerConfig{
			Metadata: &runtimeapi.ContainerMetadata{Name: "a", Attempt: attempt}, Image: &runtimeapi.ImageSpec{Image: "busybox"}, LogPath: "a.log",
			Annotations: map[string]string{
				podspec.AnnotationHash: "abc", podspec.AnnotationBackoff: "20s", podspec.AnnotationTerminationGracePeriod: "7",
				podspec.AnnotationTerminationMessagePath: "/dev/termination-log",
				podspec.AnnotationPreStopHandler:         `{"exec":{"command":["bye"]}}`,
			},
			Mounts: []*runtimeapi.Mount{{ContainerPath: "/dev/termination-log", HostPath: "/pods/t"}},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: c.GetContainerId()}); err != nil {
		t.Fatal(err)
	}
	return sb.GetPodSandboxId(), c.GetContainerId()
}

func (n *node) state(uid string) string {
	synctest.Wait()
	p := n.store.Pod(uid)
	c := p.Container("a")
	switch {
	case p.Sandbox() == nil:
		return "nothing"
	case p.ReadySandbox() == nil:
		return "sandbox not ready"
	case c == nil:
		return "no container"
	}
	return [...]string{"created", "running", "exited", "unknown"}[c.State]
}

func (n *node) want(uid, state string) {
	n.t.Helper()
	if got := n.state(uid); got != state {
		n.t.Errorf("pod %s is %q, want %q", uid, got, state)
	}
}

func TestEventsTellEverythingAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := follow(t, fakecri.New())
		sandbox, id := n.pod("p")
		n.want("p", "running")
		p := n.store.Pod("p")
		c := p.Container("a")
		switch {
		case p.Name != "p" || p.Namespace != "default" || p.Sandbox().IPs[0] == "":
			t.Errorf("pod %+v", p)
		case c.ID != id || c.SandboxID != sandbox || c.Hash != "abc" || c.Backoff != 20*time.Second || *c.GracePeriod != 7,
			c.TerminationLog != "/pods/t" || c.LogPath != "/logs/a.log" || c.PreStop.Exec.Command[0] != "bye":
			t.Errorf("container %+v", c)
		}
		n.runtime.Exit("a", 3)
		n.want("p", "exited")
		if p := n.store.Pod("p"); p.Container("a").ExitCode != 3 {
			t.Errorf("exit code %d", p.Container("a").ExitCode)
		}
		n.runtime.LoseSandbox("p")
		n.want("p", "sandbox not ready")
		if _, err := n.runtime.RemovePodSandbox(t.Context(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: sandbox}); err != nil {
			t.Fatal(err)
		}
		n.want("p", "nothing")
		if uids := n.store.UIDs(); len(uids) != 0 {
			t.Errorf("pods %v are left", uids)
		}
		if !slices.Contains(n.changed, "p") {
			t.Error("nobody was told")
		}
	})
}

func TestWhatRunsAlreadyIsThereOnceSynced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := fakecri.New()
		r.HasImages("busybox")
		startPod(t, r, "p", 0, map[string]string{podspec.LabelPodUID: "p"})
		n := follow(t, r)
		select {
		case <-n.store.Synced():
		default:
			t.Error("not synced")
		}
		n.want("p", "running")
	})
}

func TestALostEventIsMadeUpForByTheRelist(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := follow(t, fakecri.New())
		n.pod("p")
		sound := n.runtime.Silence()
		n.runtime.Exit("a", 1)
		sound()
		n.want("p", "running") // nobody knows
		time.Sleep(relist)
		n.want("p", "exited")
	})
}

func TestAnOldEventDoesNotOverrideWhatIsKnown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := follow(t, fakecri.New())
		sandbox, _ := n.pod("p")
		old := n.runtime.Event("a") // running
		time.Sleep(time.Second)
		n.runtime.Exit("a", 0)
		n.want("p", "exited")
		n.runtime.Send(old)
		n.want("p", "exited")

		time.Sleep(time.Second)
		if _, err := n.runtime.RemovePodSandbox(t.Context(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: sandbox}); err != nil {
			t.Fatal(err)
		}
		n.want("p", "nothing")
		n.runtime.Send(old) // nor does it bring back what is gone
		n.want("p", "nothing")
	})
}

func TestAnEventOfAClockThatWasSetBackStillCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := follow(t, fakecri.New())
		n.pod("p")
		future := n.runtime.Event("a")
		future.CreatedAt += int64(time.Hour) // the clock ran ahead until just now
		n.runtime.Send(future)
		synctest.Wait()
		time.Sleep(time.Millisecond)
		n.runtime.Exit("a", 0)
		n.want("p", "exited")
	})
}

func TestABrokenStreamIsFollowedAnewAndNothingIsMissed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := follow(t, fakecri.New())
		n.pod("p")
		n.want("p", "running")
		n.runtime.Cut(status.Error(codes.Unavailable, "away"))
		n.runtime.Exit("a", 0) // while nobody listens
		n.want("p", "running")
		time.Sleep(time.Second)
		n.want("p", "exited")
		if got := n.runtime.Streams(); got != 1 {
			t.Errorf("%d streams are open", got)
		}
	})
}

func TestAReaderThatWasTooSlowListsEverythingAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := follow(t, fakecri.New())
		sandbox, _ := n.pod("removed")
		n.pod("exits")
		n.want("removed", "running")
		sound := n.runtime.Silence() // these events are lost, as the status says
		if _, err := n.runtime.StopPodSandbox(t.Context(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: sandbox}); err != nil {
			t.Fatal(err)
		}
		if _, err := n.runtime.RemovePodSandbox(t.Context(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: sandbox}); err != nil {
			t.Fatal(err)
		}
		n.runtime.Exit("a", 0)
		n.pod("new")
		sound()
		n.want("removed", "running")
		n.runtime.Cut(status.Error(codes.OutOfRange, "the reader is too slow and events were lost"))
		time.Sleep(time.Second)
		n.want("removed", "nothing")
		n.want("exits", "exited")
		n.want("new", "running")
		if got := n.runtime.Streams(); got != 1 {
			t.Errorf("%d streams are open", got)
		}
	})
}

func TestAStreamThatAlwaysBreaksIsNotReopenedAllTheTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := fakecri.New()
		opened := 0
		n := follow(t, r)
		for range 6000 { // a minute
			if r.Streams() > 0 {
				opened++
				r.Cut(status.Error(codes.Internal, "no"))
			}
			time.Sleep(10 * time.Millisecond)
		}
		if opened > 20 {
			t.Errorf("opened %d times in a minute", opened)
		}
		_ = n
	})
}

func TestARuntimeWithoutEventsIsRelistedEverySecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := follow(t, fakecri.New().WithoutEvents())
		n.pod("p")
		n.want("p", "nothing")
		time.Sleep(1100 * time.Millisecond)
		n.want("p", "running")
		n.runtime.Exit("a", 0)
		time.Sleep(1100 * time.Millisecond)
		n.want("p", "exited")
	})
}

func TestARuntimeThatGetsEventsIsFollowedAndOneThatLosesThemIsRelisted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lists := func(n *node, d time.Duration) int64 {
			before := n.lists.Load()
			time.Sleep(d)
			return n.lists.Load() - before
		}
		n := follow(t, fakecri.New().WithoutEvents())
		n.pod("p")
		for range 2 {
			if got := lists(n, time.Minute); got < 50 || got > 70 {
				t.Errorf("without events: listed %d times in a minute", got)
			}
			n.runtime.SetEvents(true)
			time.Sleep(11 * time.Second)
			if got := lists(n, 4*time.Minute); got > 1 || n.runtime.Streams() != 1 {
				t.Errorf("with events: listed %d times in four minutes, %d streams", got, n.runtime.Streams())
			}
			n.want("p", "running")
			n.runtime.SetEvents(false)
			time.Sleep(time.Second)
		}
		if n.followed.Load() != 2 || n.refused.Load() < 10 {
			t.Errorf("followed %d times, refused %d times", n.followed.Load(), n.refused.Load())
		}
		n.runtime.Exit("a", 0)
		time.Sleep(1100 * time.Millisecond)
		n.want("p", "exited")
	})
}

func TestSandboxesMadeByHandAreIgnored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := follow(t, fakecri.New())
		startPod(t, n.runtime, "crictl", 0, nil)
		n.want("crictl", "nothing")
		time.Sleep(relist)
		n.want("crictl", "nothing")
		if uids := n.store.UIDs(); len(uids) != 0 {
			t.Errorf("pods %v", uids)
		}
	})
}

func TestAPodWithTwoSandboxesIsAskedAboutAsAWhole(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := follow(t, fakecri.New())
		n.pod("p")
		n.runtime.LoseSandbox("p")
		startPod(t, n.runtime, "p", 1, map[string]string{podspec.LabelPodUID: "p"})
		n.want("p", "running")
		p := n.store.Pod("p")
		if len(p.Sandboxes) != 2 || len(p.Containers) != 2 || p.Sandboxes[0].Attempt != 1 || p.Containers[0].Attempt != 1 {
			t.Errorf("%+v", p)
		}
		if old := p.Previous(p.Container("a")); old == nil || old.Attempt != 0 {
			t.Errorf("the container before is %+v", old)
		}
	})
}

func TestAPodThatCannotBeAskedAboutHoldsUpNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := follow(t, fakecri.New())
		n.pod("p")
		n.runtime.LoseSandbox("p")
		release := n.runtime.Hang("PodSandboxStatus", "sandbox")
		startPod(t, n.runtime, "p", 1, map[string]string{podspec.LabelPodUID: "p"})
		synctest.Wait()
		n.pod("q")
		n.want("q", "running")
		n.want("p", "sandbox not ready")
		release()
		time.Sleep(time.Minute)
		n.want("p", "running")
	})
}

func TestNothingIsSyncedBeforeEveryPodHasAnswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := fakecri.New()
		r.HasImages("busybox")
		startPod(t, r, "p", 0, map[string]string{podspec.LabelPodUID: "p"})
		mend := r.Fail("PodSandboxStatus", "", status.Error(codes.Internal, "no"))
		n := follow(t, r)
		time.Sleep(time.Minute)
		select {
		case <-n.store.Synced():
			t.Error("synced, although a pod was not observed")
		default:
		}
		mend()
		<-n.store.Synced()
		n.want("p", "running")
	})
}

func TestRefreshSeesWhatNoEventHasToldYet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := follow(t, fakecri.New())
		defer n.runtime.Silence()()
		n.pod("p")
		p, err := n.store.Refresh(t.Context(), "p")
		if err != nil || p.Container("a") == nil {
			t.Errorf("%+v, %v", p, err)
		}
		n.want("p", "running")
		defer n.runtime.Fail("ListPodSandbox", "", status.Error(codes.Unavailable, "away"))()
		if _, err := n.store.Refresh(t.Context(), "p"); status.Code(err) != codes.Unavailable {
			t.Errorf("got %v", err)
		}
	})
}
