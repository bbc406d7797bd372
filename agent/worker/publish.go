package worker

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"reflect"
	"slices"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/berth-io/berth/agent/checkpoint"
	"github.com/berth-io/berth/agent/observed"
	"github.com/berth-io/berth/agent/phase"
	"github.com/berth-io/berth/agent/plan"
	"github.com/berth-io/berth/agent/podlog"
	"github.com/berth-io/berth/agent/qos"
	"github.com/berth-io/berth/agent/status"
	"github.com/berth-io/berth/agent/timeline"
)

// publish makes the pod's status from what is known and, when it changed,
// tells the world and then the disk. Another phase alone waits for the status
// that goes with it when the pod is looked at again at once.
func (w *Worker) publish(obs *observed.Pod, again bool) {
	w.terminationMessages(obs)
	w.mu.Lock()
	previous, stop := w.pod, w.stop
	w.mu.Unlock()
	in := status.Input{
		Pod: previous, Observed: obs, Phase: w.state.phase, Probes: w.results(), Waiting: w.waitingNow(), Restarts: w.state.restarts,
		TerminationMessages: w.state.messages, HostIPs: w.config.HostIPs, RuntimeName: w.config.RuntimeName,
		Health: w.config.Health, QOSClass: qos.Class(previous), Previous: &previous.Status, Now: time.Now(),
		Unprepared:  w.state.mounted == nil,
		HoldsClaims: w.parts.Actor.HoldsClaims(w.uid),
		Actuated:    w.state.resize.actuated, ResizePending: w.state.resize.pending, ResizeInProgress: w.state.resize.inProgress,
	}
	if f, ok := w.state.failures[plan.PodFailure]; ok {
		in.Problem = &f.Waiting
	}
	if stop != nil {
		in.Failed, in.Disruption = stop.Failed, stop.Conditions
	}
	next := status.Of(in)
	if reflect.DeepEqual(next, previous.Status) {
		if w.state.dirty && !again {
			w.checkpoint(false)
		}
		return
	}
	w.tellEnded(&previous.Status, &next)
	pod := *previous // the spec is shared: nobody changes it
	pod.Status = next
	w.mu.Lock()
	w.pod = &pod
	w.mu.Unlock()
	if ready(&pod.Status) && !ready(&previous.Status) {
		now := time.Now()
		w.steps.Span(timeline.Ready, "", now, now)
	}
	w.config.Counts.PodChanged(previous, &pod, w.seen)
	w.tellAllocation()
	w.report(&pod)
	// How a pod ended must not be lost with the host, unless nobody asks any more.
	ended := next.Phase != previous.Status.Phase && terminal(next.Phase)
	w.checkpoint(ended && !w.Forgotten())
}

// report tells the world what became of the pod.
func (w *Worker) report(pod *v1.Pod) {
	if w.config.Report != nil {
		w.config.Report(Report{Pod: pod, Settled: w.state.released, Pulled: w.pulled()})
	}
}

// pulled is how long images were pulled, those at the same time once.
func (w *Worker) pulled() (sum time.Duration) {
	var until time.Time
	for _, s := range w.steps.Steps() { // by their start
		if s.Name != timeline.Pull || s.End.IsZero() || !s.End.After(until) {
			continue
		}
		if s.Start.Before(until) {
			s.Start = until
		}
		sum += s.End.Sub(s.Start)
		until = s.End
	}
	return sum
}

// waitingNow is the plan's word on containers that do not run.
func (w *Worker) waitingNow() map[string]plan.Waiting {
	if w.state.phase >= phase.Terminating {
		return nil
	}
	return w.state.waiting
}

// checkpoint keeps what a restarted agent must know. Not being able to is
// told and does not hold the pod up: without it a restart costs some history.
func (w *Worker) checkpoint(durable bool) {
	if err := w.save(durable); err != nil {
		w.log().Warn("the pod's state is not kept over a restart of the agent", "err", err)
	}
}

func (w *Worker) save(durable bool) error {
	w.mu.Lock()
	kept := checkpoint.Pod{
		Pod: w.pod, Phase: w.state.phase, Stop: w.stop, Forgotten: w.forgotten, Past: w.state.past,
		Probes: w.results(), Steps: w.steps.Steps(), BootID: w.config.BootID, Actuated: w.state.resize.actuated,
	}
	w.state.kept, w.state.dirty = mail{stop: w.stop, forgotten: w.forgotten}, false
	w.mu.Unlock()
	return w.parts.Checkpoints.Save(kept, durable)
}

// maxTerminationMessage and the log's bounds are the kubelet's
// (pkg/kubelet/container/runtime.go).
const maxTerminationMessage = 4096

// terminationMessages reads, once, what each ended container has to say.
func (w *Worker) terminationMessages(obs *observed.Pod) {
	for i := range obs.Containers {
		c := &obs.Containers[i]
		if _, known := w.state.messages[c.ID]; known || c.State != observed.Exited {
			continue
		}
		w.state.messages[c.ID] = w.terminationMessage(c)
	}
}

func (w *Worker) terminationMessage(c *observed.Container) string {
	text, err := readAtMost(c.TerminationLog, maxTerminationMessage)
	if err != nil {
		return "Error on reading termination log: " + err.Error()
	}
	if text != "" || c.ExitCode == 0 || c.LogPath == "" || !w.fallsBackToLogs(c.Name) {
		return text
	}
	tail, err := podlog.Tail(c.LogPath, 80, 2048)
	if err != nil {
		return "Error on reading termination message from logs: " + err.Error()
	}
	return tail
}

func (w *Worker) fallsBackToLogs(container string) bool {
	const fallBack = v1.TerminationMessageFallbackToLogsOnError
	return slices.ContainsFunc(slices.Concat(w.pod.Spec.InitContainers, w.pod.Spec.Containers), func(c v1.Container) bool {
		return c.Name == container && c.TerminationMessagePolicy == fallBack
	}) || slices.ContainsFunc(w.pod.Spec.EphemeralContainers, func(c v1.EphemeralContainer) bool {
		return c.Name == container && c.TerminationMessagePolicy == fallBack
	})
}

func readAtMost(path string, n int64) (string, error) {
	if path == "" {
		return "", nil
	}
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, n))
	return string(b), err
}

func ready(s *v1.PodStatus) bool {
	return slices.ContainsFunc(s.Conditions, func(c v1.PodCondition) bool {
		return c.Type == v1.PodReady && c.Status == v1.ConditionTrue
	})
}

func terminal(p v1.PodPhase) bool { return p == v1.PodSucceeded || p == v1.PodFailed }
