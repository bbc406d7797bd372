package objects

import (
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	certificatesv1beta1 "k8s.io/api/certificates/v1beta1"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	apiwatch "k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"

	"github.com/berth-io/berth/csi/volume"
)

// bundles has the cluster's trust bundles. A cluster has few and a signer's are
// found by labels, so all are watched, from the first question on: where no pod
// has them, the API server is never asked (pkg/kubelet/clustertrustbundle).
type bundles struct {
	client  kubernetes.Interface
	changed func()
	seed    [2]uint64 // of the order of certificates

	mu     sync.Mutex
	wanted chan struct{} // closed by the first question
	synced chan struct{} // closed by the first answer
	err    error         // of the last attempt, until one works
	byName map[string]*certificatesv1beta1.ClusterTrustBundle
}

func newBundles(client kubernetes.Interface, changed func()) *bundles {
	return &bundles{
		client: client, changed: changed, seed: [2]uint64{rand.Uint64(), rand.Uint64()},
		wanted: make(chan struct{}), synced: make(chan struct{}), byName: map[string]*certificatesv1beta1.ClusterTrustBundle{},
	}
}

func (b *bundles) run(ctx context.Context) {
	select {
	case <-b.wanted:
	case <-ctx.Done():
		return
	}
	lister := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
			list, err := b.client.CertificatesV1beta1().ClusterTrustBundles().List(ctx, options)
			return list, b.tried(err)
		},
		WatchFuncWithContext: func(ctx context.Context, options metav1.ListOptions) (apiwatch.Interface, error) {
			watch, err := b.client.CertificatesV1beta1().ClusterTrustBundles().Watch(ctx, options)
			return watch, b.tried(err)
		},
	}
	pace := retry
	cache.NewReflectorWithOptions(cache.ToListWatcherWithWatchListSemantics(lister, b.client), &certificatesv1beta1.ClusterTrustBundle{}, b,
		cache.ReflectorOptions{Name: "trust bundles", MinWatchTimeout: watchTimeout, Backoff: &pace}).RunWithContext(ctx)
}

func (b *bundles) tried(err error) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.err = err
	return err
}

func (b *bundles) get(ctx context.Context, want *v1.ClusterTrustBundleProjection) ([]byte, error) {
	if err := b.await(ctx); err != nil {
		return nil, err
	}
	optional := want.Optional != nil && *want.Optional
	found, err := b.find(want)
	if errors.Is(err, volume.ErrNotFound) && optional {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return b.certificates(found), nil
}

// await waits a moment for the first answer of the API server.
func (b *bundles) await(ctx context.Context) error {
	b.mu.Lock()
	if !isClosed(b.wanted) {
		close(b.wanted)
	}
	b.mu.Unlock()
	timer := time.NewTimer(syncTimeout)
	defer timer.Stop()
	select {
	case <-b.synced:
		return nil
	case <-timer.C:
	case <-ctx.Done():
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	err := b.err
	if err == nil {
		err = errors.New("timed out waiting for the API server")
	}
	return unavailable{"failed to sync clustertrustbundle cache", err}
}

// find returns the bundle of a name or those of a signer. No selector matches
// nothing, an empty one everything.
func (b *bundles) find(want *v1.ClusterTrustBundleProjection) ([]*certificatesv1beta1.ClusterTrustBundle, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if want.Name != nil {
		if one := b.byName[*want.Name]; one != nil {
			return []*certificatesv1beta1.ClusterTrustBundle{one}, nil
		}
		return nil, volume.NotFound("clustertrustbundle", *want.Name)
	}
	selector, err := metav1.LabelSelectorAsSelector(want.LabelSelector)
	if err != nil {
		return nil, fmt.Errorf("while parsing label selector: %w", err)
	}
	var found []*certificatesv1beta1.ClusterTrustBundle
	for _, one := range b.byName {
		if one.Spec.SignerName == *want.SignerName && selector.Matches(labels.Set(one.Labels)) {
			found = append(found, one)
		}
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("combination of signerName and labelSelector matched zero ClusterTrustBundles: %w", volume.ErrNotFound)
	}
	return found, nil
}

// certificates are those of the bundles, each once. Their order means nothing,
// so that nobody relies on it: it is another one after each start of the daemon
// and the same until then.
func (b *bundles) certificates(of []*certificatesv1beta1.ClusterTrustBundle) []byte {
	distinct := map[string]bool{}
	var all []string
	for _, one := range of {
		for block, rest := pem.Decode([]byte(one.Spec.TrustBundle)); block != nil; block, rest = pem.Decode(rest) {
			if der := string(block.Bytes); !distinct[der] {
				distinct[der] = true
				all = append(all, der)
			}
		}
	}
	slices.Sort(all)
	rand.New(rand.NewPCG(b.seed[0], b.seed[1])).Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	var out []byte
	for _, der := range all {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte(der)})...)
	}
	return out
}

// Add, Update, Delete, Replace and Resync make it the store of a reflector.
func (b *bundles) Add(o any) error { return b.Update(o) }

// Update takes a bundle in.
func (b *bundles) Update(o any) error {
	return b.change(func() { b.take(o) })
}

// Delete drops a bundle.
func (b *bundles) Delete(o any) error {
	return b.change(func() {
		if one, ok := o.(*certificatesv1beta1.ClusterTrustBundle); ok {
			delete(b.byName, one.Name)
		}
	})
}

// Replace takes all bundles in.
func (b *bundles) Replace(list []any, _ string) error {
	return b.change(func() {
		clear(b.byName)
		for _, o := range list {
			b.take(o)
		}
		if !isClosed(b.synced) {
			close(b.synced)
		}
	})
}

// Resync has nothing to do.
func (b *bundles) Resync() error { return nil }

func (b *bundles) take(o any) {
	if one, ok := o.(*certificatesv1beta1.ClusterTrustBundle); ok {
		b.byName[one.Name] = one
	}
}

func (b *bundles) change(do func()) error {
	b.mu.Lock()
	do()
	b.mu.Unlock()
	b.changed()
	return nil
}
