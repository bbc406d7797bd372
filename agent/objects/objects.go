// Package objects gives the pods of this node what they refer to: ConfigMaps,
// Secrets, service account tokens and trust bundles of the API server, and the
// ConfigMaps, Secrets and claims of manifests. It implements csi/volume.Objects.
//
// It owns the watches of those objects and the cache of tokens. As the
// NodeRestriction admission demands, each object is asked for by its name: one
// watch for each object that a registered pod refers to, closed when no pod does
// any more, when the object is immutable, or when nobody has asked for a while
// (pkg/kubelet/util/manager is the model). What was seen once stays known while
// the API server is away.
//
//	objects.go    Store: pods come and go, questions are answered
//	references.go what a pod refers to
//	watched.go    one object, by a watch
//	polled.go     one object, by asking again
//	tokens.go     service account tokens
//	bundles.go    trust bundles
//	local.go      manifests, and which pod has which objects
package objects

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"

	"github.com/berth-io/berth/csi/volume"
)

// The values of KubeletConfiguration's configMapAndSecretChangeDetectionStrategy.
const (
	Watch = "Watch"
	Cache = "Cache"
	Get   = "Get"
)

// Config of a Store.
type Config struct {
	Client kubernetes.Interface
	// Strategy is Watch, Cache or Get; empty: Watch.
	Strategy string
	// TTL is how long a cached object is used with the strategy Cache; the API
	// server's hint is in the node's annotation node.alpha.kubernetes.io/ttl.
	// nil: a minute.
	TTL func() time.Duration
	// Changed is called with a pod's UID when its volumes may be out of date. It
	// must not block and may be called from any goroutine.
	Changed func(podUID types.UID)
	Log     *slog.Logger
}

// tick is how often the Store looks for tokens to renew and watches to close,
// and with the strategies Cache and Get tells all pods to look again; it is the
// kubelet's default syncFrequency.
const tick = time.Minute

// Store is the objects of the API server. Its methods may be called by all
// workers at once.
type Store struct {
	config     Config
	configMaps keeper[*v1.ConfigMap]
	secrets    keeper[*v1.Secret]
	tokens     *Tokens
	bundles    *bundles

	mu   sync.Mutex
	pods map[types.UID]*registered
}

// registered is a pod that its source has told of.
type registered struct {
	pod        *v1.Pod
	references references
}

var _ volume.Objects = (*Store)(nil)

// keeper has the objects of one kind that pods refer to.
type keeper[T object] interface {
	// refer adds a pod's reference to an object. A pod that uses it in a volume
	// is told of changes.
	refer(at key, pod types.UID, inVolume bool)
	release(at key, pod types.UID)
	get(ctx context.Context, at key) (T, error)
	// run keeps the objects up to date until ctx ends.
	run(ctx context.Context)
	closeIdle(now time.Time)
}

type object interface {
	metav1.Object
	runtime.Object
}

type key struct{ namespace, name string }

func (k key) String() string { return k.namespace + "/" + k.name }

// kind is how the API server is asked for objects of a kind.
type kind[T object] struct {
	name      string // as errors say it
	get       func(context.Context, key, metav1.GetOptions) (T, error)
	list      func(ctx context.Context, namespace string, options metav1.ListOptions) (runtime.Object, error)
	watch     func(ctx context.Context, namespace string, options metav1.ListOptions) (watch.Interface, error)
	immutable func(T) bool
}

// New returns a Store; Run keeps it up to date.
func New(c Config) (*Store, error) {
	s := &Store{config: c, pods: map[types.UID]*registered{}, tokens: NewTokens(c.Client, c.Log)}
	configMaps := kind[*v1.ConfigMap]{
		name: "configmap",
		get: func(ctx context.Context, k key, o metav1.GetOptions) (*v1.ConfigMap, error) {
			return c.Client.CoreV1().ConfigMaps(k.namespace).Get(ctx, k.name, o)
		},
		list: func(ctx context.Context, ns string, o metav1.ListOptions) (runtime.Object, error) {
			return c.Client.CoreV1().ConfigMaps(ns).List(ctx, o)
		},
		watch: func(ctx context.Context, ns string, o metav1.ListOptions) (watch.Interface, error) {
			return c.Client.CoreV1().ConfigMaps(ns).Watch(ctx, o)
		},
		immutable: func(m *v1.ConfigMap) bool { return m.Immutable != nil && *m.Immutable },
	}
	secrets := kind[*v1.Secret]{
		name: "secret",
		get: func(ctx context.Context, k key, o metav1.GetOptions) (*v1.Secret, error) {
			return c.Client.CoreV1().Secrets(k.namespace).Get(ctx, k.name, o)
		},
		list: func(ctx context.Context, ns string, o metav1.ListOptions) (runtime.Object, error) {
			return c.Client.CoreV1().Secrets(ns).List(ctx, o)
		},
		watch: func(ctx context.Context, ns string, o metav1.ListOptions) (watch.Interface, error) {
			return c.Client.CoreV1().Secrets(ns).Watch(ctx, o)
		},
		immutable: func(m *v1.Secret) bool { return m.Immutable != nil && *m.Immutable },
	}
	switch c.Strategy {
	case "", Watch:
		s.configMaps = newWatched(configMaps, c.Client, c.Changed)
		s.secrets = newWatched(secrets, c.Client, c.Changed)
	case Cache, Get:
		ttl := c.TTL
		if ttl == nil {
			ttl = func() time.Duration { return time.Minute }
		}
		if c.Strategy == Get {
			ttl = func() time.Duration { return 0 }
		}
		s.configMaps, s.secrets = newPolled(configMaps, ttl), newPolled(secrets, ttl)
	default:
		return nil, fmt.Errorf("configMapAndSecretChangeDetectionStrategy: unknown strategy %q: use %s, %s or %s", c.Strategy, Watch, Cache, Get)
	}
	s.bundles = newBundles(c.Client, s.bundleChanged)
	return s, nil
}

// Tokens are the tokens of service accounts, for others who need them.
func (s *Store) Tokens() *Tokens { return s.tokens }

// Run keeps objects up to date until ctx ends.
func (s *Store) Run(ctx context.Context) error {
	var all sync.WaitGroup
	all.Go(func() { s.configMaps.run(ctx) })
	all.Go(func() { s.secrets.run(ctx) })
	all.Go(func() { s.bundles.run(ctx) })
	defer all.Wait()
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case now := <-ticker.C:
			s.configMaps.closeIdle(now)
			s.secrets.closeIdle(now)
			s.tokens.dropExpired()
			for _, uid := range s.due() {
				s.config.Changed(uid)
			}
		}
	}
}

// due lists the pods that have to look again although nobody tells of a change:
// tokens age, one of a pod from before a restart is not known, and two of the
// strategies wait for no event.
func (s *Store) due() []types.UID {
	s.mu.Lock()
	defer s.mu.Unlock()
	polled := s.config.Strategy == Cache || s.config.Strategy == Get
	var uids []types.UID
	for uid, p := range s.pods {
		asks := polled && p.references.inVolumes()
		for i := 0; !asks && i < len(p.references.tokens); i++ {
			asks = s.tokens.stale(p.pod.Namespace, p.pod.Spec.ServiceAccountName, boundTo(p.pod, p.references.tokens[i]))
		}
		if asks {
			uids = append(uids, uid)
		}
	}
	slices.Sort(uids)
	return uids
}

// Register notes what a pod refers to, which from now on it may ask for. It is
// called for every pod of every source, and again when a pod has changed. Pods
// that have their objects from manifests are passed over.
func (s *Store) Register(pod *v1.Pod) {
	if isLocal(pod) {
		return
	}
	next := &registered{pod: pod, references: referencesOf(pod)}
	s.mu.Lock()
	defer s.mu.Unlock()
	last := s.pods[pod.UID]
	s.pods[pod.UID] = next
	var had references
	if last != nil {
		had = last.references
	}
	// The new ones first: what stays is never without a reference.
	adjust(s.configMaps, pod, had.configMaps, next.references.configMaps)
	adjust(s.secrets, pod, had.secrets, next.references.secrets)
}

// Unregister forgets a pod that has ended, its references and its tokens.
func (s *Store) Unregister(podUID types.UID) {
	s.mu.Lock()
	last := s.pods[podUID]
	delete(s.pods, podUID)
	if last != nil {
		adjust(s.configMaps, last.pod, last.references.configMaps, nil)
		adjust(s.secrets, last.pod, last.references.secrets, nil)
	}
	s.mu.Unlock()
	s.tokens.Forget(podUID)
}

func adjust[T object](k keeper[T], pod *v1.Pod, had, has map[string]bool) {
	for name, inVolume := range has {
		if was, known := had[name]; !known || was != inVolume {
			k.refer(key{pod.Namespace, name}, pod.UID, inVolume)
		}
	}
	for name := range had {
		if _, still := has[name]; !still {
			k.release(key{pod.Namespace, name}, pod.UID)
		}
	}
}

// ConfigMap returns a ConfigMap that a registered pod refers to.
func (s *Store) ConfigMap(ctx context.Context, pod *v1.Pod, name string) (*v1.ConfigMap, error) {
	return s.configMaps.get(ctx, key{pod.Namespace, name})
}

// Secret returns a Secret that a registered pod refers to.
func (s *Store) Secret(ctx context.Context, pod *v1.Pod, name string) (*v1.Secret, error) {
	return s.secrets.get(ctx, key{pod.Namespace, name})
}

// Claim refuses.
func (s *Store) Claim(context.Context, *v1.Pod, string) (hostPath string, readOnly bool, err error) {
	return "", false, errors.New("claims of the API server are not supported yet")
}

// Token returns a token of the pod's service account, bound to the pod.
func (s *Store) Token(ctx context.Context, pod *v1.Pod, want *v1.ServiceAccountTokenProjection) (string, error) {
	got, err := s.tokens.Get(ctx, pod.Namespace, pod.Spec.ServiceAccountName, boundTo(pod, want))
	if err != nil {
		return "", err
	}
	return got.Status.Token, nil
}

// TrustBundle returns the certificates of one trust bundle, or of all those of a
// signer that match.
func (s *Store) TrustBundle(ctx context.Context, _ *v1.Pod, want *v1.ClusterTrustBundleProjection) ([]byte, error) {
	return s.bundles.get(ctx, want)
}

// bundleChanged tells the pods that have trust bundles: they are few, and their
// selectors are not looked at.
func (s *Store) bundleChanged() {
	s.mu.Lock()
	var uids []types.UID
	for uid, p := range s.pods {
		if p.references.bundles {
			uids = append(uids, uid)
		}
	}
	s.mu.Unlock()
	for _, uid := range uids {
		s.config.Changed(uid)
	}
}

// unavailable is an error of the API server, or of the way to it.
type unavailable struct {
	what string
	err  error
}

func (e unavailable) Error() string        { return e.what + ": " + e.err.Error() }
func (e unavailable) Unwrap() error        { return e.err }
func (e unavailable) Is(target error) bool { return target == volume.ErrUnavailable }
