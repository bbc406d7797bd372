package main

import (
	"context"
	"fmt"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/berth-io/berth/tests/harness"
	"github.com/berth-io/berth/tests/measure"
)

// creators send the pods of a burst: one by one they would take longer than a
// node may.
const creators = 8

// timed returns the milliseconds that do took.
func (s *side) timed(do func()) float64 {
	start := time.Now()
	do()
	return measure.Milliseconds(time.Since(start))
}

// together has what a number of pods took, in seconds.
type together struct {
	what    string
	count   int
	seconds [2]float64
	goal    bool
	// spent says which programs used how much CPU, of the whole machine.
	spent [2]string
}

// measureBursts makes the pods of Berth first: idle, they cost the other side
// nearly nothing. They stay.
func measureBursts(t harness.TB, sides [2]*side, count int) together {
	r := together{what: "burst of %d pods, all Ready, s", count: count, goal: true}
	for turn, s := range sides {
		ctx, cancel := within()
		w := s.watch(ctx)
		before := measure.SpentSoFar()
		r.seconds[turn] = s.timed(func() {
			failed := s.createAll(ctx, count)
			are := map[string]bool{}
			s.await(ctx, w, "burst Ready", func(e watch.EventType, p *corev1.Pod) bool {
				if ready(e, p) {
					are[p.Name] = true
				}
				return len(are) == count
			})
			if err := <-failed; err != nil {
				t.Fatalf("%s: %v", s.name, err)
			}
		}) / 1000
		r.spent[turn] = measure.SpentSoFar().Since(before)
		w.Stop()
		cancel()
	}
	return r
}

// createAll sends pods without waiting for them; the channel has the first
// error once all are sent. Those who wait for the pods would wait in vain
// after one, until their time is over.
func (s *side) createAll(ctx context.Context, count int) <-chan error {
	pods := make(chan *corev1.Pod, count)
	for range count {
		pods <- s.pod()
	}
	close(pods)
	errs := make(chan error, count+1)
	var all sync.WaitGroup
	for range creators {
		all.Go(func() {
			for p := range pods {
				if _, err := s.pods.Create(ctx, p, metav1.CreateOptions{}); err != nil {
					errs <- fmt.Errorf("create pod %s: %w", p.Name, err)
				}
			}
		})
	}
	go func() {
		all.Wait()
		errs <- nil
	}()
	return errs
}

// measureEnd deletes all pods of each side.
func measureEnd(t harness.TB, sides [2]*side) together {
	r := together{what: "the %d pods deleted → gone, s"}
	for turn, s := range sides {
		ctx, cancel := within()
		selector := sideLabel + "=" + s.name
		list, err := s.pods.List(ctx, metav1.ListOptions{LabelSelector: selector})
		if err != nil {
			t.Fatalf("list the pods of %s: %v", s.name, err)
		}
		left := len(list.Items)
		r.count = left
		w := s.watch(ctx)
		r.seconds[turn] = s.timed(func() {
			if err := s.pods.DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{LabelSelector: selector}); err != nil {
				t.Fatalf("delete the pods of %s: %v", s.name, err)
			}
			s.await(ctx, w, "all pods gone", func(e watch.EventType, p *corev1.Pod) bool {
				if gone(e, p) {
					left--
				}
				return left == 0
			})
		}) / 1000
		w.Stop()
		cancel()
	}
	return r
}

func (r together) print() {
	goal := ""
	if rate := float64(r.count) / r.seconds[0]; r.goal {
		goal = fmt.Sprintf("%.1f pods/s, goal ≥ 25: %s", rate, verdict(rate >= 25))
	}
	printRow(fmt.Sprintf(r.what, r.count), "%.2f", r.seconds[0], r.seconds[1], goal)
	if r.goal {
		fmt.Printf("    CPU, s: [%s]\n            [%s]\n", r.spent[0], r.spent[1])
	}
}
