package observed

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
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

// Config of a Store.
type Config struct {
	Runtime Runtime
	// Relist is the interval of the full relist that backs up the event
	// stream (minutes). A runtime without events is relisted every second.
	Relist time.Duration
	// Changed is called, without locks held, after a pod's observation changed.
	Changed func(podUID string)
	Log     *slog.Logger
}

// Store keeps the newest observation of each pod.
type Store struct {
	config Config
	synced chan struct{}

	mu   sync.Mutex
	pods map[string]Pod
}

// callTimeout bounds one question to the runtime: they are answered from
// memory, so that a late answer means a hung runtime.
const callTimeout = 10 * time.Second

// New returns an empty store; Run fills it.
func New(c Config) *Store {
	return &Store{config: c, synced: make(chan struct{}), pods: map[string]Pod{}}
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
	for uid := range s.pods {
		uids = append(uids, uid)
	}
	return uids
}

// Refresh asks the runtime about one pod now. A worker calls it after each of
// its actions, so that its next decision sees what the action did.
func (s *Store) Refresh(ctx context.Context, uid string) (Pod, error) {
	pod, err := s.ask(ctx, uid)
	if err != nil {
		return Pod{}, err
	}
	return s.put(pod), nil
}

// Run follows the runtime until ctx ends. It only returns ctx's error: a
// runtime that is away is asked again until it is back.
func (s *Store) Run(ctx context.Context) error {
	const slowest = 5 * time.Second
	pause := 100 * time.Millisecond
	first := sync.OnceFunc(func() { close(s.synced) })
	for ctx.Err() == nil {
		err := s.follow(ctx, func() { first(); pause = 100 * time.Millisecond })
		if ctx.Err() != nil {
			break
		}
		s.config.Log.Warn("following the runtime's events was interrupted; relisting", "err", err, "pause", pause)
		if !sleep(ctx, pause) {
			break
		}
		pause = min(2*pause, slowest)
	}
	return ctx.Err()
}

// follow opens the event stream first and lists second, so that nothing falls
// between the two.
func (s *Store) follow(ctx context.Context, listed func()) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := s.config.Runtime.GetContainerEvents(ctx, &runtimeapi.GetEventsRequest{})
	if err != nil {
		return fmt.Errorf("open the runtime's event stream: %w", err)
	}
	if err := s.relist(ctx); err != nil {
		return err
	}
	listed()

	ended := make(chan error, 1)
	go func() { ended <- s.receive(ctx, stream) }()
	tick := time.NewTicker(s.config.Relist)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			if err := s.relist(ctx); err != nil {
				return err
			}
		case err := <-ended:
			if status.Code(err) == codes.Unimplemented {
				// This runtime has no event stream: relisting takes its place.
				s.config.Log.Info("the runtime has no event stream; relisting every second")
				tick.Reset(time.Second)
				ended = nil
				continue
			}
			return err
		}
	}
}

func (s *Store) receive(ctx context.Context, stream grpc.ServerStreamingClient[runtimeapi.ContainerEventResponse]) error {
	for {
		e, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return errors.New("the runtime closed its event stream")
		}
		if err != nil {
			return err
		}
		if err := s.event(ctx, e); err != nil {
			return err
		}
	}
}

// event takes what an event carries where that is the pod's whole story, and
// asks the runtime otherwise.
func (s *Store) event(ctx context.Context, e *runtimeapi.ContainerEventResponse) error {
	uid := e.GetPodSandboxStatus().GetMetadata().GetUid()
	if uid == "" {
		return s.relist(ctx) // a runtime that sends bare events
	}
	if e.GetPodSandboxStatus().GetLabels()[podspec.LabelPodUID] == "" {
		return nil // made by hand, with crictl: not an agent's pod
	}
	old := s.Pod(uid)
	onlySandbox := len(old.Sandboxes) == 0 || len(old.Sandboxes) == 1 && old.Sandboxes[0].ID == e.GetPodSandboxStatus().GetId()
	if !onlySandbox || e.GetContainerEventType() == runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT {
		_, err := s.Refresh(ctx, uid)
		return err
	}
	facts := []sandboxFacts{{sandbox: e.GetPodSandboxStatus(), containers: e.GetContainersStatuses()}}
	s.put(assemble(uid, facts, nanos(e.GetCreatedAt())))
	return nil
}

// relist asks about every pod, those included that only the store knows.
func (s *Store) relist(ctx context.Context) error {
	listCtx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	list, err := s.config.Runtime.ListPodSandbox(listCtx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		return fmt.Errorf("list sandboxes: %w", err)
	}
	uids := map[string]bool{}
	for _, sb := range list.GetItems() {
		if uid := sb.GetLabels()[podspec.LabelPodUID]; uid != "" {
			uids[uid] = true
		}
	}
	for _, uid := range s.UIDs() {
		uids[uid] = true
	}
	for uid := range uids {
		if _, err := s.Refresh(ctx, uid); err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) ask(ctx context.Context, uid string) (Pod, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	at := time.Now()
	byPod := map[string]string{podspec.LabelPodUID: uid}
	list, err := s.config.Runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{Filter: &runtimeapi.PodSandboxFilter{LabelSelector: byPod}})
	if err != nil {
		return Pod{}, fmt.Errorf("list the pod's sandboxes: %w", err)
	}
	var found []sandboxFacts
	for _, sb := range list.GetItems() {
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
	return assemble(uid, found, at), nil
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

// put stores pod unless something newer is known, and returns what is newest.
func (s *Store) put(pod Pod) Pod {
	s.mu.Lock()
	old, known := s.pods[pod.UID]
	if known && pod.At.Before(old.At) {
		s.mu.Unlock()
		return old
	}
	gone := len(pod.Sandboxes) == 0 && len(pod.Containers) == 0
	changed := !known && !gone || known && !same(old, pod)
	if gone {
		delete(s.pods, pod.UID)
	} else {
		s.pods[pod.UID] = pod
	}
	s.mu.Unlock()
	if changed && s.config.Changed != nil {
		s.config.Changed(pod.UID)
	}
	return pod
}

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
