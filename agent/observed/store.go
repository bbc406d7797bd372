package observed

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-io/berth/agent/podspec"
)

// Runtime is the part of the CRI that tells what runs.
type Runtime interface {
	ListPodSandbox(context.Context, *runtimeapi.ListPodSandboxRequest, ...grpc.CallOption) (*runtimeapi.ListPodSandboxResponse, error)
	PodSandboxStatus(context.Context, *runtimeapi.PodSandboxStatusRequest, ...grpc.CallOption) (*runtimeapi.PodSandboxStatusResponse, error)
	ListContainers(context.Context, *runtimeapi.ListContainersRequest, ...grpc.CallOption) (*runtimeapi.ListContainersResponse, error)
	ContainerStatus(context.Context, *runtimeapi.ContainerStatusRequest, ...grpc.CallOption) (*runtimeapi.ContainerStatusResponse, error)
	GetContainerEvents(context.Context, *runtimeapi.GetEventsRequest, ...grpc.CallOption) (grpc.ServerStreamingClient[runtimeapi.ContainerEventResponse], error)
}

// Counts are what is counted of the questions to the runtime (agent/metrics).
type Counts interface {
	// Relisted: everything was asked for, so long after the last time; zero: it
	// was the first.
	Relisted(took, after time.Duration)
	PodRelisted(took time.Duration)
	// Following: the runtime's events were asked for.
	Following(err error)
	// RuntimeTold: an event came, so long after it was made.
	RuntimeTold(delay time.Duration)
}

// Config of a Store.
type Config struct {
	Runtime Runtime
	// Relist is the interval of the full relist that backs up the event
	// stream (minutes). A runtime without events is relisted every second.
	Relist time.Duration
	// Changed is called, without locks held, after a pod's observation changed.
	Changed func(podUID string)
	Counts  Counts // nil: nobody counts
	Log     *slog.Logger
}

// Store keeps the newest observation of each pod.
type Store struct {
	config Config
	synced chan struct{}
	failed chan struct{}  // capacity one: a pod was asked about in vain
	asks   sync.WaitGroup // what Run started
	// eventless: the runtime had no events when it was asked last.
	eventless atomic.Bool

	mu sync.Mutex
	// pods has for a while also those that are gone, as observations of nothing:
	// a late event must not bring them back.
	pods   map[string]Pod
	asking map[string]bool // by pod UID: being asked about; true: once more after that
	asked  time.Time       // when a question was last begun
	listed time.Time       // when everything was last asked for
}

// callTimeout bounds one question to the runtime: they are answered from
// memory, so that a late answer means a hung runtime.
const callTimeout = 10 * time.Second

// New returns an empty store; Run fills it.
func New(c Config) *Store {
	return &Store{
		config: c, synced: make(chan struct{}), failed: make(chan struct{}, 1),
		pods: map[string]Pod{}, asking: map[string]bool{},
	}
}

// Synced is closed once the store has seen everything the runtime has.
// Nothing destructive may be decided before.
func (s *Store) Synced() <-chan struct{} { return s.synced }

// Pod returns the newest observation of a pod; the zero Pod means that the
// runtime knows nothing of it.
func (s *Store) Pod(uid string) Pod {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.pods[uid]
}

// UIDs lists the pods that the runtime has anything of.
func (s *Store) UIDs() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	uids := make([]string, 0, len(s.pods))
	for uid, p := range s.pods {
		if !p.gone() {
			uids = append(uids, uid)
		}
	}
	return uids
}

// Refresh asks the runtime about one pod now. A worker calls it after each of
// its actions, so that its next decision sees what the action did.
func (s *Store) Refresh(ctx context.Context, uid string) (Pod, error) {
	at := s.now()
	listCtx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	list, err := s.config.Runtime.ListPodSandbox(listCtx, &runtimeapi.ListPodSandboxRequest{
		Filter: &runtimeapi.PodSandboxFilter{LabelSelector: map[string]string{podspec.LabelPodUID: uid}},
	})
	if err != nil {
		return Pod{}, fmt.Errorf("list the sandboxes of pod %s: %w", uid, err)
	}
	pod, err := s.ask(ctx, uid, list.GetItems(), at)
	if err == nil && s.config.Counts != nil {
		s.config.Counts.PodRelisted(time.Since(at))
	}
	return pod, err
}

// now is the time of a question, later than that of any before: also where the
// clock is coarse, the answer to the later one is the one that counts.
func (s *Store) now() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	if !now.After(s.asked) {
		now = s.asked.Add(1)
	}
	s.asked = now
	return now
}

// ask completes what was listed of a pod at that time, and stores it.
func (s *Store) ask(ctx context.Context, uid string, listed []*runtimeapi.PodSandbox, at time.Time) (Pod, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	var found []sandboxFacts
	for _, sb := range listed {
		r, err := s.config.Runtime.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: sb.GetId()})
		if status.Code(err) == codes.NotFound {
			continue // removed since it was listed
		}
		if err != nil {
			return Pod{}, fmt.Errorf("status of sandbox %s: %w", sb.GetId(), err)
		}
		facts := sandboxFacts{sandbox: r.GetStatus(), containers: r.GetContainersStatuses()}
		if len(facts.containers) == 0 {
			if facts.containers, err = s.containers(ctx, sb.GetId()); err != nil {
				return Pod{}, err
			}
		}
		found = append(found, facts)
	}
	pod := assemble(uid, found, at)
	pod.asked = true
	return s.put(pod), nil
}

// containers asks one by one: what a runtime without event support needs.
func (s *Store) containers(ctx context.Context, sandboxID string) ([]*runtimeapi.ContainerStatus, error) {
	list, err := s.config.Runtime.ListContainers(ctx, &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{PodSandboxId: sandboxID}})
	if err != nil {
		return nil, fmt.Errorf("list containers of sandbox %s: %w", sandboxID, err)
	}
	var out []*runtimeapi.ContainerStatus
	for _, c := range list.GetContainers() {
		r, err := s.config.Runtime.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: c.GetId()})
		if status.Code(err) == codes.NotFound {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("status of container %s: %w", c.GetId(), err)
		}
		out = append(out, r.GetStatus())
	}
	return out, nil
}

// tie tells whether the clock does not say which is newer, an answer or what an
// event told.
func tie(answer, told *Pod) bool {
	return answer.asked && !told.asked && told.At.Sub(answer.At).Abs() < grain
}

// put stores pod unless something newer is known, or it could be, and returns
// what is stored.
func (s *Store) put(pod Pod) Pod {
	s.mu.Lock()
	old := s.pods[pod.UID]
	if pod.At.Before(old.At) || tie(&old, &pod) {
		s.mu.Unlock()
		return old
	}
	changed := !old.Same(pod)
	s.pods[pod.UID] = pod
	s.mu.Unlock()
	if changed && s.config.Changed != nil {
		s.config.Changed(pod.UID)
	}
	return pod
}

// forgetGone drops what is remembered of pods that have been gone for so long
// that no event of them can be on its way any more.
func (s *Store) forgetGone(now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for uid, p := range s.pods {
		if p.gone() && now.Sub(p.At) > 10*time.Minute {
			delete(s.pods, uid)
		}
	}
}
