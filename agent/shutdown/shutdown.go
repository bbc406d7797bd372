// Package shutdown ends the node's pods in the order of their priorities when
// the host goes down, by the kubelet's rules and with its words
// (pkg/kubelet/nodeshutdown).
//
//	plan.go      who ends when, and with which grace period: pure
//	shutdown.go  ends one group after the other
//
// Who learns that the host goes down calls Stop.
package shutdown

import (
	"context"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/berth-io/berth/agent/disruption"
)

// check is how often it is looked whether a group has ended. It is only done
// while the host goes down.
const check = 100 * time.Millisecond

// Pods knows the pods of this node.
type Pods interface {
	// Active are the pods that were admitted and have not ended.
	Active() []*v1.Pod
	// Finished tells whether nothing of a pod runs and its volumes are gone.
	Finished(uid types.UID) bool
	// Stop asks the pod's worker to end it. It does not wait.
	Stop(uid types.UID, stop disruption.Stop)
}

// Stopper ends all pods.
type Stopper struct {
	periods []Period
	pods    Pods
	log     *slog.Logger
	now     atomic.Bool
}

// New returns a Stopper with the periods of Settings.Periods.
func New(periods []Period, pods Pods, log *slog.Logger) *Stopper {
	return &Stopper{periods: periods, pods: pods, log: log}
}

// ShuttingDown tells whether the pods are being ended or have been: no pod is
// admitted then, and the node is not ready.
func (s *Stopper) ShuttingDown() bool { return s.now.Load() }

// Stop ends one group of pods after the other and returns when they have ended
// or their time is over. When ctx ends first, the host does not go down after
// all: what has not been asked to end runs on.
func (s *Stopper) Stop(ctx context.Context) error {
	s.now.Store(true)
	for _, g := range Plan(s.periods, s.pods.Active()) {
		if err := ctx.Err(); err != nil {
			s.now.Store(false)
			return err
		}
		for _, e := range g.Ends {
			s.pods.Stop(e.Pod.UID, e.Stop)
		}
		if left := s.await(ctx, g); left > 0 {
			s.log.Warn("pods have not ended in their time", "priority", g.Priority, "seconds", g.Seconds, "pods", left)
		}
	}
	if err := ctx.Err(); err != nil {
		s.now.Store(false)
		return err
	}
	return nil
}

// await returns how many have not ended when the group's time is over.
func (s *Stopper) await(ctx context.Context, g Group) int {
	ctx, cancel := context.WithTimeout(ctx, time.Duration(g.Seconds)*time.Second)
	defer cancel()
	tick := time.NewTicker(check)
	defer tick.Stop()
	left := slices.Clone(g.Ends)
	for {
		left = slices.DeleteFunc(left, func(e End) bool { return s.pods.Finished(e.Pod.UID) })
		if len(left) == 0 {
			return 0
		}
		select {
		case <-ctx.Done():
			return len(left)
		case <-tick.C:
		}
	}
}
