package objects

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/berth-io/berth/csi/volume"
)

// issuer makes tokens of increasing numbers.
type issuer struct {
	*fake.Clientset
	issued int
	last   *authenticationv1.TokenRequest
	fail   error
}

func newIssuer() *issuer {
	i := &issuer{Clientset: fake.NewClientset()}
	i.PrependReactor("create", "serviceaccounts", func(action clienttesting.Action) (bool, runtime.Object, error) {
		if action.GetSubresource() != "token" {
			return false, nil, nil
		}
		if i.fail != nil {
			return true, nil, i.fail
		}
		request := action.(clienttesting.CreateAction).GetObject().(*authenticationv1.TokenRequest).DeepCopy()
		if request.Spec.ExpirationSeconds == nil {
			hour := int64(3600)
			request.Spec.ExpirationSeconds = &hour
		}
		i.issued++
		i.last = request
		request.Status.Token = fmt.Sprintf("token-%d", i.issued)
		request.Status.ExpirationTimestamp.Time = time.Now().Add(time.Duration(*request.Spec.ExpirationSeconds) * time.Second)
		return true, request, nil
	})
	return i
}

func podWithToken(seconds int64) *v1.Pod {
	pod := podWith("a")
	pod.Spec.ServiceAccountName = "robot"
	pod.Spec.Volumes = []v1.Volume{{Name: "v", VolumeSource: v1.VolumeSource{Projected: &v1.ProjectedVolumeSource{Sources: []v1.VolumeProjection{
		{ServiceAccountToken: &v1.ServiceAccountTokenProjection{Audience: "vault", ExpirationSeconds: &seconds, Path: "token"}}}}}}}
	return pod
}

func wanted(pod *v1.Pod) *v1.ServiceAccountTokenProjection {
	return pod.Spec.Volumes[0].Projected.Sources[0].ServiceAccountToken
}

func TestATokenIsBoundToItsPodAndIsWhatWasAskedFor(t *testing.T) {
	i := newIssuer()
	s, err := New(Config{Client: i, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	pod := podWithToken(600)
	if got, err := s.Token(t.Context(), pod, wanted(pod)); got != "token-1" || err != nil {
		t.Fatalf("token %q, %v", got, err)
	}
	spec := i.last.Spec
	if ref := *spec.BoundObjectRef; ref != (authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: "a", UID: "a"}) {
		t.Errorf("bound to %+v", ref)
	}
	if !slices.Equal(spec.Audiences, []string{"vault"}) || *spec.ExpirationSeconds != 600 {
		t.Errorf("asked for %+v", spec)
	}
	action := i.Actions()[0].(clienttesting.CreateActionImpl)
	if action.Namespace != "ns" || action.Name != "robot" {
		t.Errorf("asked for a token of %s/%s", action.Namespace, action.Name)
	}
}

func TestATokenIsRenewedBeforeItEnds(t *testing.T) {
	const day = 24 * time.Hour
	for _, test := range []struct{ life, renewed time.Duration }{
		{10 * time.Minute, 8 * time.Minute},
		{3607 * time.Second, 2886 * time.Second},
		{day, day * 4 / 5},
		{365 * day, day},
	} {
		synctest.Test(t, func(t *testing.T) {
			i := newIssuer()
			tokens := NewTokens(i, slog.New(slog.DiscardHandler))
			pod := podWithToken(int64(test.life / time.Second))
			get := func() string {
				got, err := tokens.Get(t.Context(), "ns", "robot", boundTo(pod, wanted(pod)))
				if err != nil {
					t.Fatal(err)
				}
				return got.Status.Token
			}
			get()
			time.Sleep(test.renewed - spread - time.Second)
			if got := get(); got != "token-1" {
				t.Errorf("a token of %s was renewed too early", test.life)
			}
			time.Sleep(spread + 3*time.Second)
			if got := get(); got != "token-2" {
				t.Errorf("a token of %s was not renewed after %s", test.life, test.renewed)
			}
		})
	}
}

func TestAnOldTokenIsUsedWhileItIsValidAndNoLonger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := newIssuer()
		s, err := New(Config{Client: i, Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		pod := podWithToken(600)
		if _, err := s.Token(t.Context(), pod, wanted(pod)); err != nil {
			t.Fatal(err)
		}
		i.fail = errors.New("connection refused")
		time.Sleep(9 * time.Minute)
		for range 3 {
			if got, err := s.Token(t.Context(), pod, wanted(pod)); got != "token-1" || err != nil {
				t.Fatalf("token %q, %v", got, err)
			}
		}
		if n := len(i.Actions()); n != 2 {
			t.Errorf("%d requests, want one that fails and none for a minute", n)
		}
		time.Sleep(2 * time.Minute)
		_, err = s.Token(t.Context(), pod, wanted(pod))
		if want := "token of service account ns/robot expired and refresh failed: failed to fetch token: connection refused"; err == nil || err.Error() != want || !errors.Is(err, volume.ErrUnavailable) {
			t.Errorf("error %v, want %s", err, want)
		}
		i.fail = nil
		if got, err := s.Token(t.Context(), pod, wanted(pod)); got != "token-2" || err != nil {
			t.Errorf("token %q, %v", got, err)
		}
	})
}

func TestARefusedTokenIsNoTroubleOfTheNetwork(t *testing.T) {
	i := newIssuer()
	i.fail = apierrors.NewNotFound(v1.Resource("serviceaccounts"), "robot")
	tokens := NewTokens(i, slog.New(slog.DiscardHandler))
	_, err := tokens.Get(t.Context(), "ns", "robot", &authenticationv1.TokenRequest{})
	if err == nil || errors.Is(err, volume.ErrUnavailable) || err.Error() != `failed to fetch token: serviceaccounts "robot" not found` {
		t.Errorf("error %v", err)
	}
}

func TestPodsAreToldWhenTheirTokensAge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := newIssuer()
		var told atomic.Int32
		s, err := New(Config{Client: i, Log: slog.New(slog.DiscardHandler), Changed: func(types.UID) { told.Add(1) }})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { defer close(ended); _ = s.Run(ctx) }()
		defer func() { cancel(); <-ended }()
		pod := podWithToken(600)
		s.Register(pod)
		time.Sleep(tick + time.Second)
		synctest.Wait()
		if told := told.Load(); told != 1 {
			t.Errorf("told %d times of a token from before a restart, want once", told)
		}
		if _, err := s.Token(t.Context(), pod, wanted(pod)); err != nil {
			t.Fatal(err)
		}
		told.Store(0)
		time.Sleep(7 * time.Minute)
		synctest.Wait()
		if told := told.Load(); told != 0 {
			t.Errorf("told %d times of a young token", told)
		}
		time.Sleep(3 * time.Minute)
		synctest.Wait()
		if told.Load() == 0 {
			t.Error("not told of an old token")
		}
		if _, err := s.Token(t.Context(), pod, wanted(pod)); err != nil {
			t.Fatal(err)
		}
		s.Unregister("a")
		if n := len(s.tokens.known); n != 0 {
			t.Errorf("%d tokens are kept of a pod that is gone", n)
		}
		told.Store(0)
		time.Sleep(time.Hour)
		synctest.Wait()
		if told := told.Load(); told != 0 {
			t.Error("a pod that is gone was told")
		}
	})
}

func TestExpiredTokensAreDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tokens := NewTokens(newIssuer(), slog.New(slog.DiscardHandler))
		pod := podWithToken(600)
		if _, err := tokens.Get(t.Context(), "ns", "robot", boundTo(pod, wanted(pod))); err != nil {
			t.Fatal(err)
		}
		time.Sleep(9 * time.Minute)
		if tokens.dropExpired(); len(tokens.known) != 1 {
			t.Error("a valid token was dropped")
		}
		time.Sleep(time.Minute)
		if tokens.dropExpired(); len(tokens.known) != 0 {
			t.Error("an expired token was kept")
		}
	})
}
