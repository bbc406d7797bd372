package server

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-io/berth/cri/shim"
	"github.com/berth-io/berth/cri/store"
)

func TestARetriedSandboxJoinsTheOneInFlightOrFindsItDone(t *testing.T) {
	w := newWorld(t)
	w.network.wait = make(chan struct{})
	s := w.start(t)
	defer s.Close()
	// The first caller gives up, as a kubelet with a deadline does.
	impatient, cancel := context.WithCancel(t.Context())
	gone := make(chan error)
	go func() {
		_, err := s.RunPodSandbox(impatient, sandboxRequest("a"))
		gone <- err
	}()
	cancel()
	if err := <-gone; !errors.Is(err, context.Canceled) {
		t.Fatalf("first caller: %v", err)
	}
	ids := make(chan string, 3)
	var callers sync.WaitGroup
	for range 3 {
		callers.Go(func() { ids <- runSandbox(t, s, "a") })
	}
	close(w.network.wait)
	callers.Wait()
	id := runSandbox(t, s, "a")
	for range 3 {
		if other := <-ids; other != id {
			t.Errorf("got %s and %s", other, id)
		}
	}
	if n := len(s.sandboxes.List()); n != 1 {
		t.Errorf("there are %d sandboxes", n)
	}
	removeSandbox(t, s, id)
	w.checkEmpty(t)
}

func TestAFailedSandboxLeavesNothing(t *testing.T) {
	w := newWorld(t)
	w.network.fail = errors.New("no address left")
	s := w.start(t)
	defer s.Close()
	_, err := s.RunPodSandbox(t.Context(), sandboxRequest("a"))
	if err == nil || !strings.Contains(err.Error(), "run sandbox a_default_uid-a_0: no address left") {
		t.Errorf("error is %v", err)
	}
	w.checkEmpty(t)
}

func TestAContainerLivesAndLeavesNothing(t *testing.T) {
	w := newWorld(t)
	s := w.start(t)
	defer s.Close()
	sb := runSandbox(t, s, "a")
	c := createContainer(t, s, sb, "main")
	if again := createContainer(t, s, sb, "main"); again != c {
		t.Errorf("a retried creation made %s beside %s", again, c)
	}
	if st := containerState(t, s, c); st.State != runtimeapi.ContainerState_CONTAINER_CREATED || st.CreatedAt == 0 || st.StartedAt != 0 {
		t.Errorf("after the creation: %v", st)
	}
	startContainer(t, s, c)
	startContainer(t, s, c)
	if st := containerState(t, s, c[:12]); st.State != runtimeapi.ContainerState_CONTAINER_RUNNING || st.StartedAt == 0 {
		t.Errorf("after the start: %v", st)
	}
	w.shims.of(t, s, sb).exit(c, 3)
	<-s.task(c).exited
	st := containerState(t, s, c)
	if st.State != runtimeapi.ContainerState_CONTAINER_EXITED || st.ExitCode != 3 || st.Reason != "Error" || st.FinishedAt == 0 {
		t.Errorf("after the exit: %v", st)
	}
	if _, err := s.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: c}); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("started again: %v", err)
	}
	for range 2 {
		if _, err := s.RemoveContainer(t.Context(), &runtimeapi.RemoveContainerRequest{ContainerId: c}); err != nil {
			t.Error(err)
		}
	}
	removeSandbox(t, s, sb)
	removeSandbox(t, s, sb)
	w.checkEmpty(t)
}

func TestContainersOfALostShimAreEndedAllAtOnce(t *testing.T) {
	const count = 3
	for name, lose := range map[string]func(w *world, s *Server, sandbox string) *Server{
		"under way": func(w *world, s *Server, sandbox string) *Server {
			w.shims.of(t, s, sandbox).die()
			return s
		},
		"while the daemon was away": func(w *world, s *Server, sandbox string) *Server {
			dying := w.shims.of(t, s, sandbox)
			s.Close()
			dying.die()
			return w.start(t)
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			s := w.start(t)
			sb := runSandbox(t, s, "a")
			var ids []string
			for i := range count {
				c := createContainer(t, s, sb, fmt.Sprint("c", i))
				startContainer(t, s, c)
				ids = append(ids, c)
			}
			// Each waits for a hanging command of the runtime until all do.
			w.shims.together = newBarrier(count)
			s = lose(w, s, sb)
			defer s.Close()
			for _, c := range ids {
				<-s.task(c).exited
				if st := containerState(t, s, c); st.Reason != reasonUnknown {
					t.Errorf("container %s ended: %v", c, st)
				}
			}
		})
	}
}

func TestAContainerThatCannotBeStartedSaysWhy(t *testing.T) {
	w := newWorld(t)
	s := w.start(t)
	defer s.Close()
	sb := runSandbox(t, s, "a")
	c := createContainer(t, s, sb, "main")
	w.shims.of(t, s, sb).runErr = errors.New(`exec: "/bin/sleep": no such file or directory`)
	_, err := s.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: c})
	if err == nil || !strings.Contains(err.Error(), "no such file or directory") {
		t.Errorf("error is %v", err)
	}
	st := containerState(t, s, c)
	if st.ExitCode != 128 || st.Reason != "StartError" || !strings.Contains(st.Message, "no such file or directory") || st.FinishedAt == 0 {
		t.Errorf("status is %v", st)
	}
	removeSandbox(t, s, sb)
	w.checkEmpty(t)
}

func TestConcurrentStopsOnlyShortenTheGrace(t *testing.T) {
	w := newWorld(t)
	s := w.start(t)
	defer s.Close()
	sb := runSandbox(t, s, "a")
	c := createContainer(t, s, sb, "main")
	startContainer(t, s, c)
	var stops sync.WaitGroup
	for _, grace := range []int64{3600, 1} {
		stops.Go(func() {
			if _, err := s.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: c, Timeout: grace}); err != nil {
				t.Error(err)
			}
		})
	}
	stops.Wait()
	if sent := w.shims.of(t, s, sb).sent(); sent != "[terminated killed]" {
		t.Errorf("signals: %s", sent)
	}
	if st := containerState(t, s, c); st.ExitCode != 137 {
		t.Errorf("status is %v", st)
	}
	removeSandbox(t, s, sb)
	w.checkEmpty(t)
}

func TestAProcessThatObeysItsStopSignalIsNotKilled(t *testing.T) {
	w := newWorld(t)
	w.images.img.Config.StopSignal = "SIGUSR1"
	s := w.start(t)
	defer s.Close()
	sb := runSandbox(t, s, "a")
	c := createContainer(t, s, sb, "main")
	startContainer(t, s, c)
	sh := w.shims.of(t, s, sb)
	sh.obeys = []unix.Signal{unix.SIGUSR1}
	if _, err := s.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: c, Timeout: 3600}); err != nil {
		t.Fatal(err)
	}
	if sent := sh.sent(); sent != "[user defined signal 1]" {
		t.Errorf("signals: %s", sent)
	}
	if st := containerState(t, s, c); st.StopSignal != runtimeapi.Signal_SIGUSR1 {
		t.Errorf("stop signal is %v", st.StopSignal)
	}
	removeSandbox(t, s, sb)
	w.checkEmpty(t)
}

func TestAShimThatDiesTakesItsSandboxAlong(t *testing.T) {
	w := newWorld(t)
	s := w.start(t)
	defer s.Close()
	sb := runSandbox(t, s, "a")
	c, unseen := createContainer(t, s, sb, "main"), createContainer(t, s, sb, "side")
	startContainer(t, s, c)
	startContainer(t, s, unseen)
	w.writeExit(t, s, shim.ContainerState{ID: c, Exited: true, ExitCode: 7, ExitedAt: time.Now()})
	w.shims.of(t, s, sb).die()
	<-s.task(c).exited
	<-s.task(unseen).exited
	if st := containerState(t, s, c); st.ExitCode != 7 || st.Reason != "Error" {
		t.Errorf("what the shim wrote before its end is lost: %v", st)
	}
	if st := containerState(t, s, unseen); st.ExitCode != 255 || st.Reason != "Unknown" {
		t.Errorf("status is %v", st)
	}
	resp, err := s.PodSandboxStatus(t.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: sb})
	if err != nil || resp.Status.State != runtimeapi.PodSandboxState_SANDBOX_NOTREADY || len(resp.ContainersStatuses) != 2 {
		t.Errorf("sandbox is %v, %v", resp, err)
	}
	removeSandbox(t, s, sb)
	w.checkEmpty(t)
}

func TestAContainerThatOutlivesItsShimIsEndedByItsNextStop(t *testing.T) {
	w := newWorld(t)
	s := w.start(t)
	defer s.Close()
	sb := runSandbox(t, s, "a")
	c := createContainer(t, s, sb, "main")
	startContainer(t, s, c)
	held := errors.New("a command of the shim hangs")
	before := w.shims.hold(held)
	w.shims.of(t, s, sb).die()
	for w.shims.hold(held) == before { // until its end could not be recorded
		time.Sleep(time.Millisecond)
	}
	stop := func() error {
		_, err := s.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: c})
		return err
	}
	if err := stop(); !errors.Is(err, held) {
		t.Errorf("stop while it is held: %v", err)
	}
	w.shims.hold(nil)
	if err := stop(); err != nil {
		t.Error(err)
	}
	if st := containerState(t, s, c); st.ExitCode != 255 || st.Reason != "Unknown" {
		t.Errorf("status is %v", st)
	}
	removeSandbox(t, s, sb)
	w.checkEmpty(t)
}

func TestARestartKnowsWhatHappenedMeanwhile(t *testing.T) {
	w := newWorld(t)
	s := w.start(t)
	sb := runSandbox(t, s, "a")
	running, exited, gone := createContainer(t, s, sb, "running"), createContainer(t, s, sb, "exited"), runSandbox(t, s, "gone")
	startContainer(t, s, running)
	startContainer(t, s, exited)
	orphan := createContainer(t, s, gone, "orphan")
	startContainer(t, s, orphan)
	created := createContainer(t, s, sb, "created")
	halfStarted := createContainer(t, s, sb, "half-started")
	if _, err := s.containers.Update(halfStarted, func(c *store.Container) error { return c.Move(store.ContainerStarting) }); err != nil {
		t.Fatal(err)
	}
	sh := w.shims.of(t, s, sb)
	goneShim := w.shims.of(t, s, gone)
	s.Close()
	sh.exit(exited, 5)
	goneShim.die()

	s = w.start(t)
	defer s.Close()
	for id, want := range map[string]struct {
		state runtimeapi.ContainerState
		code  int32
	}{
		running:     {runtimeapi.ContainerState_CONTAINER_RUNNING, 0},
		exited:      {runtimeapi.ContainerState_CONTAINER_EXITED, 5},
		created:     {runtimeapi.ContainerState_CONTAINER_CREATED, 0},
		halfStarted: {runtimeapi.ContainerState_CONTAINER_CREATED, 0},
		orphan:      {runtimeapi.ContainerState_CONTAINER_EXITED, 255},
	} {
		if st := containerState(t, s, id); st.State != want.state || st.ExitCode != want.code {
			t.Errorf("container %s is %v, want %v", st.Metadata.Name, st, want)
		}
	}
	startContainer(t, s, created)
	startContainer(t, s, halfStarted)
	sh.exit(running, 0)
	<-s.task(running).exited
	if st := containerState(t, s, running); st.Reason != "Completed" {
		t.Errorf("an exit after the restart: %v", st)
	}
	list, err := s.ListPodSandbox(t.Context(), &runtimeapi.ListPodSandboxRequest{Filter: &runtimeapi.PodSandboxFilter{
		State: &runtimeapi.PodSandboxStateValue{State: runtimeapi.PodSandboxState_SANDBOX_READY},
	}})
	if err != nil || len(list.Items) != 1 || list.Items[0].Id != sb {
		t.Errorf("ready sandboxes: %v, %v", list, err)
	}
	removeSandbox(t, s, sb)
	removeSandbox(t, s, gone)
	w.checkEmpty(t)
}

func TestARestartUndoesWhatWasHalfDoneAndSweepsWhatHasNoRecord(t *testing.T) {
	w := newWorld(t)
	s := w.start(t)
	half, bad, keep := runSandbox(t, s, "half"), runSandbox(t, s, "bad"), runSandbox(t, s, "keep")
	halfContainer := createContainer(t, s, keep, "half")
	badContainer := createContainer(t, s, bad, "bad")
	startContainer(t, s, badContainer)
	s.Close()
	for path, change := range map[string][2]string{
		filepath.Join(s.sandboxes.Dir(half), store.SandboxFile):             {`"state":"ready"`, `"state":"creating"`},
		filepath.Join(s.containers.Dir(halfContainer), store.ContainerFile): {`"state":"created"`, `"state":"creating"`},
		filepath.Join(s.sandboxes.Dir(bad), store.SandboxFile):              {`{`, `}`},
	} {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(strings.Replace(string(data), change[0], change[1], 1)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, dir := range []string{"run/sandboxes/unwritten", "run/containers/unwritten", "state/containers/old/upper"} {
		if err := os.MkdirAll(filepath.Join(w.dir, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	s = w.start(t)
	defer s.Close()
	if list := s.sandboxes.List(); len(list) != 1 || list[0].ID != keep {
		t.Errorf("sandboxes: %v", list)
	}
	removeSandbox(t, s, keep)
	w.checkEmpty(t)
	if _, err := os.Stat(filepath.Join(w.dir, "run/corrupt", bad+"-"+store.SandboxFile)); err != nil {
		t.Errorf("the bad record was not kept: %v", err)
	}
}

func TestAfterARebootNothingIsLeft(t *testing.T) {
	w := newWorld(t)
	s := w.start(t)
	sb := runSandbox(t, s, "a")
	startContainer(t, s, createContainer(t, s, sb, "main"))
	sh := w.shims.of(t, s, sb)
	s.Close()
	sh.die()
	w.bootID = "boot-2"
	s = w.start(t)
	defer s.Close()
	w.checkEmpty(t)
}

func TestEventsCarryTheWholeSandboxInOrder(t *testing.T) {
	w := newWorld(t)
	s := w.start(t)
	defer s.Close()
	reader := s.events.Subscribe()
	defer reader.Close()
	sb := runSandbox(t, s, "a")
	c := createContainer(t, s, sb, "main")
	startContainer(t, s, c)
	w.shims.of(t, s, sb).exit(c, 0)
	<-s.task(c).exited
	removeSandbox(t, s, sb)
	for _, want := range []struct {
		id   string
		kind runtimeapi.ContainerEventType
		// of the one container, as the event shows it
		state runtimeapi.ContainerState
		count int
	}{
		{sb, runtimeapi.ContainerEventType_CONTAINER_CREATED_EVENT, 0, 0},
		{sb, runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT, 0, 0},
		{c, runtimeapi.ContainerEventType_CONTAINER_CREATED_EVENT, runtimeapi.ContainerState_CONTAINER_CREATED, 1},
		{c, runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT, runtimeapi.ContainerState_CONTAINER_RUNNING, 1},
		{c, runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT, runtimeapi.ContainerState_CONTAINER_EXITED, 1},
		{sb, runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT, runtimeapi.ContainerState_CONTAINER_EXITED, 1},
		{c, runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT, 0, 0},
		{sb, runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT, 0, 0},
	} {
		e, err := reader.Next(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if e.ContainerId != want.id || e.ContainerEventType != want.kind || e.PodSandboxStatus.GetId() != sb || len(e.ContainersStatuses) != want.count {
			t.Errorf("got %v, want %v", e, want)
		}
		if want.count == 1 && len(e.ContainersStatuses) == 1 && e.ContainersStatuses[0].State != want.state {
			t.Errorf("at %v the container is %v", want.kind, e.ContainersStatuses[0].State)
		}
	}
}

func TestBadRequestsHaveTheirCodes(t *testing.T) {
	w := newWorld(t)
	s := w.start(t)
	defer s.Close()
	sb := runSandbox(t, s, "a")
	unknown := containerRequest(sb, "x")
	unknown.Config.Image.Image = "unknown"
	handler := sandboxRequest("b")
	handler.RuntimeHandler = "gvisor"
	slice := sandboxRequest("c")
	slice.Config.Linux.CgroupParent = "kubepods.slice"
	ctx := t.Context()
	for name, c := range map[string]struct {
		call func() error
		want codes.Code
	}{
		"unknown sandbox": {func() error {
			_, err := s.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: "zz"})
			return err
		}, codes.NotFound},
		"unknown container": {func() error {
			_, err := s.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: "zz"})
			return err
		}, codes.NotFound},
		"unknown image":       {func() error { _, err := s.CreateContainer(ctx, unknown); return err }, codes.NotFound},
		"unknown handler":     {func() error { _, err := s.RunPodSandbox(ctx, handler); return err }, codes.InvalidArgument},
		"wrong cgroup driver": {func() error { _, err := s.RunPodSandbox(ctx, slice); return err }, codes.InvalidArgument},
		"empty sandbox":       {func() error { _, err := s.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{}); return err }, codes.InvalidArgument},
		"stop unknown container": {func() error {
			_, err := s.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: "zz"})
			return err
		}, codes.OK},
		"stop unknown sandbox": {func() error {
			_, err := s.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: "zz"})
			return err
		}, codes.OK},
		"statistics of no container": {func() error { _, err := s.ContainerStats(ctx, &runtimeapi.ContainerStatsRequest{}); return err }, codes.NotFound},
		"statistics of an unknown sandbox": {func() error {
			_, err := s.PodSandboxStats(ctx, &runtimeapi.PodSandboxStatsRequest{PodSandboxId: "zz"})
			return err
		}, codes.NotFound},
		"a pod subnet that is none": {func() error {
			_, err := s.UpdateRuntimeConfig(ctx, &runtimeapi.UpdateRuntimeConfigRequest{
				RuntimeConfig: &runtimeapi.RuntimeConfig{NetworkConfig: &runtimeapi.NetworkConfig{PodCidr: "10.0.0.1/8"}},
			})
			return err
		}, codes.InvalidArgument},
		"exec in unknown": {func() error {
			_, err := s.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: "zz", Cmd: []string{"x"}})
			return err
		}, codes.NotFound},
		"exec without a command": {func() error { _, err := s.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: "zz"}); return err }, codes.InvalidArgument},
	} {
		if err := c.call(); status.Code(err) != c.want {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
	removeSandbox(t, s, sb)
	w.checkEmpty(t)
}

func TestSignalsAreReadAsPeopleWriteThem(t *testing.T) {
	for name, want := range map[string]unix.Signal{
		"SIGTERM": 15, "term": 15, "15": 15, "SIGRTMIN": 34, "SIGRTMIN+3": 37, "RTMAX-14": 50, "SIGRTMAX": 64,
		"": 0, "SIGNO": 0, "0": 0, "99": 0, "SIGRTMIN-1": 0, "SIGRTMIN+99": 0, "SIGRTMAX+1": 0, "SIGRTMIN+": 0,
	} {
		got, err := signalNumber(name)
		if got != want || (err != nil) != (want == 0) {
			t.Errorf("%q is %d, %v; want %d", name, got, err, want)
		}
	}
	for value := range runtimeapi.Signal_name {
		sig := runtimeapi.Signal(value)
		if sig == runtimeapi.Signal_RUNTIME_DEFAULT {
			continue
		}
		if _, err := signalNumber(criSignalName(sig)); err != nil {
			t.Errorf("%v: %v", sig, err)
		}
	}
	if got := criSignal("SIGRTMIN+3"); got != runtimeapi.Signal_SIGRTMINPLUS3 {
		t.Errorf("SIGRTMIN+3 is %v", got)
	}
}

func TestTheOutputOfAnExecIsCutToWhatAnAnswerCarries(t *testing.T) {
	const most = maxExecOutput
	for _, c := range []struct{ stdout, stderr, wantStdout, wantStderr int }{
		{0, 0, 0, 0},
		{1, 2, 1, 2},
		{most, 0, most, 0},
		{most + 1, 0, most, 0},
		{most, most, most - most/4, most / 4},
		{most, 10, most - 10, 10},
		{10, most, 10, most - 10},
	} {
		stdout, stderr := fitAnswer(make([]byte, c.stdout), make([]byte, c.stderr))
		if len(stdout) != c.wantStdout || len(stderr) != c.wantStderr {
			t.Errorf("%d and %d bytes are cut to %d and %d, want %d and %d", c.stdout, c.stderr, len(stdout), len(stderr), c.wantStdout, c.wantStderr)
		}
	}
}
