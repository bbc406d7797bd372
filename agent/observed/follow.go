package observed

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-io/berth/agent/podspec"
)

const (
	// relistWithout replaces Config.Relist with a runtime that has no events.
	relistWithout = time.Second
	// askAgain is when a runtime that had no events is asked for them again: it may
	// have been updated, or configured and restarted, and asking costs little.
	askAgain = 10 * time.Second
	// relistAgain is when to list again after a pod was asked about in vain.
	relistAgain = 10 * time.Second
	// Pauses before following anew. A stream that held for longer than the
	// longest pause was a good one.
	firstPause, longestPause = 100 * time.Millisecond, 5 * time.Second
	// subscribing is how long a stream's header is waited for. Berth's runtime
	// sends it at once; others with the first event.
	subscribing = 100 * time.Millisecond
	// grain is how far apart an event and an answer must be for the clock to say
	// which is newer.
	grain = time.Microsecond
	// parallel bounds the questions of a relist under way at once.
	parallel = 8
)

// errNoEvents: the runtime is to be asked for events again.
var errNoEvents = errors.New("the runtime has no event stream")

// Run follows the runtime until ctx ends. It only returns ctx's error: a
// runtime that is away is asked again until it is back.
func (s *Store) Run(ctx context.Context) error {
	defer s.asks.Wait()
	pause := firstPause
	first := sync.OnceFunc(func() { close(s.synced) })
	for ctx.Err() == nil {
		began := time.Now()
		err := s.follow(ctx, first)
		if ctx.Err() != nil {
			break
		}
		if errors.Is(err, errNoEvents) {
			pause = firstPause
			continue
		}
		if time.Since(began) > longestPause {
			pause = firstPause
		}
		s.config.Log.Warn("following the runtime's events was interrupted; relisting", "err", err, "pause", pause)
		if !sleep(ctx, pause) {
			break
		}
		pause = min(2*pause, longestPause)
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
	subscribed, ended := make(chan struct{}), make(chan error, 1)
	s.asks.Go(func() {
		header, _ := stream.Header() // an error is Recv's as well
		close(subscribed)
		if header != nil {
			s.sayEvents(true)
			s.countFollowing(ctx, nil)
			ended <- s.receive(ctx, stream)
			return
		}
		err := s.receive(ctx, stream) // it ended before it began
		s.countFollowing(ctx, err)
		ended <- err
	})
	var late <-chan struct{} // subscribed, if that came after the list
	select {
	case <-subscribed:
	case <-time.After(subscribing):
		late = subscribed
	}
	if err := s.relist(ctx); err != nil {
		return err
	}
	listed()

	interval := s.config.Relist
	var again <-chan time.Time // when to ask for events again
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-late:
			late = nil
			tick.Reset(s.relistOr(ctx, interval))
		case <-tick.C:
			tick.Reset(s.relistOr(ctx, interval))
		case <-again:
			return errNoEvents
		case <-s.failed:
			tick.Reset(min(interval, relistAgain))
		case err := <-ended:
			if status.Code(err) == codes.Unimplemented {
				// This runtime has no event stream: relisting takes its place.
				s.sayEvents(false)
				interval = min(interval, relistWithout)
				tick.Reset(interval)
				ended, again = nil, time.After(askAgain)
				continue
			}
			return err
		}
	}
}

// sayEvents logs when the runtime's events come or go, not each time that they
// are asked for.
func (s *Store) sayEvents(there bool) {
	if s.eventless.Swap(!there) == !there {
		return
	}
	if there {
		s.config.Log.Info("the runtime has an event stream now; it is followed")
		return
	}
	s.config.Log.Info("the runtime has no event stream; relisting every second")
}

// relistOr lists and returns when to do so again: sooner after a failure, of
// which the other pods have no part.
func (s *Store) relistOr(ctx context.Context, interval time.Duration) time.Duration {
	err := s.relist(ctx)
	if err == nil || ctx.Err() != nil {
		return interval
	}
	s.config.Log.Warn("the runtime was not fully listed", "err", err)
	return min(interval, relistAgain)
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
		if s.config.Counts != nil {
			s.config.Counts.RuntimeTold(time.Since(time.Unix(0, e.GetCreatedAt())))
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
	old, at := s.Pod(uid), since(e.GetCreatedAt())
	if !wholeStory(e, &old) {
		s.askSoon(ctx, uid)
		return nil
	}
	facts := []sandboxFacts{{sandbox: e.GetPodSandboxStatus(), containers: e.GetContainersStatuses()}}
	told := assemble(uid, facts, at)
	if stored := s.put(told); tie(&stored, &told) {
		s.askSoon(ctx, uid)
	}
	return nil
}

// wholeStory tells whether an event says all there is of its pod: it is of the
// only sandbox, nothing was removed, and it knows the container it is about.
func wholeStory(e *runtimeapi.ContainerEventResponse, old *Pod) bool {
	sandbox := e.GetPodSandboxStatus().GetId()
	if e.GetCreatedAt() <= 0 || e.GetContainerEventType() == runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT {
		return false
	}
	if len(old.Sandboxes) > 1 || len(old.Sandboxes) == 1 && old.Sandboxes[0].ID != sandbox {
		return false
	}
	has := func(id string) bool {
		return slices.ContainsFunc(e.GetContainersStatuses(), func(c *runtimeapi.ContainerStatus) bool { return c.GetId() == id })
	}
	if e.GetContainerId() != sandbox {
		return has(e.GetContainerId())
	}
	return len(e.GetContainersStatuses()) > 0 || len(old.Containers) == 0
}

// since is the time of an event in this process's monotonic clock. An event is
// never from the future: then the wall clock was set back, and the event is new.
func since(created int64) time.Time {
	now := time.Now()
	return now.Add(-max(0, now.Sub(time.Unix(0, created))))
}

// askSoon asks about a pod without holding up the events of others. Asked for
// again while it is under way, it is repeated once.
func (s *Store) askSoon(ctx context.Context, uid string) {
	s.mu.Lock()
	_, under := s.asking[uid]
	s.asking[uid] = under
	s.mu.Unlock()
	if under {
		return
	}
	s.asks.Go(func() {
		for again := true; again; {
			if _, err := s.Refresh(ctx, uid); err != nil && ctx.Err() == nil {
				s.config.Log.Warn("the runtime cannot be asked about a pod; it is listed again", "uid", uid, "err", err)
				select {
				case s.failed <- struct{}{}:
				default:
				}
			}
			s.mu.Lock()
			if again = s.asking[uid] && ctx.Err() == nil; again {
				s.asking[uid] = false
			} else {
				delete(s.asking, uid)
			}
			s.mu.Unlock()
		}
	})
}

// relist asks about every pod, those included that only the store knows. One
// that cannot be asked about does not hold up the others.
func (s *Store) relist(ctx context.Context) error {
	at := s.now()
	listCtx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	list, err := s.config.Runtime.ListPodSandbox(listCtx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		return fmt.Errorf("list sandboxes: %w", err)
	}
	pods := map[string][]*runtimeapi.PodSandbox{}
	for _, uid := range s.UIDs() {
		pods[uid] = nil
	}
	for _, sb := range list.GetItems() {
		if uid := sb.GetLabels()[podspec.LabelPodUID]; uid != "" {
			pods[uid] = append(pods[uid], sb)
		}
	}
	uids := slices.Collect(maps.Keys(pods))
	errs := make([]error, len(uids))
	var group errgroup.Group
	group.SetLimit(parallel)
	for i, uid := range uids {
		group.Go(func() error {
			if _, err := s.ask(ctx, uid, pods[uid], at); err != nil {
				errs[i] = fmt.Errorf("pod %s: %w", uid, err)
			}
			return nil
		})
	}
	_ = group.Wait() // the errors are in errs
	s.forgetGone(at)
	s.countRelist(at)
	return errors.Join(errs...)
}

// countFollowing counts that the runtime's events were asked for.
func (s *Store) countFollowing(ctx context.Context, err error) {
	if s.config.Counts != nil && ctx.Err() == nil {
		s.config.Counts.Following(err)
	}
}

// countRelist counts one that began at that time.
func (s *Store) countRelist(at time.Time) {
	s.mu.Lock()
	last := s.listed
	s.listed = at
	s.mu.Unlock()
	var after time.Duration
	if !last.IsZero() {
		after = at.Sub(last)
	}
	if s.config.Counts != nil {
		s.config.Counts.Relisted(time.Since(at), after)
	}
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
