package dispatch_test

import (
	"context"
	"slices"
	"testing"
	"testing/synctest"

	v1 "k8s.io/api/core/v1"

	"github.com/berth-io/berth/agent/admit"
	"github.com/berth-io/berth/agent/dispatch"
	"github.com/berth-io/berth/agent/internal/fakecri"
)

// slow is somebody who takes his time to answer for the pods of its map.
type slow struct {
	answers map[string]chan *admit.Rejection // by UID
	asked   map[string]context.Context
	others  map[string][]string // whom the decision was told of
}

func slowFor(uids ...string) *slow {
	s := &slow{answers: map[string]chan *admit.Rejection{}, asked: map[string]context.Context{}, others: map[string][]string{}}
	for _, uid := range uids {
		s.answers[uid] = make(chan *admit.Rejection)
	}
	return s
}

func (s *slow) admit(pod *v1.Pod, others []*v1.Pod) (admit.Decision, dispatch.Ask) {
	uid := string(pod.UID)
	s.others[uid] = nil
	for _, o := range others {
		s.others[uid] = append(s.others[uid], string(o.UID))
	}
	answers, slow := s.answers[uid]
	if !slow {
		return admit.Decision{}, nil
	}
	return admit.Decision{}, func(ctx context.Context, _ func() []*v1.Pod) dispatch.Admit {
		s.asked[uid] = ctx
		var r *admit.Rejection
		select {
		case r = <-answers:
		case <-ctx.Done():
		}
		return func(*v1.Pod, []*v1.Pod) (admit.Decision, dispatch.Ask) { return admit.Decision{Rejection: r}, nil }
	}
}

func TestAPodForWhichSomebodySlowIsAskedHoldsUpNoOther(t *testing.T) {
	inWorld(t, func(w *world) {
		s := slowFor("1")
		w.admit = s.admit
		w.startAgent()
		w.want(apiPod("slow", "1"), apiPod("quick", "2"))
		w.check("2 0")
		if !slices.Contains(s.others["2"], "1") {
			t.Error("the room of a pod that came before was given away")
		}
		if pods := w.d.Pods(); len(pods) != 2 {
			t.Errorf("%d pods are shown, want 2", len(pods))
		}
		w.want(apiPod("slow", "1"), apiPod("quick", "2"), apiPod("third", "3"))
		w.check("2 0", "3 0")
		s.answers["1"] <- nil
		w.check("1 0", "2 0", "3 0")
	})
}

func TestAPodThatIsRefusedAfterAWhileFails(t *testing.T) {
	inWorld(t, func(w *world) {
		s := slowFor("1")
		w.admit = s.admit
		w.startAgent()
		w.want(apiPod("slow", "1"))
		s.answers["1"] <- &admit.Rejection{Reason: "UnexpectedAdmissionError", Message: "no device"}
		synctest.Wait()
		k := w.d.Worker("default", "slow")
		if k == nil {
			t.Fatal("a pod that was refused is not known")
		}
		if s := k.Pod().Status; s.Phase != v1.PodFailed || s.Reason != "UnexpectedAdmissionError" || s.Message != "Pod was rejected: no device" {
			t.Errorf("its status is %+v", s)
		}
		w.check()
	})
}

func TestAPodThatIsDeletedDoesNotWaitForAnAnswer(t *testing.T) {
	inWorld(t, func(w *world) {
		s := slowFor("1", "2")
		w.admit = s.admit
		w.startAgent()
		w.want(apiPod("slow", "1"), apiPod("forced", "2"))
		w.want(deleted(apiPod("slow", "1"), 30))
		if k := w.d.Worker("default", "slow"); k == nil || !k.Settled() {
			t.Error("a deleted pod that waits for an answer is not let go")
		}
		for _, uid := range []string{"1", "2"} {
			if s.asked[uid].Err() == nil {
				t.Errorf("pod %s is gone, and somebody is still asked for it", uid)
			}
		}
		w.wantGone("2")
		w.want()
		w.wantGone("2", "1")
		w.checkNothingLeft()
	})
}

func TestAPodThatMustWaitForRoomAndIsNotWantedAnyMoreIsForgotten(t *testing.T) {
	inWorld(t, func(w *world) {
		w.runtime.Program("a", fakecri.Program{Stubborn: true})
		w.admit = func(pod *v1.Pod, others []*v1.Pod) (admit.Decision, dispatch.Ask) {
			if pod.UID == "2" && len(others) > 0 {
				return admit.Decision{Victims: []admit.Victim{{Pod: others[0]}}}, nil
			}
			return admit.Decision{}, nil
		}
		w.startAgent()
		w.want(apiPod("first", "1"))
		w.want(apiPod("first", "1"), apiPod("critical", "2"))
		w.check("1 0")
		w.want(apiPod("first", "1"))
		w.wantGone("2")
	})
}
