package worker_test

import (
	"slices"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/berth-io/berth/agent/internal/fakecri"
)

func TestEachEndOfAContainerIsToldOnce(t *testing.T) {
	inWorld(t, func(w *world) {
		var told []string
		w.config.Ended = func(kind string, how *v1.ContainerStateTerminated) {
			told = append(told, kind+" "+strconv.Itoa(int(how.ExitCode)))
		}
		w.runtime.Program("i", fakecri.Program{Exits: true})
		p := pod("web", "a")
		p.Spec.InitContainers = []v1.Container{{Name: "i", Image: "busybox"}}
		w.start(p)
		w.runtime.Exit("a", 3) // starts again at once
		synctest.Wait()
		w.runtime.Exit("a", 4) // waits
		synctest.Wait()
		time.Sleep(20 * time.Second)
		if want := []string{"init_container 0", "container 3", "container 4"}; !slices.Equal(told, want) {
			t.Errorf("told %q, want %q", told, want)
		}
	})
}

func TestAPodThatDoesNotStartIsToldOnce(t *testing.T) {
	inWorld(t, func(w *world) {
		told := 0
		w.config.NotStarted = func(*v1.Pod) { told++ }
		w.runtime.Program("a", fakecri.Program{StartError: "no such file"})
		w.start(pod("web", "a"))
		time.Sleep(time.Minute)
		if told != 1 {
			t.Errorf("told %d times", told)
		}
	})
}
