// Package images makes sure that a container's image, and those of the image
// volumes it mounts, are there before the container is created: pull policy,
// credentials, how many pulls at once, back-off after a failed pull, and the
// kubelet's reasons and events for all of it (pkg/kubelet/images).
package images

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/distribution/reference"
	"golang.org/x/sync/semaphore"
	"golang.org/x/time/rate"
	"google.golang.org/grpc"
	v1 "k8s.io/api/core/v1"
	utilerrors "k8s.io/apimachinery/pkg/util/errors"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	crierrors "k8s.io/cri-api/pkg/errors"

	"github.com/berth-io/berth/agent/credentials"
)

// The reasons of the API's ContainerStateWaiting that concern images
// (pkg/kubelet/images/types.go).
const (
	reasonPull     = "ErrImagePull"
	reasonBackOff  = "ImagePullBackOff"
	reasonNever    = "ErrImageNeverPull"
	reasonInspect  = "ImageInspectError"
	reasonName     = "InvalidImageName"
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

// Credentials says what to pull an image for a pod with, in order.
type Credentials interface {
	Lookup(ctx context.Context, pod *v1.Pod, image string) ([]credentials.Credential, error)
}

// Records remembers pulls, see credentials.Records.
type Records interface {
	MustPull(image, ref string, own func() ([]credentials.Credential, error)) (bool, error)
	Begin(image string) error
	Pulled(image, ref string, with *credentials.Credential)
	Failed(image string)
}

// Config of a Puller. With the zero Config images are pulled without
// credentials, who may use one that is there is not asked, and how many are
// pulled at once is left to the runtime.
type Config struct {
	Credentials Credentials // nil: none
	Records     Records     // nil: no records
	// Parallel bounds how many images are pulled at once: one with
	// serializeImagePulls, else maxParallelImagePulls; zero: no bound.
	Parallel int
	// QPS and Burst bound how often a pull is begun (registryPullQPS,
	// registryBurst); a QPS of zero is no bound.
	QPS   float64
	Burst int
	// Pulled is told of each image that was pulled, waiting included, and how
	// large it is; nil: nobody counts.
	Pulled func(took time.Duration, bytes uint64)
	// Ensured is told of each image that was asked for: whether it was there and
	// whether it had to be pulled, "true", "false" or "unknown"; nil: nobody counts.
	Ensured func(policy v1.PullPolicy, present, pull string)
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
// join.
type Puller struct {
	runtime Runtime
	events  Events
	config  Config
	places  *semaphore.Weighted
	limit   *rate.Limiter // nil: none

	mu       sync.Mutex
	failures map[string]failure // by pod UID and image
}

type failure struct {
	reason  string
	message string
	retryAt time.Time
	delay   time.Duration
}

// New returns a Puller.
func New(runtime Runtime, events Events, c Config) *Puller {
	p := &Puller{runtime: runtime, events: events, config: c, failures: map[string]failure{}}
	places := int64(c.Parallel)
	if places <= 0 {
		places = math.MaxInt64
	}
	p.places = semaphore.NewWeighted(places)
	if c.QPS > 0 {
		p.limit = rate.NewLimiter(rate.Limit(c.QPS), c.Burst)
	}
	return p
}

// Ensure returns the image of a container, pulled if its policy asks for it, or
// if the pod has to prove that it may use the image. An error is an *Error, or
// ctx's.
func (p *Puller) Ensure(ctx context.Context, r Request) (*runtimeapi.Image, error) {
	image, err := p.ensure(ctx, r)
	var known *Error
	if errors.As(err, &known) {
		p.tell(r, v1.EventTypeWarning, "Failed", "Error: %s", known.Reason)
	}
	return image, err
}

func (p *Puller) ensure(ctx context.Context, r Request) (*runtimeapi.Image, error) {
	is := &known{present: "unknown", pull: "unknown"}
	if p.config.Ensured != nil {
		defer func() { p.config.Ensured(r.Policy, is.present, is.pull) }()
	}
	if _, err := reference.ParseNormalizedNamed(r.Image); err != nil {
		message := fmt.Sprintf("Failed to apply default image tag %q: couldn't parse image name %q: %v", r.Image, r.Image, err)
		p.tell(r, v1.EventTypeWarning, "InspectFailed", "%s", message)
		return nil, &Error{Reason: reasonName, Message: message, RetryAt: time.Now().Add(longestBackoff)}
	}
	own := sync.OnceValues(func() ([]credentials.Credential, error) {
		if p.config.Credentials == nil {
			return nil, nil
		}
		return p.config.Credentials.Lookup(ctx, r.Pod, r.Image)
	})
	if r.Policy != v1.PullAlways {
		image, err := p.present(ctx, r, own, is)
		if err != nil || image != nil {
			return image, err
		}
	}
	is.pull = "true"
	with, err := own()
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if err != nil {
		return nil, &Error{Reason: reasonPull, Message: err.Error(), RetryAt: time.Now().Add(firstBackoff)}
	}
	return p.pull(ctx, r, with)
}

// known is what is counted of a request for an image.
type known struct{ present, pull string }

// present returns the image if it is there and the pod may use it as it is, and
// nil for one that is to be pulled.
func (p *Puller) present(ctx context.Context, r Request, own func() ([]credentials.Credential, error), is *known) (*runtimeapi.Image, error) {
	image, err := p.inspect(ctx, r)
	if err != nil {
		return nil, err
	}
	may := image != nil
	is.present = strconv.FormatBool(may)
	what := "already present on machine"
	if may && p.config.Records != nil {
		what += " and can be accessed by the pod"
		must, err := p.config.Records.MustPull(r.Image, image.GetId(), own)
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if err != nil {
			return nil, &Error{Reason: reasonPull, Message: err.Error(), RetryAt: time.Now().Add(firstBackoff)}
		}
		may = !must
	}
	if image != nil {
		is.pull = strconv.FormatBool(!may)
	}
	switch {
	case may:
		p.tell(r, v1.EventTypeNormal, "Pulled", "Container image %q %s", r.Image, what)
		return image, nil
	case r.Policy == v1.PullNever:
		// The same words whether the image is there or not: who may not use it
		// is not told.
		message := fmt.Sprintf("Container image %q is not present with pull policy of Never", r.Image)
		p.tell(r, v1.EventTypeWarning, "ErrImageNeverPull", "%s", message)
		return nil, &Error{Reason: reasonNever, Message: message, RetryAt: time.Now().Add(firstBackoff)}
	}
	return nil, nil
}

// Forget drops the back-offs of a pod that has ended, also those of images that
// it does not name any more.
func (p *Puller) Forget(pod *v1.Pod) {
	p.mu.Lock()
	defer p.mu.Unlock()
	maps.DeleteFunc(p.failures, func(k string, _ failure) bool { return strings.HasPrefix(k, key(pod, "")) })
}

func (p *Puller) inspect(ctx context.Context, r Request) (*runtimeapi.Image, error) {
	call, cancel := context.WithTimeout(ctx, inspectTimeout)
	defer cancel()
	resp, err := p.runtime.ImageStatus(call, &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: r.Image}})
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if err != nil {
		message := fmt.Sprintf("Failed to inspect image %q: %v", r.Image, err)
		p.tell(r, v1.EventTypeWarning, "InspectFailed", "%s", message)
		return nil, &Error{Reason: reasonInspect, Message: message, RetryAt: time.Now().Add(firstBackoff)}
	}
	return resp.GetImage(), nil
}

// pull pulls an image unless it is backed off.
func (p *Puller) pull(ctx context.Context, r Request, with []credentials.Credential) (*runtimeapi.Image, error) {
	k := key(r.Pod, r.Image)
	if f, ok := p.failure(k); ok && f.retryAt.After(time.Now()) {
		p.tell(r, v1.EventTypeNormal, "BackOff", "Back-off pulling image %q", r.Image)
		return nil, &Error{Reason: reasonBackOff, RetryAt: f.retryAt,
			Message: fmt.Sprintf("Back-off pulling image %q: %s: %s", r.Image, f.reason, f.message)}
	}
	p.tell(r, v1.EventTypeNormal, "Pulling", "Pulling image %q", r.Image)
	done := func(error) {}
	if r.Pulling != nil {
		done = r.Pulling()
	}
	start := time.Now()
	image, took, err := p.recorded(ctx, r, with)
	done(plain(err))
	if ctx.Err() != nil {
		return nil, ctx.Err() // the pod is being stopped: nobody's failure
	}
	var known *Error
	if errors.As(err, &known) {
		return nil, known
	}
	if err != nil {
		p.tell(r, v1.EventTypeWarning, "Failed", "Failed to pull image %q: %s", r.Image, message(err))
		reason, text := why(r.Image, err)
		p.fail(k, reason, text)
		// Asked again in a moment, the answer is the back-off: users know the
		// two reasons one after the other.
		return nil, &Error{Reason: reason, Message: text, RetryAt: time.Now().Add(time.Second)}
	}
	p.mu.Lock()
	delete(p.failures, k)
	p.mu.Unlock()
	all := time.Since(start).Truncate(time.Millisecond)
	p.tell(r, v1.EventTypeNormal, "Pulled", "Successfully pulled image %q in %s (%s including waiting). Image size: %d bytes.",
		r.Image, took.Truncate(time.Millisecond), all, image.GetSize())
	if p.config.Pulled != nil {
		p.config.Pulled(all, image.GetSize())
	}
	return image, nil
}

// recorded pulls an image and records with what. The record that it is under
// way comes first: a daemon that is killed must not take the image for one that
// anybody may use.
func (p *Puller) recorded(ctx context.Context, r Request, with []credentials.Credential) (image *runtimeapi.Image, took time.Duration, err error) {
	if p.config.Records != nil {
		if err := p.config.Records.Begin(r.Image); err != nil {
			//lint:ignore ST1005 the kubelet's text
			return nil, 0, fmt.Errorf("Failed to record image pull intent for container image %q: %w", r.Image, err)
		}
	}
	used, took, err := p.fetch(ctx, r, with)
	if err == nil {
		if image, err = p.inspect(ctx, r); err == nil && image == nil {
			err = &Error{Reason: reasonInspect, RetryAt: time.Now().Add(firstBackoff),
				Message: fmt.Sprintf("image %q was pulled and is gone again: it was removed at the same time", r.Image)}
		}
	}
	switch {
	case p.config.Records == nil:
	case err == nil:
		p.config.Records.Pulled(r.Image, image.GetId(), used)
	default:
		p.config.Records.Failed(r.Image)
	}
	return image, took, err
}

// fetch waits for a place and tries one credential after the other; used is the
// one that worked, nil for none.
func (p *Puller) fetch(ctx context.Context, r Request, with []credentials.Credential) (used *credentials.Credential, took time.Duration, err error) {
	if err := p.places.Acquire(ctx, 1); err != nil {
		return nil, 0, err
	}
	defer p.places.Release(1)
	if p.limit != nil && !p.limit.Allow() {
		return nil, 0, errors.New("pull QPS exceeded")
	}
	start := time.Now()
	request := &runtimeapi.PullImageRequest{
		Image:         &runtimeapi.ImageSpec{Image: r.Image, UserSpecifiedImage: r.Image, Annotations: r.Pod.Annotations},
		SandboxConfig: r.Sandbox,
	}
	if len(with) == 0 {
		_, err := p.runtime.PullImage(ctx, request)
		return nil, time.Since(start), err
	}
	var errs []error
	for i := range with {
		request.Auth = &runtimeapi.AuthConfig{Username: with[i].Username, Password: with[i].Password}
		_, err := p.runtime.PullImage(ctx, request)
		if err == nil {
			return &with[i], time.Since(start), nil
		}
		errs = append(errs, plain(err))
		if ctx.Err() != nil {
			break
		}
	}
	return nil, 0, utilerrors.NewAggregate(errs)
}

// why makes the API's reason and message of a failed pull. The CRI has two
// errors of its own, which begin with their names (evalCRIPullErr).
func why(image string, err error) (reason, text string) {
	said := message(err)
	for _, known := range []struct {
		err  error
		text string
	}{
		{crierrors.ErrRegistryUnavailable, "image pull failed for %s because the registry is unavailable%s"},
		{crierrors.ErrSignatureValidationFailed, "image pull failed for %s because the signature validation failed%s"},
	} {
		if rest, ok := strings.CutPrefix(said, known.err.Error()); ok {
			return known.err.Error(), fmt.Sprintf(known.text, image, rest)
		}
	}
	return reasonPull, said
}

func (p *Puller) failure(k string) (failure, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f, ok := p.failures[k]
	return f, ok
}

func (p *Puller) fail(k, reason, message string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f := p.failures[k]
	f.delay = min(max(2*f.delay, firstBackoff), longestBackoff)
	f.reason, f.message, f.retryAt = reason, message, time.Now().Add(f.delay)
	p.failures[k] = f
}

func (p *Puller) tell(r Request, eventType, reason, format string, args ...any) {
	p.events.Container(r.Pod, r.Container.Name, r.Init, eventType, reason, format, args...)
}

func key(pod *v1.Pod, image string) string { return string(pod.UID) + " " + image }
