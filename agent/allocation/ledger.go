// Package allocation owns what the node has given to its pods. A pod that is
// resized gets what it wants when there is room beside the others, and waits
// for it otherwise (kubelet: pkg/kubelet/allocation).
//
// The Ledger is the one place that sees all pods: whether a pod may start or
// grow is decided under its lock, so that no two get the same room. It writes
// nothing: what a pod is allocated is kept by the pod's worker, which tells the
// ledger of each change of its pod and is woken when its answer changes.
//
//	resources.go  the resources of a pod that may change
//	ledger.go     who has what, and who waits
//	decide.go     whether a resize is possible, and who is first
package allocation

import (
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
)

// Outcome of a request to resize a pod.
type Outcome int

// A deferred resize waits for room. An infeasible one waits for nothing.
const (
	Undecided Outcome = iota
	Allocated
	Deferred
	Infeasible
)

// Verdict is the answer to a request to resize a pod.
type Verdict struct {
	Outcome Outcome
	Message string // why not, for the pod's condition
}

// Counts are what is counted of resizes (agent/metrics).
type Counts interface {
	ResizeInfeasible(reason string)
	// ResizeAccepted: one that waited has room, which was seen because of that.
	ResizeAccepted(trigger string)
}

// Config of a Ledger.
type Config struct {
	// Fits tells whether a pod has room on the node beside the others, whose
	// specs have what they are allocated, and if not, why. It must not call the
	// ledger, nor wait for anything.
	Fits func(pod *v1.Pod, others []*v1.Pod) (message string, ok bool)
	// StaticCPU and StaticMemory: those managers' policies are static. A
	// guaranteed pod then keeps what it has of that resource.
	StaticCPU, StaticMemory bool
	// Swaps tells whether a container of the pod may use swap; nil: none may.
	Swaps  func(pod *v1.Pod, container *v1.Container) bool
	Counts Counts // nil: nobody counts
}

// Ledger has the node's pods. Its methods may be called by anyone.
type Ledger struct {
	config Config

	mu   sync.Mutex
	pods map[string]*entry // by UID
}

// entry is one pod.
type entry struct {
	pod  *v1.Pod // as allocated, with its status
	wake func()  // nil: nobody waits yet
	// wanted is the pod as it wants to become; nil: it wants nothing else.
	wanted  *v1.Pod
	verdict Verdict   // about wanted
	since   time.Time // it has been deferred
}

// counted is the pod as the others have to reckon with it. With the resources
// granted in the spec and the old status it counts the larger of both.
func (e *entry) counted() *v1.Pod {
	if e.wanted != nil && e.verdict.Outcome == Allocated {
		return Of(e.wanted).In(e.pod)
	}
	return e.pod
}

// NewLedger returns a ledger without pods.
func NewLedger(c Config) *Ledger { return &Ledger{config: c, pods: map[string]*entry{}} }

// Admit adds a new pod if check, which is given all others and called under
// the ledger's lock, lets it.
func (l *Ledger) Admit(pod *v1.Pod, check func(others []*v1.Pod) bool) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !check(l.others(string(pod.UID))) {
		return false
	}
	if l.pods[string(pod.UID)] == nil {
		l.pods[string(pod.UID)] = &entry{pod: pod}
	}
	return true
}

// Set tells what a pod is now: what it is allocated, what it has, whether it
// has ended. What it no longer has is offered to those who wait. Wake is called
// when the answer to the pod's Resize has changed; it must not wait.
func (l *Ledger) Set(pod *v1.Pod, wake func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.pods[string(pod.UID)]
	if e == nil {
		l.pods[string(pod.UID)] = &entry{pod: pod, wake: wake}
		return
	}
	before := e.counted()
	e.pod, e.wake = pod, wake
	if e.wanted != nil && Of(pod).Equal(Of(e.wanted)) {
		e.wanted, e.verdict = nil, Verdict{} // it has taken what it was given
	}
	if gaveBack(before, e.counted()) {
		trigger := podResized
		if pod.Status.Phase == v1.PodSucceeded || pod.Status.Phase == v1.PodFailed {
			trigger = podTerminated
		}
		l.retry(trigger)
	}
}

// Resize asks for other resources for a pod. Asked again for the same, it
// tells what has become of it.
func (l *Ledger) Resize(wanted *v1.Pod) Verdict {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.pods[string(wanted.UID)]
	if e == nil {
		return Verdict{Outcome: Deferred, Message: "the pod is not known yet"}
	}
	if e.wanted != nil && Of(e.wanted).Equal(Of(wanted)) {
		return e.verdict
	}
	if e.verdict.Outcome != Deferred {
		e.since = time.Time{}
	}
	e.wanted, e.verdict = wanted, Verdict{}
	l.retry(podUpdated)
	return e.verdict
}

// Withdraw takes a request back.
func (l *Ledger) Withdraw(uid string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.pods[uid]
	if e == nil || e.wanted == nil {
		return
	}
	granted := e.verdict.Outcome == Allocated
	e.wanted, e.verdict = nil, Verdict{}
	if granted {
		l.retry(podUpdated)
	}
}

// Remove forgets a pod of which nothing is left.
func (l *Ledger) Remove(uid string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, known := l.pods[uid]; !known {
		return
	}
	delete(l.pods, uid)
	l.retry(podsRemoved)
}

// Retry decides anew about those who wait: what the node can give has changed.
func (l *Ledger) Retry() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.retry(periodic)
}

// Pods returns all pods that have not ended, with what they are allocated.
func (l *Ledger) Pods() []*v1.Pod {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.others("")
}
