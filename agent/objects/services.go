package objects

import (
	"context"
	"errors"
	"sync"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	apiwatch "k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"

	"github.com/berth-io/berth/agent/podspec"
)

// Services keeps of the cluster's services what the environment of a container
// tells of them: name, address and ports. Services without an address are not
// kept.
type Services struct {
	client kubernetes.Interface

	mu     sync.Mutex
	synced bool
	known  map[key]podspec.Service
}

// NewServices returns Services that knows none; Run learns of them.
func NewServices(client kubernetes.Interface) *Services {
	return &Services{client: client, known: map[key]podspec.Service{}}
}

// Run follows the services until ctx ends.
func (s *Services) Run(ctx context.Context) error {
	lister := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
			return s.client.CoreV1().Services(v1.NamespaceAll).List(ctx, options)
		},
		WatchFuncWithContext: func(ctx context.Context, options metav1.ListOptions) (apiwatch.Interface, error) {
			return s.client.CoreV1().Services(v1.NamespaceAll).Watch(ctx, options)
		},
	}
	pace := retry
	cache.NewReflectorWithOptions(cache.ToListWatcherWithWatchListSemantics(lister, s.client), &v1.Service{}, serviceStore{s},
		cache.ReflectorOptions{Name: "services", MinWatchTimeout: watchTimeout, Backoff: &pace}).RunWithContext(ctx)
	return ctx.Err()
}

// Env is the variables of services for a pod's containers; none for a pod from a
// manifest. Before all services are known it is an error: a container would
// never learn of those that are missing.
func (s *Services) Env(pod *v1.Pod) (map[string]string, error) {
	if isLocal(pod) {
		return nil, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.synced {
		return nil, errors.New("services have not yet been read at least once, cannot construct envvars")
	}
	var near []podspec.Service
	for k, service := range s.known {
		if k.namespace == pod.Namespace || k.namespace == v1.NamespaceDefault {
			near = append(near, service)
		}
	}
	return podspec.ServiceEnv(pod, near), nil
}

// serviceStore is the store of the reflector.
type serviceStore struct{ of *Services }

func (s serviceStore) Add(o any) error    { return s.Update(o) }
func (s serviceStore) Resync() error      { return nil }
func (s serviceStore) Update(o any) error { s.of.change(false, o); return nil }

func (s serviceStore) Delete(o any) error {
	if service, ok := o.(*v1.Service); ok {
		s.of.mu.Lock()
		defer s.of.mu.Unlock()
		delete(s.of.known, key{service.Namespace, service.Name})
	}
	return nil
}

func (s serviceStore) Replace(list []any, _ string) error {
	s.of.change(true, list...)
	return nil
}

func (s *Services) change(all bool, list ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if all {
		clear(s.known)
		s.synced = true
	}
	for _, o := range list {
		service, ok := o.(*v1.Service)
		if !ok {
			continue
		}
		k := key{service.Namespace, service.Name}
		if ip := service.Spec.ClusterIP; ip == "" || ip == v1.ClusterIPNone {
			delete(s.known, k)
			continue
		}
		kept := podspec.Service{Namespace: k.namespace, Name: k.name, ClusterIP: service.Spec.ClusterIP}
		for _, p := range service.Spec.Ports {
			kept.Ports = append(kept.Ports, v1.ServicePort{Name: p.Name, Protocol: p.Protocol, Port: p.Port})
		}
		s.known[k] = kept
	}
}
