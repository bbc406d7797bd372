package objects

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	apiwatch "k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"

	"github.com/berth-io/berth/csi/volume"
)

const (
	// syncTimeout is how long a question waits for the first answer to a watch.
	syncTimeout = time.Second
	// idleTime is after how long a watch is closed that only environments or
	// pulls are interested in and nobody has asked for.
	idleTime = 5 * time.Minute
	// watchTimeout is the least time that a watch is asked to last.
	watchTimeout = 30 * time.Minute
)

// retry paces the attempts to watch an object. The first come soon: a node may
// ask a moment before the API server has noticed that the pod is bound to it.
var retry = wait.Backoff{Duration: 20 * time.Millisecond, Factor: 2, Jitter: 1, Steps: 12, Cap: 30 * time.Second}

// watched keeps the objects of one kind by a watch for each.
type watched[T object] struct {
	kind    kind[T]
	client  any // tells client-go what the client can do
	changed func(types.UID)

	mu    sync.Mutex
	ctx   context.Context // of run; nil before
	items map[key]*item[T]
	ended sync.WaitGroup // watches
}

// item is one object with its watch.
type item[T object] struct {
	owner *watched[T]
	at    key

	mu    sync.Mutex
	users map[types.UID]bool // pods; true: in a volume
	state T                  // nil: it does not exist, if known
	known bool               // it was seen to exist or not to exist
	fixed bool               // immutable: known for good
	fresh chan struct{}      // closed once the watch has said what there is
	stop  context.CancelFunc // of the watch; nil: there is none
	err   error              // the last of the watch, until it works
	asked time.Time          // the last question
	vain  bool               // a question found nothing known
}

func newWatched[T object](k kind[T], client any, changed func(types.UID)) *watched[T] {
	return &watched[T]{kind: k, client: client, changed: changed, items: map[key]*item[T]{}}
}

func (w *watched[T]) run(ctx context.Context) {
	w.mu.Lock()
	w.ctx = ctx
	for _, i := range w.items {
		i.start(ctx)
	}
	w.mu.Unlock()
	<-ctx.Done()
	w.mu.Lock()
	w.ctx = nil // nothing starts any more
	w.mu.Unlock()
	w.ended.Wait()
}

func (w *watched[T]) refer(at key, pod types.UID, inVolume bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	i := w.items[at]
	if i == nil {
		i = &item[T]{owner: w, at: at, users: map[types.UID]bool{}, fresh: make(chan struct{}), asked: time.Now()}
		w.items[at] = i
	}
	i.mu.Lock()
	i.users[pod] = inVolume
	i.mu.Unlock()
	if w.ctx != nil {
		i.start(w.ctx)
	}
}

func (w *watched[T]) release(at key, pod types.UID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	i := w.items[at]
	if i == nil {
		return
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	delete(i.users, pod)
	if len(i.users) == 0 {
		i.close()
		delete(w.items, at)
	}
}

func (w *watched[T]) closeIdle(now time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, i := range w.items {
		i.closeIfIdle(now)
	}
}

func (w *watched[T]) get(ctx context.Context, at key) (T, error) {
	i, fresh := w.ask(at)
	if i == nil {
		var none T
		return none, fmt.Errorf("object %q/%q %w", at.namespace, at.name, volume.ErrNotRegistered)
	}
	timer := time.NewTimer(syncTimeout)
	defer timer.Stop()
	select {
	case <-fresh:
	case <-timer.C:
	case <-ctx.Done():
	}
	return i.answer()
}

// ask makes sure that an object is watched; nil for one that nobody has
// registered. fresh is closed once what is known is no older than the watch.
func (w *watched[T]) ask(at key) (i *item[T], fresh chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if i = w.items[at]; i == nil {
		return nil, nil
	}
	if w.ctx != nil {
		i.start(w.ctx)
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.asked = time.Now()
	return i, i.fresh
}

// answer is what is known, which may be older than the API server's.
func (i *item[T]) answer() (T, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	var none T
	switch {
	case !i.known:
		i.vain = true
		err := i.err
		if err == nil {
			err = errors.New("timed out waiting for the API server")
		}
		return none, unavailable{fmt.Sprintf("failed to sync %s cache", i.owner.kind.name), err}
	case any(i.state) == any(none):
		return none, volume.NotFound(i.owner.kind.name, i.at.name)
	}
	return i.state, nil
}

// start watches unless there is a watch, or no need for one.
func (i *item[T]) start(ctx context.Context) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.stop != nil || i.fixed || ctx.Err() != nil || len(i.users) == 0 {
		return
	}
	ctx, i.stop = context.WithCancel(ctx)
	reflector := i.reflector(ctx)
	i.owner.ended.Go(func() { reflector.RunWithContext(ctx) })
}

// reflector follows the one object of this name; the API server lets a node ask
// for no others.
func (i *item[T]) reflector(ctx context.Context) *cache.Reflector {
	var none T
	k, selector := i.owner.kind, fields.OneTermEqualSelector("metadata.name", i.at.name).String()
	lister := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
			options.FieldSelector = selector
			list, err := k.list(ctx, i.at.namespace, options)
			return list, i.tried(err)
		},
		WatchFuncWithContext: func(ctx context.Context, options metav1.ListOptions) (apiwatch.Interface, error) {
			options.FieldSelector = selector
			watch, err := k.watch(ctx, i.at.namespace, options)
			return watch, i.tried(err)
		},
	}
	pace := retry
	return cache.NewReflectorWithOptions(cache.ToListWatcherWithWatchListSemantics(lister, i.owner.client), none,
		follower[T]{i, ctx}, cache.ReflectorOptions{
			Name: fmt.Sprintf("%s %s", k.name, i.at), MinWatchTimeout: watchTimeout, Backoff: &pace,
		})
}

func (i *item[T]) tried(err error) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.err = err
	return err
}

// close ends the watch. What is known stays.
func (i *item[T]) close() {
	if i.stop == nil {
		return
	}
	i.stop()
	i.stop = nil
	if !i.fixed {
		i.fresh = make(chan struct{})
	}
}

func (i *item[T]) closeIfIdle(now time.Time) {
	i.mu.Lock()
	defer i.mu.Unlock()
	for _, inVolume := range i.users {
		if inVolume {
			return
		}
	}
	// A list that is being answered is not thrown away.
	if isClosed(i.fresh) && now.Sub(i.asked) > idleTime {
		i.close()
	}
}

func isClosed(c chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// set takes in what a watch that has not been closed says; the zero T says that
// there is no such object.
func (i *item[T]) set(ctx context.Context, next T) {
	var none T
	i.mu.Lock()
	if ctx.Err() != nil {
		i.mu.Unlock()
		return
	}
	there := any(next) != any(none)
	differs := i.known && (there != (any(i.state) != any(none)) || there && next.GetResourceVersion() != i.state.GetResourceVersion())
	// Who found nothing tries again; who has what there was makes it anew.
	all := i.vain || differs && there && any(i.state) == any(none)
	i.state, i.known, i.vain, i.err = next, true, false, nil
	if !isClosed(i.fresh) {
		close(i.fresh)
	}
	if there && i.owner.kind.immutable(next) {
		i.fixed = true
		i.close()
	}
	var users []types.UID
	for uid, inVolume := range i.users {
		if all || differs && inVolume {
			users = append(users, uid)
		}
	}
	i.mu.Unlock()
	for _, uid := range users {
		i.owner.changed(uid)
	}
}

// follower is the store of a reflector.
type follower[T object] struct {
	item *item[T]
	ctx  context.Context // of the watch
}

func (f follower[T]) Add(o any) error    { return f.take(o) }
func (f follower[T]) Update(o any) error { return f.take(o) }
func (f follower[T]) Resync() error      { return nil }

func (f follower[T]) Delete(any) error {
	var none T
	f.item.set(f.ctx, none)
	return nil
}

func (f follower[T]) Replace(list []any, _ string) error {
	for _, o := range list {
		if got, ok := o.(T); ok && got.GetName() == f.item.at.name {
			return f.take(o)
		}
	}
	return f.Delete(nil)
}

func (f follower[T]) take(o any) error {
	got, ok := o.(T)
	if !ok {
		return fmt.Errorf("watch of %s %s: the API server sent a %T", f.item.owner.kind.name, f.item.at, o)
	}
	if got.GetName() == f.item.at.name {
		f.item.set(f.ctx, got)
	}
	return nil
}

// asError makes an error of the API server one that says what volumes need.
func asError(kindName, name string, err error) error {
	if apierrors.IsNotFound(err) {
		return volume.NotFound(kindName, name)
	}
	return unavailable{fmt.Sprintf("failed to fetch %s %q", kindName, name), err}
}
