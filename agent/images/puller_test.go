package images_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-io/berth/agent/images"
	"github.com/berth-io/berth/agent/internal/fakecri"
)

type told struct {
	mu      sync.Mutex
	reasons []string
}

func (e *told) Container(_ *v1.Pod, _ string, _ bool, _, reason, _ string, _ ...any) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.reasons = append(e.reasons, reason)
}

func (e *told) take() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	out := e.reasons
	e.reasons = nil
	return out
}

func request(policy v1.PullPolicy) images.Request {
	return images.Request{
		Pod:       &v1.Pod{ObjectMeta: metav1.ObjectMeta{UID: "uid"}, Spec: v1.PodSpec{Containers: []v1.Container{{Name: "a", Image: "busybox"}}}},
		Container: &v1.Container{Name: "a"}, Image: "busybox", Policy: policy,
	}
}

func TestPullPolicies(t *testing.T) {
	for _, c := range []struct {
		policy           v1.PullPolicy
		present, offered bool
		reason           string // of the error
		events           []string
		pulls            int
		counted          string // present, pull required
	}{
		{v1.PullIfNotPresent, true, true, "", []string{"Pulled"}, 0, "true false"},
		{v1.PullIfNotPresent, false, true, "", []string{"Pulling", "Pulled"}, 1, "false true"},
		{v1.PullIfNotPresent, false, false, "ErrImagePull", []string{"Pulling", "Failed", "Failed"}, 1, "false true"},
		{v1.PullAlways, true, true, "", []string{"Pulling", "Pulled"}, 1, "unknown true"},
		{v1.PullAlways, true, false, "ErrImagePull", []string{"Pulling", "Failed", "Failed"}, 1, "unknown true"},
		{v1.PullNever, true, true, "", []string{"Pulled"}, 0, "true false"},
		{v1.PullNever, false, true, "ErrImageNeverPull", []string{"ErrImageNeverPull", "Failed"}, 0, "false unknown"},
	} {
		t.Run(fmt.Sprintf("%s, present %v, offered %v", c.policy, c.present, c.offered), func(t *testing.T) {
			r, events := fakecri.New(), &told{}
			if c.present {
				r.HasImages("busybox")
			}
			if c.offered {
				r.Offers("busybox")
			}
			var counted []string
			image, err := images.New(r, events, images.Config{Ensured: func(policy v1.PullPolicy, present, pull string) {
				counted = append(counted, fmt.Sprint(policy, " ", present, " ", pull))
			}}).Ensure(t.Context(), request(c.policy))
			var known *images.Error
			switch {
			case c.reason == "" && (err != nil || image.GetSpec().GetImage() != "busybox"):
				t.Errorf("image %v, error %v", image, err)
			case c.reason != "" && (!errors.As(err, &known) || known.Reason != c.reason || !known.RetryAt.After(time.Now())):
				t.Errorf("error %v, want one of %s to be retried later", err, c.reason)
			}
			if got := events.take(); !slices.Equal(got, c.events) {
				t.Errorf("events %q, want %q", got, c.events)
			}
			if want := []string{fmt.Sprint(c.policy, " ", c.counted)}; !slices.Equal(counted, want) {
				t.Errorf("counted %q, want %q", counted, want)
			}
			if got := len(r.Calls()); got != c.pulls {
				t.Errorf("%d pulls, want %d", got, c.pulls)
			}
		})
	}
}

func TestAFailedPullIsBackedOffAndForgottenWithThePod(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, events := fakecri.New(), &told{}
		p := images.New(r, events, images.Config{})
		try := func() *images.Error {
			t.Helper()
			var known *images.Error
			if _, err := p.Ensure(t.Context(), request(v1.PullIfNotPresent)); !errors.As(err, &known) {
				t.Fatalf("error %v", err)
			}
			return known
		}
		for _, delay := range []time.Duration{10, 20, 40, 80, 160, 300, 300} {
			failed := time.Now()
			first := try()
			if first.Reason != "ErrImagePull" || first.Message != "busybox: not found" {
				t.Fatalf("%s: %s", first.Reason, first.Message)
			}
			time.Sleep(time.Until(first.RetryAt))
			then := try()
			if then.Reason != "ImagePullBackOff" || then.Message != `Back-off pulling image "busybox": ErrImagePull: busybox: not found` {
				t.Fatalf("%s: %s", then.Reason, then.Message)
			}
			if got := then.RetryAt.Sub(failed); got != delay*time.Second {
				t.Fatalf("backed off for %s, want %ds", got, delay)
			}
			time.Sleep(time.Until(then.RetryAt))
		}
		if got := len(r.Calls()); got != 7 {
			t.Errorf("%d pulls, want 7", got)
		}
		try()
		other := request(v1.PullIfNotPresent).Pod.DeepCopy()
		other.Spec.Containers = nil // it was given another image since
		p.Forget(other)
		if got := try().Reason; got != "ErrImagePull" {
			t.Errorf("%s after the pod was forgotten", got)
		}
	})
}

func TestAStopInterruptsAPullAndIsNobodysFailure(t *testing.T) {
	for _, method := range []string{"PullImage", "ImageStatus"} {
		synctest.Test(t, func(t *testing.T) {
			r, events := fakecri.New(), &told{}
			r.Offers("busybox")
			release := r.Hang(method, "")
			p := images.New(r, events, images.Config{})
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan error)
			go func() {
				_, err := p.Ensure(ctx, request(v1.PullIfNotPresent))
				ended <- err
			}()
			synctest.Wait()
			cancel()
			if err := <-ended; !errors.Is(err, context.Canceled) {
				t.Errorf("%s: %v", method, err)
			}
			if slices.Contains(events.take(), "Failed") {
				t.Errorf("%s: the pull is said to have failed", method)
			}
			release()
			if _, err := p.Ensure(t.Context(), request(v1.PullIfNotPresent)); err != nil {
				t.Errorf("%s: backed off after an interruption: %v", method, err)
			}
		})
	}
}

func TestARuntimeThatCannotSayIsAskedAgain(t *testing.T) {
	r := fakecri.New()
	defer r.Fail("ImageStatus", "", status.Error(codes.Unavailable, "away"))()
	var known *images.Error
	if _, err := images.New(r, &told{}, images.Config{}).Ensure(t.Context(), request(v1.PullIfNotPresent)); !errors.As(err, &known) || known.Reason != "ImageInspectError" {
		t.Errorf("error %v", err)
	}
}

func TestTheTimeOfAPullIsToldToWhoAsked(t *testing.T) {
	r := fakecri.New()
	r.Offers("busybox")
	var began, done int
	req := request(v1.PullIfNotPresent)
	req.Pulling = func() func(error) { began++; return func(error) { done++ } }
	p := images.New(r, &told{}, images.Config{})
	for range 2 { // the second finds the image
		if _, err := p.Ensure(t.Context(), req); err != nil {
			t.Fatal(err)
		}
	}
	if began != 1 || done != 1 {
		t.Errorf("began %d, done %d", began, done)
	}
}
