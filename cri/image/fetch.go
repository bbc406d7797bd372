package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"sync/atomic"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/remotes"
	remoteerrors "github.com/containerd/containerd/v2/core/remotes/errors"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berth-io/berth/internal/failpoint"
)

// interruptedError marks a fetch that could go well another time: what was
// received is kept for it.
type interruptedError struct{ err error }

func (e *interruptedError) Error() string { return e.err.Error() }
func (e *interruptedError) Unwrap() error { return e.err }

func interrupted(err error) bool {
	var i *interruptedError
	return errors.As(err, &i) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}

// errNoRange is a registry's refusal to send the rest of a blob; it is asked
// for the whole then.
var errNoRange = errors.New("cannot continue a blob in the middle")

// stall gives up on a registry from which nothing came for too long. It runs
// only while armed, so that time spent on the local disk is not held against
// the registry. Each request has its own time: a mirror that does not answer
// uses up nothing of the next one's.
type stall struct {
	host    atomic.Pointer[string] // of the last request
	timeout time.Duration
	timer   *time.Timer
	cancel  context.CancelCauseFunc
}

// watch derives a context that ends when the registry stalls. It starts armed.
func watch(ctx context.Context, timeout time.Duration) (context.Context, *stall) {
	s := &stall{timeout: timeout}
	ctx, s.cancel = context.WithCancelCause(ctx)
	s.timer = time.AfterFunc(timeout, func() {
		s.cancel(s.silence())
	})
	return withHost(ctx, func(host string) {
		s.host.Store(&host)
		s.arm()
	}), s
}

func (s *stall) silence() error {
	return fmt.Errorf("%s sent nothing for %s, giving up: %w", s.hostName(), s.timeout, errdefs.ErrUnavailable)
}

func (s *stall) hostName() string {
	if host := s.host.Load(); host != nil {
		return *host
	}
	return "the registry"
}

func (s *stall) arm()    { s.timer.Reset(s.timeout) }
func (s *stall) disarm() { s.timer.Stop() }

func (s *stall) close() {
	s.timer.Stop()
	s.cancel(nil)
}

// explain words an error of an operation under the watch's context.
func (s *stall) explain(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return &interruptedError{cause}
	}
	var request *url.Error
	if errors.As(err, &request) && request.Timeout() {
		return &interruptedError{s.silence()}
	}
	return explainRemote(err, s.hostName())
}

// fetcher gets the blobs of one pull into the content store.
type fetcher struct {
	store   content.Store
	remote  remotes.Fetcher
	blobs   *keylock // by digest, over all pulls
	timeout time.Duration
}

// document fetches a manifest, an index or a configuration.
func (f *fetcher) document(ctx context.Context, desc ocispec.Descriptor) ([]byte, error) {
	if desc.Size > maxDocument {
		return nil, fmt.Errorf("%d bytes is more than the %d a document may have", desc.Size, maxDocument)
	}
	if err := f.blob(ctx, desc, nil); err != nil {
		return nil, err
	}
	return readBlob(ctx, f.store, desc)
}

// blob fetches a blob unless it is there. It continues where an earlier try
// stopped, and commits only what has the descriptor's size and digest.
func (f *fetcher) blob(ctx context.Context, desc ocispec.Descriptor, report func(status string, offset int64)) error {
	if report == nil {
		report = func(string, int64) {}
	}
	unlock, err := f.blobs.lock(ctx, desc.Digest.String())
	if err != nil {
		return err
	}
	defer unlock()

	ref := "blob-" + desc.Digest.String()
	w, err := f.store.Writer(ctx, content.WithRef(ref), content.WithDescriptor(desc))
	if errdefs.IsAlreadyExists(err) {
		report("exists", desc.Size)
		return nil
	}
	if err != nil {
		return fmt.Errorf("write to the content store: %w", err)
	}
	defer w.Close()
	failpoint.Hit("cri/image-ingest")

	if err := f.receive(ctx, w, desc, report); err != nil {
		return err
	}
	failpoint.Hit("cri/image-received")
	if got := w.Digest(); desc.Digest.Algorithm() == digest.Canonical && got != desc.Digest {
		return f.discard(ctx, w, ref, fmt.Errorf("content has digest %s", got))
	}
	if err := w.Commit(ctx, desc.Size, desc.Digest); err != nil && !errdefs.IsAlreadyExists(err) {
		return f.discard(ctx, w, ref, fmt.Errorf("commit to the content store: %w", err))
	}
	return nil
}

// discard drops what cannot be continued.
func (f *fetcher) discard(ctx context.Context, w content.Writer, ref string, err error) error {
	w.Close()
	if aerr := f.store.Abort(context.WithoutCancel(ctx), ref); aerr != nil && !errdefs.IsNotFound(aerr) {
		return errors.Join(err, fmt.Errorf("drop the received bytes: %w", aerr))
	}
	return err
}

// receive writes the bytes that are still missing.
func (f *fetcher) receive(ctx context.Context, w content.Writer, desc ocispec.Descriptor, report func(string, int64)) error {
	status, err := w.Status()
	if err != nil {
		return fmt.Errorf("content store: %w", err)
	}
	offset := status.Offset
	if offset <= desc.Size {
		err = f.receiveFrom(ctx, w, desc, offset, report)
		if offset == 0 || !errors.Is(err, errNoRange) {
			return err
		}
	}
	if err := w.Truncate(0); err != nil {
		return fmt.Errorf("content store: %w", err)
	}
	return f.receiveFrom(ctx, w, desc, 0, report)
}

func (f *fetcher) receiveFrom(ctx context.Context, w content.Writer, desc ocispec.Descriptor, offset int64, report func(string, int64)) error {
	report("downloading", offset)
	if offset == desc.Size {
		return nil
	}
	ctx, s := watch(ctx, f.timeout)
	defer s.close()
	// Foreign URLs in a descriptor are not followed: blobs come from where the
	// image comes from.
	desc.URLs = nil
	rc, err := f.remote.Fetch(ctx, desc)
	if err != nil {
		return s.explain(ctx, err)
	}
	defer rc.Close()
	if offset > 0 {
		if _, err := rc.(io.Seeker).Seek(offset, io.SeekStart); err != nil {
			return s.explain(ctx, err)
		}
	}
	return f.copy(ctx, w, rc, desc.Size, offset, s, report)
}

func (f *fetcher) copy(ctx context.Context, w io.Writer, r io.Reader, size, offset int64, s *stall, report func(string, int64)) error {
	buf := make([]byte, 64<<10)
	for {
		s.arm()
		n, err := r.Read(buf)
		s.disarm()
		if n > 0 {
			if _, werr := w.Write(buf[:n]); werr != nil {
				return fmt.Errorf("write to the content store: %w", werr)
			}
			offset += int64(n)
			report("downloading", offset)
		}
		switch {
		case err == io.EOF && offset == size:
			return nil
		case err == io.EOF:
			return fmt.Errorf("%s has %d of its %d bytes", s.hostName(), offset, size)
		case errdefs.IsFailedPrecondition(err):
			return fmt.Errorf("%s has more than its %d bytes", s.hostName(), size)
		case err != nil:
			return f.readError(ctx, s, err, offset, size)
		}
	}
}

// readError tells a connection that broke, which may be continued, from an
// answer that will be the same next time.
func (f *fetcher) readError(ctx context.Context, s *stall, err error, offset, size int64) error {
	var status remoteerrors.ErrUnexpectedStatus
	if errors.As(err, &status) && status.StatusCode == http.StatusRequestedRangeNotSatisfiable {
		return fmt.Errorf("%s: %w", s.hostName(), errNoRange)
	}
	err = s.explain(ctx, err)
	if interrupted(err) || errdefs.IsNotFound(err) || errdefs.IsUnauthorized(err) {
		return err
	}
	return &interruptedError{fmt.Errorf("connection to %s broke after %d of %d bytes: %w", s.hostName(), offset, size, err)}
}

// readBlob reads a small blob from the store and verifies it again, since a
// document that changed on disk decides what is run.
func readBlob(ctx context.Context, store content.Provider, desc ocispec.Descriptor) ([]byte, error) {
	ra, err := store.ReaderAt(ctx, desc)
	if err != nil {
		return nil, err
	}
	defer ra.Close()
	if ra.Size() > maxDocument {
		return nil, fmt.Errorf("%d bytes is more than the %d a document may have", ra.Size(), maxDocument)
	}
	var b bytes.Buffer
	if _, err := io.Copy(&b, content.NewReader(ra)); err != nil {
		return nil, err
	}
	if got := desc.Digest.Algorithm().FromBytes(b.Bytes()); got != desc.Digest {
		return nil, fmt.Errorf("content has digest %s", got)
	}
	return b.Bytes(), nil
}
