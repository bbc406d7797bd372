// Package podreport writes the statuses of a node's pods into the API, and takes
// a pod's object away when it is being deleted and nothing of the pod is left.
// It is level driven: what was not written yet is compared and written again.
package podreport

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	corev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/util/workqueue"

	"github.com/berth-io/berth/agent/manifest"
	"github.com/berth-io/berth/agent/worker"
	"github.com/berth-io/berth/internal/failpoint"
)

// Pods are the API server's pods, as they were last seen.
type Pods interface {
	Get(namespace, name string) (*v1.Pod, bool)
}

// Counts are what is counted of the statuses (agent/metrics).
type Counts interface {
	// StatusWritten: the API server has what a pod's status has become, so long
	// after it has.
	StatusWritten(took time.Duration)
	// PodStarted: the API server has that all containers of a new pod run, whose
	// images were pulled for so long.
	PodStarted(pod *v1.Pod, pulled time.Duration)
}

// Config of a Reporter.
type Config struct {
	Client corev1.PodsGetter
	Pods   Pods
	Counts Counts // nil: nobody counts
	Log    *slog.Logger
}

const (
	// parallel requests keep a burst of pods from waiting for one another; more
	// only wait in the API server.
	parallel       = 4
	requestTimeout = 30 * time.Second
	longestPause   = 30 * time.Second
	// A status that says no more than that a pod is on its way waits, the longer
	// the more pods are on theirs. Most of them run before it is over, and need
	// one request in place of three: in a burst the API server has its hands full.
	// The most is what the kubelet takes to write what it could not write at once
	// (pkg/kubelet/status/status_manager.go, syncPeriod).
	hold     = 500 * time.Millisecond
	holdEach = 100 * time.Millisecond
	holdMost = 10 * time.Second
)

// Reporter is the only one that writes the status of this node's pods.
type Reporter struct {
	config Config
	queue  workqueue.TypedRateLimitingInterface[types.UID]

	mu   sync.Mutex
	pods map[types.UID]*pod
	// onTheirWay counts the pods whose report says that they are.
	onTheirWay int
}

// pod is what is known of one. Its sent and gone belong to who works on it.
type pod struct {
	report worker.Report
	// onItsWay, of the report: all containers are about to start.
	onItsWay bool
	seen     *v1.Pod // the object that was last compared
	sent     *v1.Pod // what the API server made of seen when it was told last
	// gone is the object that was let go. It is there until its finalizers are
	// done, and until the watch has told that it is not.
	gone types.UID
	// since is when the report became another than what the API server was told
	// last; zero: it has not.
	since   time.Time
	startup startup
}

// startup is how far a pod is in starting for the first time.
type startup int

const (
	unseen   startup = iota
	starting         // its object came without a status of a node's
	started          // it runs, or an agent before this one has begun with it
)

// New returns a Reporter; Run reports.
func New(c Config) *Reporter {
	return &Reporter{
		config: c, pods: map[types.UID]*pod{},
		queue: workqueue.NewTypedRateLimitingQueue(
			workqueue.NewTypedItemExponentialFailureRateLimiter[types.UID](50*time.Millisecond, longestPause)),
	}
}

// Report takes what a worker says of its pod. It waits for nothing.
func (r *Reporter) Report(report worker.Report) {
	uid := report.Pod.UID
	r.mu.Lock()
	p := r.pods[uid]
	if p == nil {
		p = &pod{}
		r.pods[uid] = p
	}
	r.count(p, onItsWay(report.Pod))
	p.report = report
	if p.since.IsZero() {
		p.since = time.Now()
	}
	r.enqueue(p)
	r.mu.Unlock()
}

// count notes whether a pod is on its way. Its caller holds mu.
func (r *Reporter) count(p *pod, onItsWay bool) {
	switch {
	case onItsWay && !p.onItsWay:
		r.onTheirWay++
	case !onItsWay && p.onItsWay:
		r.onTheirWay--
	}
	p.onItsWay = onItsWay
}

// enqueue has a pod compared. Its caller holds mu.
func (r *Reporter) enqueue(p *pod) {
	if p.onItsWay {
		r.queue.AddAfter(p.report.Pod.UID, r.hold())
		return
	}
	r.queue.Add(p.report.Pod.UID)
}

// hold is how long a report waits now that says no more than that its pod is on
// its way. Its caller holds mu.
func (r *Reporter) hold() time.Duration {
	return min(hold+time.Duration(r.onTheirWay-1)*holdEach, holdMost)
}

// onItsWay tells whether a pod's containers are about to start, all of them for
// the first time, and nothing is wrong.
func onItsWay(pod *v1.Pod) bool {
	s := &pod.Status
	if s.Phase != v1.PodPending || s.Reason != "" || pod.DeletionTimestamp != nil {
		return false
	}
	containers := slices.Concat(s.InitContainerStatuses, s.ContainerStatuses, s.EphemeralContainerStatuses)
	return len(containers) > 0 && !slices.ContainsFunc(containers, func(c v1.ContainerStatus) bool {
		return c.State.Waiting == nil || c.LastTerminationState.Terminated != nil ||
			c.State.Waiting.Reason != "ContainerCreating" && c.State.Waiting.Reason != "PodInitializing"
	})
}

// PodsChanged tells that the API server's pods have changed: those whose object
// is another than the one last compared are compared again.
func (r *Reporter) PodsChanged() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range r.pods {
		if r.object(p.report.Pod) != p.seen {
			r.enqueue(p)
		}
	}
}

// Forget drops a pod whose worker is done.
func (r *Reporter) Forget(uid types.UID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if p := r.pods[uid]; p != nil {
		r.count(p, false)
		delete(r.pods, uid)
	}
}

// Run writes until ctx ends, and returns its error.
func (r *Reporter) Run(ctx context.Context) error {
	var group errgroup.Group
	for range parallel {
		group.Go(func() error {
			for r.next(ctx) {
			}
			return nil
		})
	}
	<-ctx.Done()
	r.queue.ShutDown()
	_ = group.Wait() // none returns an error
	return ctx.Err()
}

func (r *Reporter) next(ctx context.Context) bool {
	uid, ended := r.queue.Get()
	if ended {
		return false
	}
	defer r.queue.Done(uid)
	err := r.sync(ctx, uid)
	switch {
	case err == nil:
		r.queue.Forget(uid)
	case ctx.Err() == nil:
		r.config.Log.Warn("what became of a pod is not in the API yet; it is tried again", "uid", uid, "err", err)
		r.queue.AddRateLimited(uid)
	}
	return true
}

// object is the API's object of a pod: itself, or the mirror of a static one;
// nil: there is none.
func (r *Reporter) object(p *v1.Pod) *v1.Pod {
	o, ok := r.config.Pods.Get(p.Namespace, p.Name)
	if !ok {
		return nil
	}
	if manifest.Static(p) {
		if o.Annotations[manifest.AnnotationConfigMirror] != string(p.UID) {
			return nil
		}
		return o
	}
	if o.UID != p.UID {
		return nil
	}
	return o
}

func (r *Reporter) sync(ctx context.Context, uid types.UID) error {
	r.mu.Lock()
	p := r.pods[uid]
	if p == nil {
		r.mu.Unlock()
		return nil
	}
	if rest := r.hold() - time.Since(p.since); p.onItsWay && rest > 0 { // more are on their way since it was put off
		r.queue.AddAfter(uid, rest)
		r.mu.Unlock()
		return nil
	}
	report, sent, since := p.report, p.sent, p.since
	object := r.object(report.Pod)
	stale := sent != nil && p.seen == object // the watch has not told yet what was sent
	p.seen = object
	if !stale {
		p.sent = nil
	}
	if object != nil && p.startup == unseen {
		p.startup = started
		if object.Status.StartTime == nil && !manifest.Static(report.Pod) {
			p.startup = starting
		}
	}
	r.mu.Unlock()
	if object == nil {
		return nil
	}
	if stale {
		object = sent
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	next := Merge(report.Pod.Status, object.Status)
	if !equality.Semantic.DeepEqual(next, object.Status) {
		written, err := r.patch(ctx, object, next)
		if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
			return nil // the object is gone, or another of its name is there: the watch will tell
		}
		if err != nil {
			return fmt.Errorf("write the status of pod %s/%s: %w", object.Namespace, object.Name, err)
		}
		failpoint.Hit("agent/status-reported")
		r.mu.Lock()
		p.sent = written
		r.mu.Unlock()
		object = written
		if r.config.Counts != nil && !since.IsZero() {
			r.config.Counts.StatusWritten(time.Since(since))
		}
	}
	r.told(p, report, object)
	if !report.Settled || p.gone == object.UID || !mayGo(report.Pod, object) {
		return nil
	}
	if err := r.remove(ctx, object); err != nil {
		return err
	}
	failpoint.Hit("agent/pod-let-go")
	p.gone = object.UID
	return nil
}

// told notes that the API server has a report.
func (r *Reporter) told(p *pod, report worker.Report, object *v1.Pod) {
	r.mu.Lock()
	if p.report == report {
		p.since = time.Time{}
	} else {
		p.since = time.Now() // it has changed meanwhile
	}
	begins := p.startup == starting && allRun(&object.Status)
	if begins || terminal(object) {
		p.startup = started
	}
	r.mu.Unlock()
	if begins && r.config.Counts != nil {
		r.config.Counts.PodStarted(object, report.Pulled)
	}
}

// allRun tells whether every container of a pod runs.
func allRun(s *v1.PodStatus) bool {
	return len(s.ContainerStatuses) > 0 && !slices.ContainsFunc(s.ContainerStatuses, func(c v1.ContainerStatus) bool {
		return c.State.Running == nil || c.State.Running.StartedAt.IsZero()
	})
}

func terminal(pod *v1.Pod) bool {
	return pod.Status.Phase == v1.PodSucceeded || pod.Status.Phase == v1.PodFailed
}

// mayGo tells whether an object waits for its node to let it go. Before that
// everybody has to know how the pod ended. A grace period of zero does not say
// that it was let go: the API server writes it first, and does no more when the
// node or itself dies then.
func mayGo(p, object *v1.Pod) bool {
	return !manifest.Static(p) && object.DeletionTimestamp != nil && terminal(object)
}

func (r *Reporter) patch(ctx context.Context, object *v1.Pod, next v1.PodStatus) (*v1.Pod, error) {
	data, err := statusPatch(object, next)
	if err != nil {
		return nil, err
	}
	return r.config.Client.Pods(object.Namespace).Patch(ctx, object.Name, types.StrategicMergePatchType, data, metav1.PatchOptions{}, "status")
}

// statusPatch says what changed. The UID in it makes the API server refuse it
// for another pod of that name.
func statusPatch(object *v1.Pod, next v1.PodStatus) ([]byte, error) {
	before, err := json.Marshal(v1.Pod{Status: object.Status})
	if err != nil {
		return nil, err
	}
	after, err := json.Marshal(v1.Pod{ObjectMeta: metav1.ObjectMeta{UID: object.UID}, Status: next})
	if err != nil {
		return nil, err
	}
	return strategicpatch.CreateTwoWayMergePatch(before, after, v1.Pod{})
}

func (r *Reporter) remove(ctx context.Context, object *v1.Pod) error {
	err := r.config.Client.Pods(object.Namespace).Delete(ctx, object.Name, metav1.DeleteOptions{
		GracePeriodSeconds: new(int64), Preconditions: &metav1.Preconditions{UID: &object.UID},
	})
	if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
		return fmt.Errorf("let the object of pod %s/%s go: %w", object.Namespace, object.Name, err)
	}
	return nil
}
