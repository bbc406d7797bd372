package images_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	v1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-io/berth/agent/credentials"
	"github.com/berth-io/berth/agent/images"
	"github.com/berth-io/berth/agent/internal/fakecri"
)

// registry lets in only one user.
type registry struct {
	*fakecri.Runtime
	user  string
	tried []string
	err   error // of every pull
}

func (r *registry) PullImage(ctx context.Context, req *runtimeapi.PullImageRequest, opts ...grpc.CallOption) (*runtimeapi.PullImageResponse, error) {
	user := req.GetAuth().GetUsername()
	r.tried = append(r.tried, user)
	if r.err != nil {
		return nil, r.err
	}
	if user != r.user {
		return nil, status.Errorf(codes.Unknown, "denied to %q", user)
	}
	return r.Runtime.PullImage(ctx, req, opts...)
}

// wallet has the same credentials for every pod.
type wallet struct {
	users []string
	err   error
	asked int
}

func (w *wallet) Lookup(context.Context, *v1.Pod, string) ([]credentials.Credential, error) {
	w.asked++
	var all []credentials.Credential
	for _, user := range w.users {
		all = append(all, credentials.Credential{Username: user})
	}
	return all, w.err
}

// ledger notes what it is told, and wants a pull where must says so.
type ledger struct {
	must  bool
	err   error
	lines []string
}

func (l *ledger) MustPull(image, ref string, own func() ([]credentials.Credential, error)) (bool, error) {
	l.lines = append(l.lines, "look "+image+" "+ref)
	if l.must {
		if _, err := own(); err != nil {
			return true, err
		}
	}
	return l.must, nil
}

func (l *ledger) Begin(image string) error {
	l.lines = append(l.lines, "begin "+image)
	return l.err
}

func (l *ledger) Pulled(image, ref string, with *credentials.Credential) {
	user := "nobody"
	if with != nil {
		user = with.Username
	}
	l.lines = append(l.lines, fmt.Sprintf("pulled %s %s by %s", image, ref, user))
}

func (l *ledger) Failed(image string) { l.lines = append(l.lines, "failed "+image) }

func TestCredentialsAreTriedInOrderAndTheOneThatWorkedIsRecorded(t *testing.T) {
	for _, test := range []struct {
		users  []string
		let    string
		tried  []string
		record string
		err    string
	}{
		{nil, "", []string{""}, "pulled busybox sha256:busybox by nobody", ""},
		{[]string{"a"}, "a", []string{"a"}, "pulled busybox sha256:busybox by a", ""},
		{[]string{"a", "b", "c"}, "b", []string{"a", "b"}, "pulled busybox sha256:busybox by b", ""},
		{[]string{"a"}, "b", []string{"a"}, "failed busybox", `denied to "a"`},
		{[]string{"a", "b"}, "c", []string{"a", "b"}, "failed busybox", `[denied to "a", denied to "b"]`},
	} {
		r, l := &registry{Runtime: fakecri.New(), user: test.let}, &ledger{}
		r.Offers("busybox")
		p := images.New(r, &told{}, images.Config{Credentials: &wallet{users: test.users}, Records: l})
		_, err := p.Ensure(t.Context(), request(v1.PullIfNotPresent))
		if test.err == "" && err != nil || test.err != "" && (err == nil || err.Error() != test.err) {
			t.Errorf("%q: error %v, want %s", test.users, err, test.err)
		}
		if !slices.Equal(r.tried, test.tried) {
			t.Errorf("%q: tried %q, want %q", test.users, r.tried, test.tried)
		}
		if want := []string{"begin busybox", test.record}; !slices.Equal(l.lines, want) {
			t.Errorf("%q: recorded %q, want %q", test.users, l.lines, want)
		}
	}
}

func TestAnImageThatIsThereIsForThoseWhoMayUseIt(t *testing.T) {
	for _, test := range []struct {
		name         string
		policy       v1.PullPolicy
		must         bool
		user         string
		reason       string
		events       []string
		asked, pulls int
		required     string // that it is pulled, as it is counted
	}{
		{"who may", v1.PullIfNotPresent, false, "a", "", []string{"Pulled"}, 0, 0, "false"},
		{"who may, never pulled", v1.PullNever, false, "a", "", []string{"Pulled"}, 0, 0, "false"},
		{"who has to prove it and can", v1.PullIfNotPresent, true, "a", "", []string{"Pulling", "Pulled"}, 1, 1, "true"},
		{"who has to prove it and cannot", v1.PullIfNotPresent, true, "b", "ErrImagePull", []string{"Pulling", "Failed", "Failed"}, 1, 1, "true"},
		{"who has to prove it and must not pull", v1.PullNever, true, "a", "ErrImageNeverPull", []string{"ErrImageNeverPull", "Failed"}, 1, 0, "true"},
	} {
		t.Run(test.name, func(t *testing.T) {
			r, events, w := &registry{Runtime: fakecri.New(), user: "a"}, &told{}, &wallet{users: []string{test.user}}
			r.HasImages("busybox")
			r.Offers("busybox")
			counted := ""
			p := images.New(r, events, images.Config{
				Credentials: w, Records: &ledger{must: test.must},
				Ensured: func(_ v1.PullPolicy, present, pull string) { counted += present + " " + pull },
			})
			_, err := p.Ensure(t.Context(), request(test.policy))
			var known *images.Error
			if test.reason == "" && err != nil || test.reason != "" && (!errors.As(err, &known) || known.Reason != test.reason) {
				t.Errorf("error %v, want %s", err, test.reason)
			}
			if got := events.take(); !slices.Equal(got, test.events) {
				t.Errorf("events %q, want %q", got, test.events)
			}
			if counted != "true "+test.required {
				t.Errorf("counted %q", counted)
			}
			if w.asked != test.asked || len(r.tried) != test.pulls {
				t.Errorf("%d looks for credentials, %d pulls; want %d, %d", w.asked, len(r.tried), test.asked, test.pulls)
			}
		})
	}
}

func TestErrorsOfCredentialsAndRecordsAreTheContainers(t *testing.T) {
	broken := errors.New("broken")
	for _, test := range []struct {
		wallet wallet
		ledger ledger
		want   string
	}{
		{wallet{err: broken}, ledger{}, "broken"},
		{wallet{err: broken}, ledger{must: true}, "broken"},
		{wallet{}, ledger{must: true, err: broken}, `Failed to record image pull intent for container image "busybox": broken`},
	} {
		r := &registry{Runtime: fakecri.New()}
		if test.ledger.must {
			r.HasImages("busybox")
		}
		p := images.New(r, &told{}, images.Config{Credentials: &test.wallet, Records: &test.ledger})
		var known *images.Error
		if _, err := p.Ensure(t.Context(), request(v1.PullIfNotPresent)); !errors.As(err, &known) || known.Reason != "ErrImagePull" || known.Message != test.want {
			t.Errorf("error %v, want %s", err, test.want)
		}
		if len(r.tried) > 0 {
			t.Errorf("pulled %d times", len(r.tried))
		}
	}
}

func TestTheCRIsOwnErrorsAreReasons(t *testing.T) {
	for said, want := range map[string][2]string{
		"RegistryUnavailable: no route":            {"RegistryUnavailable", "image pull failed for busybox because the registry is unavailable: no route"},
		"SignatureValidationFailed":                {"SignatureValidationFailed", "image pull failed for busybox because the signature validation failed"},
		"other: RegistryUnavailable is not at all": {"ErrImagePull", "other: RegistryUnavailable is not at all"},
	} {
		r := &registry{Runtime: fakecri.New(), err: status.Error(codes.Unknown, said)}
		p := images.New(r, &told{}, images.Config{})
		var known *images.Error
		for _, message := range []string{want[1], "Back-off pulling image \"busybox\": " + want[0] + ": " + want[1]} {
			if _, err := p.Ensure(t.Context(), request(v1.PullAlways)); !errors.As(err, &known) || known.Message != message {
				t.Errorf("error %v, want %s", err, message)
			}
		}
	}
}

func TestAnInvalidNameIsSaidSo(t *testing.T) {
	events := &told{}
	p := images.New(fakecri.New(), events, images.Config{})
	r := request(v1.PullIfNotPresent)
	r.Image = "FAILED_IMAGE"
	const want = `Failed to apply default image tag "FAILED_IMAGE": couldn't parse image name "FAILED_IMAGE": invalid reference format: repository name (library/FAILED_IMAGE) must be lowercase`
	var known *images.Error
	if _, err := p.Ensure(t.Context(), r); !errors.As(err, &known) || known.Reason != "InvalidImageName" || known.Message != want {
		t.Errorf("error %v, want %s", err, want)
	}
	if got := events.take(); !slices.Equal(got, []string{"InspectFailed", "Failed"}) {
		t.Errorf("events %q", got)
	}
}

func TestPullsWaitForAPlaceAndNotForever(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := fakecri.New()
		r.Offers("busybox", "second")
		release := r.Hang("PullImage", "")
		p := images.New(r, &told{}, images.Config{Parallel: 1})
		first := make(chan error)
		go func() { _, err := p.Ensure(t.Context(), request(v1.PullAlways)); first <- err }()
		synctest.Wait()
		other := request(v1.PullAlways)
		other.Image = "second"
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, err := p.Ensure(ctx, other); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error %v of the one that waits", err)
		}
		release()
		if err := <-first; err != nil {
			t.Error(err)
		}
		if _, err := p.Ensure(t.Context(), other); err != nil {
			t.Error(err)
		}
	})
}

func TestPullsAreBegunNoFasterThanAllowed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := fakecri.New()
		r.Offers("busybox")
		p := images.New(r, &told{}, images.Config{QPS: 0.5, Burst: 2})
		fails := 0
		for i := range 4 {
			req := request(v1.PullAlways)
			req.Pod.UID += "x"
			if i > 1 {
				req.Pod.UID += "y"
			}
			if _, err := p.Ensure(t.Context(), req); err != nil {
				fails++
				var known *images.Error
				if errors.As(err, &known) && known.Reason == "ErrImagePull" && known.Message != "pull QPS exceeded" {
					t.Errorf("error %v", err)
				}
			}
		}
		if fails != 2 {
			t.Errorf("%d of 4 pulls failed, want 2", fails)
		}
		time.Sleep(time.Minute)
		if _, err := p.Ensure(t.Context(), request(v1.PullAlways)); err != nil {
			t.Error(err)
		}
	})
}
