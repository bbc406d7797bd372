// Package images makes sure that a container's image, and those of the image
// volumes it mounts, are there before the container is created: pull policy,
// back-off after a failed pull, and the kubelet's reasons and events for both.
package images

import (
	"context"
	"fmt"
	"sync"
	"time"

	"google.golang.org/grpc"
	v1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// The reasons of the API's ContainerStateWaiting that concern images
// (pkg/kubelet/images/types.go).
const (
	reasonPull     = "ErrImagePull"
	reasonBackOff  = "ImagePullBackOff"
	reasonNever    = "ErrImageNeverPull"
	reasonInspect  = "ImageInspectError"
	firstBackoff   = 10 * time.Second
	longestBackoff = 300 * time.Second
	inspectTimeout = 10 * time.Second
)

// Runtime is the part of the CRI's image service that is needed.
type Runtime interface {
	ImageStatus(context.Context, *runtimeapi.ImageStatusRequest, ...grpc.CallOption) (*runtimeapi.ImageStatusResponse, error)
	PullImage(context.Context, *runtimeapi.PullImageRequest, ...grpc.CallOption) (*runtimeapi.PullImageResponse, error)
}

// Events tells the user about a container's image.
type Events interface {
	Container(pod *v1.Pod, container string, init bool, eventType, reason, format string, args ...any)
}

// Error says why an image is not there.
type Error struct {
	Reason  string
	Message string
	RetryAt time.Time // when to try again
}

func (e *Error) Error() string { return e.Message }

// Request is one container's need of an image.
type Request struct {
	Pod       *v1.Pod
	Container *v1.Container // that needs it, for events
	Init      bool
	Image     string        // the reference, of the container or a volume
	Policy    v1.PullPolicy // of the same
	Sandbox   *runtimeapi.PodSandboxConfig
	// Pulling is called before a pull begins; the function it returns, when
	// the pull is over. It may be nil.
	Pulling func() (done func(error))
}

// Puller pulls images. Concurrent pulls of one reference are the runtime's to
// join, and their number is the runtime's to bound.
type Puller struct {
	runtime Runtime
	events  Events

	mu       sync.Mutex
	failures map[string]failure // by pod UID and image
}

type failure struct {
	message string
	retryAt time.Time
	delay   time.Duration
}

// New returns a Puller.
func New(runtime Runtime, events Events) *Puller {
	return &Puller{runtime: runtime, events: events, failures: map[string]failure{}}
}

// Ensure returns the image of a container, pulled if its policy asks for it.
// An error is an *Error, or ctx's.
func (p *Puller) Ensure(ctx context.Context, r Request) (*runtimeapi.Image, error) {
	image, err := p.inspect(ctx, r)
	if err != nil {
		return nil, err
	}
	switch policy := r.Policy; {
	case policy == v1.PullNever && image == nil:
		p.tell(r, v1.EventTypeWarning, "ErrImageNeverPull", "Container image %q is not present with pull policy of Never", r.Image)
		return nil, &Error{
			Reason:  reasonNever,
			Message: fmt.Sprintf("Container image %q is not present with pull policy of Never", r.Image),
			RetryAt: time.Now().Add(firstBackoff),
		}
	case image != nil && policy != v1.PullAlways:
		p.tell(r, v1.EventTypeNormal, "Pulled", "Container image %q already present on machine", r.Image)
		return image, nil
	}
	if err := p.pull(ctx, r); err != nil {
		return nil, err
	}
	image, err = p.inspect(ctx, r)
	if err == nil && image == nil {
		err = &Error{Reason: reasonInspect, RetryAt: time.Now().Add(firstBackoff),
			Message: fmt.Sprintf("image %q was pulled and is gone again: it was removed at the same time", r.Image)}
	}
	return image, err
}

// Forget drops the back-off of a pod that has ended.
func (p *Puller) Forget(pod *v1.Pod) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, list := range [][]v1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			delete(p.failures, key(pod, list[i].Image))
		}
	}
	for i := range pod.Spec.Volumes {
		if image := pod.Spec.Volumes[i].Image; image != nil {
			delete(p.failures, key(pod, image.Reference))
		}
	}
}

func (p *Puller) inspect(ctx context.Context, r Request) (*runtimeapi.Image, error) {
	call, cancel := context.WithTimeout(ctx, inspectTimeout)
	defer cancel()
	resp, err := p.runtime.ImageStatus(call, &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: r.Image}})
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if err != nil {
		return nil, &Error{Reason: reasonInspect, RetryAt: time.Now().Add(firstBackoff),
			Message: fmt.Sprintf("Failed to inspect image %q: %v", r.Image, err)}
	}
	return resp.GetImage(), nil
}

func (p *Puller) pull(ctx context.Context, r Request) error {
	k := key(r.Pod, r.Image)
	if f, ok := p.failure(k); ok && f.retryAt.After(time.Now()) {
		p.tell(r, v1.EventTypeNormal, "BackOff", "Back-off pulling image %q", r.Image)
		return &Error{Reason: reasonBackOff, RetryAt: f.retryAt,
			Message: fmt.Sprintf("Back-off pulling image %q: %s", r.Image, f.message)}
	}
	p.tell(r, v1.EventTypeNormal, "Pulling", "Pulling image %q", r.Image)
	done := func(error) {}
	if r.Pulling != nil {
		done = r.Pulling()
	}
	start := time.Now()
	_, err := p.runtime.PullImage(ctx, &runtimeapi.PullImageRequest{
		Image:         &runtimeapi.ImageSpec{Image: r.Image},
		SandboxConfig: r.Sandbox,
	})
	done(plain(err))
	if ctx.Err() != nil {
		return ctx.Err() // the pod is being stopped: nobody's failure
	}
	if err != nil {
		f := p.fail(k, message(err))
		p.tell(r, v1.EventTypeWarning, "Failed", "Failed to pull image %q: %s", r.Image, f.message)
		// Asked again in a moment, the answer is the back-off: users know the
		// two reasons one after the other.
		return &Error{Reason: reasonPull, Message: f.message, RetryAt: time.Now().Add(time.Second)}
	}
	p.mu.Lock()
	delete(p.failures, k)
	p.mu.Unlock()
	p.tell(r, v1.EventTypeNormal, "Pulled", "Successfully pulled image %q in %s", r.Image, time.Since(start).Round(time.Millisecond))
	return nil
}

func (p *Puller) failure(k string) (failure, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f, ok := p.failures[k]
	return f, ok
}

func (p *Puller) fail(k, message string) failure {
	p.mu.Lock()
	defer p.mu.Unlock()
	f := p.failures[k]
	f.delay = min(max(2*f.delay, firstBackoff), longestBackoff)
	f.message, f.retryAt = message, time.Now().Add(f.delay)
	p.failures[k] = f
	return f
}

func (p *Puller) tell(r Request, eventType, reason, format string, args ...any) {
	p.events.Container(r.Pod, r.Container.Name, r.Init, eventType, reason, format, args...)
}

func key(pod *v1.Pod, image string) string { return string(pod.UID) + " " + image }
