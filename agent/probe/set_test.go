package probe

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	v1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"
)

// app is a container whose probe commands the test answers. The tests with it
// run in a synctest bubble: their clock moves when everything waits.
type app struct {
	t     *testing.T
	set   *Set
	began time.Time

	mu     sync.Mutex
	answer map[string]func() (int, error) // by command
	log    []string                       // attempts, "command@since the start"
	events []string
}

func newApp(t *testing.T) *app {
	a := &app{t: t, began: time.Now(), answer: map[string]func() (int, error){}}
	pod := &v1.Pod{}
	pod.Name, pod.Namespace, pod.UID = "web", "ns", "uid-1"
	a.set = NewSet(t.Context(), Config{Exec: a.exec, Event: a.event}, pod)
	t.Cleanup(a.set.Stop)
	return a
}

func (a *app) exec(ctx context.Context, id string, command []string, timeout time.Duration) ([]byte, int, error) {
	name := command[0]
	a.mu.Lock()
	a.log = append(a.log, fmt.Sprintf("%s@%v", name, time.Since(a.began)))
	answer := a.answer[name]
	a.mu.Unlock()
	if answer == nil {
		return []byte("no"), 1, nil
	}
	code, err := answer()
	return []byte("no"), code, err
}

func (a *app) event(c *v1.Container, eventType, reason, message string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.events = append(a.events, reason+": "+message)
}

// from makes a command succeed from d after the start.
func (a *app) from(command string, d time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.answer[command] = func() (int, error) {
		if time.Since(a.began) < d {
			return 1, nil
		}
		return 0, nil
	}
}

func (a *app) run(id, spec string, previous *Result) {
	a.t.Helper()
	a.set.Sync("127.0.0.1", []Target{{Container: parseContainer(a.t, spec), ContainerID: id, StartedAt: a.began, Previous: previous}})
}

// at moves the clock to d after the start and returns the result then.
func (a *app) at(d time.Duration) Result {
	time.Sleep(d - time.Since(a.began))
	synctest.Wait()
	return a.set.Results()["app"]
}

func (a *app) attempts() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return strings.Join(a.log, " ")
}

func (a *app) changed() bool {
	select {
	case <-a.set.Changed():
		return true
	default:
		return false
	}
}

func parseContainer(t *testing.T, spec string) *v1.Container {
	t.Helper()
	c := &v1.Container{Name: "app"}
	if err := yaml.UnmarshalStrict([]byte(spec), c); err != nil {
		t.Fatal(err)
	}
	return c
}

func probe(kind, command, more string) string {
	return kind + "Probe: {exec: {command: [" + command + "]}, periodSeconds: 10, timeoutSeconds: 1, successThreshold: 1, failureThreshold: 3" + more + "}"
}

func TestAContainerWithoutProbesIsStartedReadyAndAlive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newApp(t)
		a.run("c1", "{}", nil)
		if r := a.at(time.Hour); !r.Started || !r.Ready || !r.Alive || r.ContainerID != "c1" {
			t.Errorf("result %+v", r)
		}
	})
}

func TestReadinessIsLookedForAtOnceAndThenAtDoublingGaps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newApp(t)
		a.from("r", time.Second)
		a.run("c1", probe("readiness", "r", ""), nil)
		if r := a.at(900 * time.Millisecond); r.Ready || !r.Started || r.Kind != Readiness || r.Message != "no" {
			t.Errorf("before its success: %+v", r)
		}
		if a.changed() {
			t.Error("an early failure woke the worker")
		}
		if r := a.at(2 * time.Second); !r.Ready || r.Message != "" {
			t.Errorf("after its success: %+v", r)
		}
		if !a.changed() {
			t.Error("readiness did not wake the worker")
		}
		a.at(25 * time.Second)
		const want = "r@0s r@100ms r@300ms r@700ms r@1.5s r@11.5s r@21.5s"
		if got := a.attempts(); got != want {
			t.Errorf("attempts\n got %s\nwant %s", got, want)
		}
		if len(a.events) > 0 {
			t.Errorf("early failures made events: %v", a.events)
		}
	})
}

func TestEarlyFailuresDoNotCount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newApp(t)
		a.run("c1", probe("startup", "s", ", terminationGracePeriodSeconds: 5"), nil)
		// Ten periods of early attempts fail, and three that count.
		if r := a.at(29 * time.Second); !r.Alive || r.Started || r.Ready || r.Kind != Startup {
			t.Errorf("before failureThreshold * periodSeconds: %+v", r)
		}
		r := a.at(31 * time.Second)
		if r.Alive || r.Kind != Startup || r.Message != "no" || r.Grace == nil || *r.Grace != 5 {
			t.Errorf("after failureThreshold * periodSeconds: %+v", r)
		}
		if !a.changed() {
			t.Error("the failure did not wake the worker")
		}
		if len(a.events) != 3 || a.events[0] != "Unhealthy: Startup probe failed: no" {
			t.Errorf("events %v", a.events)
		}
		n := len(a.log)
		if a.at(time.Hour); len(a.log) != n {
			t.Error("a container that is given up is still probed")
		}
	})
}

func TestStartupHoldsBackReadinessAndLiveness(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newApp(t)
		a.from("s", 5*time.Second)
		a.from("r", 0)
		a.from("l", 0)
		a.run("c1", "{"+strings.Join([]string{probe("startup", "s", ""), probe("readiness", "r", ", initialDelaySeconds: 2"), probe("liveness", "l", "")}, ", ")+"}", nil)
		if r := a.at(6 * time.Second); r.Started || r.Ready {
			t.Errorf("while starting: %+v", r)
		}
		if r := a.at(7 * time.Second); !r.Started || !r.Ready {
			t.Errorf("once started: %+v", r)
		}
		a.at(17 * time.Second)
		const want = "s@0s s@100ms s@300ms s@700ms s@1.5s s@3.1s s@6.3s r@6.3s"
		if got := a.attempts(); !strings.HasPrefix(got, want+" ") || strings.Count(got, "s@") != 7 {
			t.Errorf("attempts\n got %s\nwant %s and then r and l at 16.3s", got, want)
		}
		if strings.Count(a.attempts(), "l@16.3s") != 1 {
			t.Errorf("liveness begins a period after the start: %s", a.attempts())
		}
	})
}

func TestLivenessFailsForGoodAfterItsThreshold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newApp(t)
		a.run("c1", probe("liveness", "l", ", initialDelaySeconds: 3"), nil)
		if r := a.at(22 * time.Second); !r.Alive || !r.Ready || r.Kind != Liveness {
			t.Errorf("below the threshold: %+v", r)
		}
		if r := a.at(24 * time.Second); r.Alive || r.Message != "no" || r.Grace != nil {
			t.Errorf("at the threshold: %+v", r)
		}
		a.at(time.Hour)
		if got, want := a.attempts(), "l@3s l@13s l@23s"; got != want {
			t.Errorf("attempts %s, want %s", got, want)
		}

		// The next instance begins anew.
		a.from("l", 0)
		a.run("c2", probe("liveness", "l", ""), nil)
		if r := a.at(2 * time.Hour); !r.Alive || r.ContainerID != "c2" || r.Message != "" {
			t.Errorf("the next instance: %+v", r)
		}
	})
}

func TestThresholdsAskForOutcomesInARow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newApp(t)
		a.from("r", 0)
		spec := strings.NewReplacer("successThreshold: 1", "successThreshold: 2", "failureThreshold: 3", "failureThreshold: 2").Replace(probe("readiness", "r", ""))
		a.run("c1", spec, nil)
		if a.at(9 * time.Second).Ready {
			t.Error("ready after one success of two")
		}
		if !a.at(11 * time.Second).Ready {
			t.Error("not ready after two successes a period apart")
		}
		a.from("r", 25*time.Second) // one failure, at 20 s
		if !a.at(31 * time.Second).Ready {
			t.Error("not ready after one failure of two")
		}
		a.from("r", time.Hour) // failures at 40 s and 50 s
		if !a.at(41 * time.Second).Ready {
			t.Error("not ready after one failure in a row")
		}
		if a.at(51 * time.Second).Ready {
			t.Error("ready after two failures in a row")
		}
	})
}

func TestResultsSurviveARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newApp(t)
		a.from("r", 0)
		spec := "{" + probe("startup", "s", "") + ", " + probe("readiness", "r", "") + "}"
		a.run("c1", spec, &Result{ContainerID: "c1", Started: true, Ready: true, Alive: true})
		if r := a.set.Results()["app"]; !r.Started || !r.Ready {
			t.Errorf("a restart lost the result: %+v", r)
		}
		a.at(11 * time.Second)
		if got := a.attempts(); !strings.HasPrefix(got, "r@") || strings.Contains(got, "s@") {
			t.Errorf("attempts %s, want r within a period and no s", got)
		}
		if a.changed() {
			t.Error("a restart woke the worker for nothing")
		}
	})
}

func TestAResumedProbeIsDueAfterAPartOfItsPeriod(t *testing.T) {
	now := time.Now()
	s := resumedSchedule(&v1.Probe{PeriodSeconds: 20}, now, 0.25)
	if at, counts := s.next(); !at.Equal(now.Add(5*time.Second)) || !counts {
		t.Errorf("next in %s, counts %t", at.Sub(now), counts)
	}
}

func TestAnotherContainersPreviousResultIsNotUsed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newApp(t)
		a.run("c2", probe("readiness", "r", ""), &Result{ContainerID: "c1", Started: true, Ready: true, Alive: true})
		if a.at(time.Second).Ready {
			t.Error("ready by what was said of another container")
		}
	})
}

func TestAContainerGivenUpBeforeARestartStaysGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newApp(t)
		a.from("l", 0)
		a.run("c1", probe("liveness", "l", ""), &Result{ContainerID: "c1", Started: true, Ready: true, Kind: Liveness, Message: "dead"})
		if r := a.at(time.Hour); r.Alive || r.Message != "dead" || a.attempts() != "" {
			t.Errorf("result %+v, attempts %s", r, a.attempts())
		}
	})
}

func TestATerminatingPodIsOnlyAskedForReadiness(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newApp(t)
		a.from("r", 0)
		a.run("c1", "{"+probe("readiness", "r", "")+", "+probe("liveness", "l", "")+"}", nil)
		a.at(time.Second)
		a.set.StopLiveness()
		if r := a.at(time.Hour); !r.Alive || !r.Ready {
			t.Errorf("result %+v", r)
		}
		if got := a.attempts(); strings.Contains(got, "l@") || !strings.Contains(got, "r@10s r@20s") {
			t.Errorf("attempts %.80s", got)
		}
	})
}

func TestAContainerThatIsGoneIsNotProbed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newApp(t)
		a.run("c1", probe("readiness", "r", ""), nil)
		a.at(time.Second)
		a.set.Sync("127.0.0.1", nil)
		n := len(a.log)
		a.at(time.Hour)
		if len(a.log) != n || len(a.set.Results()) != 0 {
			t.Errorf("still %v, %d attempts more", a.set.Results(), len(a.log)-n)
		}
	})
}

func TestAnAttemptUnderWayWhenItsContainerGoesIsForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newApp(t)
		release := make(chan struct{})
		a.answer["r"] = func() (int, error) { <-release; return 0, nil }
		a.run("c1", probe("readiness", "r", ""), nil)
		a.at(time.Second)
		a.answer["r"] = nil
		a.run("c2", probe("readiness", "r", ""), nil)
		close(release)
		if r := a.at(2 * time.Second); r.Ready || r.ContainerID != "c2" {
			t.Errorf("result %+v", r)
		}
	})
}

func TestAProbeThatCannotBeCarriedOutChangesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newApp(t)
		a.answer["l"] = func() (int, error) { return 0, errors.New("runtime is away") }
		a.run("c1", probe("liveness", "l", ""), nil)
		if r := a.at(45 * time.Second); !r.Alive || r.Message != "runtime is away" {
			t.Errorf("result %+v", r)
		}
		if len(a.events) != 4 || a.events[0] != "Unhealthy: Liveness probe errored and resulted in unknown state: runtime is away" {
			t.Errorf("events %q", a.events)
		}
	})
}

func TestACommandThatTakesTooLongHasFailed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newApp(t)
		a.answer["l"] = func() (int, error) { return 0, context.DeadlineExceeded }
		a.run("c1", probe("liveness", "l", ""), nil)
		if r := a.at(31 * time.Second); r.Alive || r.Message != `command timed out: "l" timed out after 1s` {
			t.Errorf("result %+v", r)
		}
	})
}

func TestStopEndsEverything(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newApp(t)
		a.run("c1", probe("readiness", "r", ""), nil)
		a.at(time.Second)
		a.set.Stop()
		a.run("c2", probe("readiness", "r", ""), nil)
		n := len(a.log)
		if a.at(time.Hour); len(a.log) != n {
			t.Errorf("%d attempts after Stop", len(a.log)-n)
		}
	})
}
