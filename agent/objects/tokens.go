package objects

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes"
	clientretry "k8s.io/client-go/util/retry"

	"github.com/berth-io/berth/internal/failpoint"
)

const (
	// oldest is the age at which a token is renewed, however long it lives.
	oldest = 24 * time.Hour
	// spread keeps the tokens of pods that started together from being renewed
	// together.
	spread = 10 * time.Second
	// againAfter is when a renewal that failed is tried again while the old
	// token is still good.
	againAfter = time.Minute
)

// Tokens asks the API server for tokens of service accounts, bound to pods of
// this node, and keeps them until 80 % of their life is over or they are a day
// old (pkg/kubelet/token). Its methods may be called from any goroutine.
type Tokens struct {
	client kubernetes.Interface
	log    *slog.Logger

	mu    sync.Mutex
	known map[string]*token
}

type token struct {
	got     *authenticationv1.TokenRequest
	renewAt time.Time
}

// NewTokens returns Tokens that has none yet.
func NewTokens(client kubernetes.Interface, log *slog.Logger) *Tokens {
	return &Tokens{client: client, log: log, known: map[string]*token{}}
}

// boundTo is the request for a projected token of a pod.
func boundTo(pod *v1.Pod, want *v1.ServiceAccountTokenProjection) *authenticationv1.TokenRequest {
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{
		ExpirationSeconds: want.ExpirationSeconds,
		BoundObjectRef:    &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: pod.Name, UID: pod.UID},
	}}
	if want.Audience != "" {
		request.Spec.Audiences = []string{want.Audience}
	}
	return request
}

// Get returns a token that answers the request, a known one where it is good
// for some time. When it is old and the API server does not give a new one, it
// is returned for as long as it is valid. The request's UID, if there is one, is
// that of the service account.
func (t *Tokens) Get(ctx context.Context, namespace, serviceAccount string, request *authenticationv1.TokenRequest) (*authenticationv1.TokenRequest, error) {
	k := tokenKey(namespace, serviceAccount, request)
	t.mu.Lock()
	last := t.known[k]
	if last != nil && time.Now().Before(last.renewAt) {
		t.mu.Unlock()
		return last.got, nil
	}
	t.mu.Unlock()
	got, err := t.ask(ctx, namespace, serviceAccount, request)
	switch {
	case err == nil:
		failpoint.Hit("agent/token-got")
		t.keep(k, got)
		return got, nil
	case last == nil:
		return nil, failedToFetch(err)
	case !time.Now().Before(last.got.Status.ExpirationTimestamp.Time):
		return nil, fmt.Errorf("token of service account %s/%s expired and refresh failed: %w", namespace, serviceAccount, failedToFetch(err))
	}
	t.log.Warn("a service account token is not renewed yet; the old one is still good", "serviceAccount", namespace+"/"+serviceAccount, "err", err)
	t.mu.Lock()
	defer t.mu.Unlock()
	if now := t.known[k]; now == last {
		t.known[k] = &token{last.got, time.Now().Add(againAfter)}
	}
	return last.got, nil
}

// soon is how a refusal is asked about again, for half a second: the API
// server's authorizer of nodes learns of a new pod a moment after its node does.
var soon = wait.Backoff{Duration: 10 * time.Millisecond, Factor: 2, Jitter: 0.1, Steps: 6}

func (t *Tokens) ask(ctx context.Context, namespace, serviceAccount string, request *authenticationv1.TokenRequest) (got *authenticationv1.TokenRequest, err error) {
	err = clientretry.OnError(soon, func(err error) bool { return apierrors.IsForbidden(err) && ctx.Err() == nil }, func() error {
		got, err = t.client.CoreV1().ServiceAccounts(namespace).CreateToken(ctx, serviceAccount, request, metav1.CreateOptions{})
		return err
	})
	return got, err
}

func failedToFetch(err error) error {
	var status apierrors.APIStatus
	if errors.As(err, &status) {
		return fmt.Errorf("failed to fetch token: %w", err)
	}
	return unavailable{"failed to fetch token", err}
}

func (t *Tokens) keep(k string, got *authenticationv1.TokenRequest) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.known[k] = &token{got, renewAt(got).Add(-rand.N(spread))}
}

// renewAt is when a token has had the part of its life after which it is
// renewed. It is taken from when it ends, as the kubelet does: an API server may
// make it last longer than was asked for.
func renewAt(got *authenticationv1.TokenRequest) time.Time {
	ends := got.Status.ExpirationTimestamp.Time
	if got.Spec.ExpirationSeconds == nil {
		return ends
	}
	life := time.Duration(*got.Spec.ExpirationSeconds) * time.Second
	renew := ends.Add(-life / 5)
	if aged := ends.Add(oldest - life); aged.Before(renew) {
		return aged
	}
	return renew
}

// stale tells whether the next Get for this request would ask the API server.
func (t *Tokens) stale(namespace, serviceAccount string, request *authenticationv1.TokenRequest) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	last := t.known[tokenKey(namespace, serviceAccount, request)]
	return last == nil || !time.Now().Before(last.renewAt)
}

// Forget drops the tokens that are bound to a pod.
func (t *Tokens) Forget(podUID types.UID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for k, known := range t.known {
		if ref := known.got.Spec.BoundObjectRef; ref != nil && ref.UID == podUID {
			delete(t.known, k)
		}
	}
}

func (t *Tokens) dropExpired() {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	for k, known := range t.known {
		if !now.Before(known.got.Status.ExpirationTimestamp.Time) {
			delete(t.known, k)
		}
	}
}

// tokenKey is the same for requests that one token answers.
func tokenKey(namespace, serviceAccount string, r *authenticationv1.TokenRequest) string {
	var seconds int64
	if r.Spec.ExpirationSeconds != nil {
		seconds = *r.Spec.ExpirationSeconds
	}
	var ref authenticationv1.BoundObjectReference
	if r.Spec.BoundObjectRef != nil {
		ref = *r.Spec.BoundObjectRef
	}
	parts := []string{namespace, serviceAccount, string(r.UID), strconv.FormatInt(seconds, 10), ref.APIVersion, ref.Kind, ref.Name, string(ref.UID)}
	return strings.Join(append(parts, slices.Clone(r.Spec.Audiences)...), "\x00")
}
