// Package apiwatch keeps objects of the API server in memory, as long as
// somebody runs the watch: those of one kind that a selector lets through. It
// is the agent's only way to look at the cluster for longer than one request;
// what it holds while the API server is away is what it held last.
package apiwatch

import (
	"context"
	"fmt"
	"log/slog"
	"sync"

	"github.com/go-logr/logr"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
)

// Object is an object of the API.
type Object interface {
	comparable
	runtime.Object
	metav1.Object
}

// Config says what to watch.
type Config[T Object] struct {
	// Client is of the resource's API group.
	Client    cache.Getter
	Resource  string // in the plural, as in the API's paths
	Namespace string // empty: all
	Selector  fields.Selector
	// Example is an object of the kind, for the decoder.
	Example T
	// Trim takes off an object what nobody here reads; nil: nothing. It may
	// change the object in place.
	Trim func(T)
	// Gone is called with each object that the API server tells is deleted, as it
	// was last; not with those that went while nothing was heard of it. nil:
	// nobody wants to know. Changed is called after the set changed. Both are called by Run's goroutine, and must not wait for anything.
	Gone    func(T)
	Changed func()
	Log     *slog.Logger
}

// Set is what the API server has. Its methods may be called by anyone at any
// time; the objects it hands out are shared and not to be changed.
type Set[T Object] struct {
	config    Config[T]
	logger    klog.Logger
	reflector *cache.Reflector
	first     sync.Once

	mu      sync.Mutex
	objects map[string]T  // by namespace/name
	synced  chan struct{} // closed
}

// New prepares a watch; Run watches.
func New[T Object](c Config[T]) *Set[T] {
	logger := klog.Logger(logr.FromSlogHandler(c.Log.Handler()))
	s := &Set[T]{config: c, logger: logger, objects: map[string]T{}, synced: make(chan struct{})}
	if c.Selector == nil {
		c.Selector = fields.Everything()
	}
	lw := cache.NewListWatchFromClient(c.Client, c.Resource, c.Namespace, c.Selector)
	s.reflector = cache.NewReflectorWithOptions(lw, c.Example, store[T]{s}, cache.ReflectorOptions{
		Name: c.Resource, Logger: &logger,
	})
	return s
}

// Run watches until ctx ends, and returns its error. An API server that is away
// is asked again, ever slower up to half a minute.
func (s *Set[T]) Run(ctx context.Context) error {
	s.reflector.RunWithContext(klog.NewContext(ctx, s.logger))
	return ctx.Err()
}

// Synced is closed once the API server has told all there is.
func (s *Set[T]) Synced() <-chan struct{} { return s.synced }

// Get returns an object; namespace is empty for kinds without one.
func (s *Set[T]) Get(namespace, name string) (T, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	o, ok := s.objects[key(namespace, name)]
	return o, ok
}

// List returns all objects, in no order, and whether they are all there are.
func (s *Set[T]) List() (objects []T, synced bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	objects = make([]T, 0, len(s.objects))
	for _, o := range s.objects {
		objects = append(objects, o)
	}
	select {
	case <-s.synced:
		synced = true
	default:
	}
	return objects, synced
}

func key(namespace, name string) string {
	if namespace == "" {
		return name
	}
	return namespace + "/" + name
}

// store is the reflector's side of a Set.
type store[T Object] struct{ set *Set[T] }

func (s store[T]) Add(obj any) error    { return s.put(obj) }
func (s store[T]) Update(obj any) error { return s.put(obj) }
func (s store[T]) Resync() error        { return nil }

func (s store[T]) put(obj any) error {
	o, err := s.take(obj)
	if err != nil {
		return err
	}
	s.set.mu.Lock()
	s.set.objects[key(o.GetNamespace(), o.GetName())] = o
	s.set.mu.Unlock()
	s.changed()
	return nil
}

func (s store[T]) Delete(obj any) error {
	o, err := s.take(obj)
	if err != nil {
		return err
	}
	s.set.mu.Lock()
	delete(s.set.objects, key(o.GetNamespace(), o.GetName()))
	s.set.mu.Unlock()
	if s.set.config.Gone != nil {
		s.set.config.Gone(o)
	}
	s.changed()
	return nil
}

func (s store[T]) Replace(list []any, _ string) error {
	objects := make(map[string]T, len(list))
	for _, obj := range list {
		o, err := s.take(obj)
		if err != nil {
			return err
		}
		objects[key(o.GetNamespace(), o.GetName())] = o
	}
	s.set.mu.Lock()
	s.set.objects = objects
	s.set.mu.Unlock()
	s.set.first.Do(func() { close(s.set.synced) })
	s.changed()
	return nil
}

func (s store[T]) take(obj any) (T, error) {
	o, ok := obj.(T)
	if !ok {
		return o, fmt.Errorf("watch %s: the API server sent a %T", s.set.config.Resource, obj)
	}
	o.SetManagedFields(nil)
	if s.set.config.Trim != nil {
		s.set.config.Trim(o)
	}
	return o, nil
}

func (s store[T]) changed() {
	if s.set.config.Changed != nil {
		s.set.config.Changed()
	}
}
