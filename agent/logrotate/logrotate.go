// Package logrotate keeps the logs of containers from filling the disk. It owns
// the files beside a container's log, from the rotation to the removal, by the
// kubelet's rules and names (pkg/kubelet/logs/container_log_manager.go):
//
//	LOG                       the runtime writes to it
//	LOG.20060102-150405       the one before, as it was: shippers finish reading it
//	LOG.20060102-150405.gz    older ones
//	LOG.20060102-150405.tmp   an archive that is being made
//
//	logrotate.go  when, and who may touch which log
//	rotate.go     one log: rename, reopen, tidy, remove
//	compress.go   one archive
//	files.go      which files there are, what they are called and what goes: pure
//
// A log is renamed, the runtime opens a new one, and only then do old files go.
// Whatever is interrupted, a later look completes it: a log that is missing is
// opened anew, or given its name back where nobody writes to it any more.
//
// Only agent/agent.go makes a Rotator. Who removes containers removes their logs
// through it, so that no archive comes after its container has gone.
package logrotate

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-io/berth/agent/observed"
)

// Config of a Rotator: the kubelet's containerLogMaxSize, containerLogMaxFiles,
// containerLogMaxWorkers and containerLogMonitorInterval.
type Config struct {
	// MaxBytes is the size from which a log is rotated; negative: never.
	MaxBytes int64
	// MaxFiles is how many files a container's log has, the current one
	// included; at least 2.
	MaxFiles int
	// Workers is how many logs are rotated at once.
	Workers int
	// Every is how often the sizes are looked at.
	Every time.Duration
	Log   *slog.Logger
}

func (c Config) check() error {
	switch {
	case c.MaxBytes == 0:
		return errors.New("the size from which a log is rotated is 0: it must be positive, or negative for never")
	case c.MaxFiles < 2:
		return fmt.Errorf("a container's log must have 2 files at least, not %d", c.MaxFiles)
	case c.Workers < 1:
		return fmt.Errorf("%d logs rotated at once: it must be 1 at least", c.Workers)
	case c.Every <= 0:
		return fmt.Errorf("logs are looked at every %s: it must be a positive time", c.Every)
	}
	return nil
}

// Runtime is the part of the CRI that rotation needs.
type Runtime interface {
	ReopenContainerLog(context.Context, *runtimeapi.ReopenContainerLogRequest, ...grpc.CallOption) (*runtimeapi.ReopenContainerLogResponse, error)
}

// Containers tells which containers there are, and where they log.
type Containers interface {
	// Synced is closed when all of them are known.
	Synced() <-chan struct{}
	UIDs() []string
	Pod(uid string) observed.Pod
}

// reopenTimeout bounds the runtime's answer: it opens a file.
const reopenTimeout = 10 * time.Second

// Rotator rotates logs and removes them. It may be used by several goroutines
// at once.
type Rotator struct {
	config  Config
	runtime Runtime
	places  chan struct{} // of Config.Workers
	work    sync.WaitGroup

	mu    sync.Mutex
	holds map[string]*hold // by the log's path
}

// hold is somebody at work on a log and its rotated files.
type hold struct {
	cancel context.CancelFunc
	done   chan struct{}
}

// New returns a Rotator, or an error that says what is wrong with c; Run runs
// it.
func New(c Config, runtime Runtime) (*Rotator, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	return &Rotator{config: c, runtime: runtime, places: make(chan struct{}, c.Workers), holds: map[string]*hold{}}, nil
}

// Run rotates logs until ctx ends. First it completes what was interrupted when
// the agent ended last. While no log is large, it only asks the kernel for the
// size of each.
func (r *Rotator) Run(ctx context.Context, containers Containers) error {
	if r.config.MaxBytes < 0 {
		<-ctx.Done()
		return ctx.Err()
	}
	defer r.work.Wait()
	select {
	case <-containers.Synced():
	case <-ctx.Done():
		return ctx.Err()
	}
	each(containers, func(c container) { r.begin(ctx, c, r.mend) })
	tick := time.NewTicker(r.config.Every)
	defer tick.Stop()
	for {
		each(containers, func(c container) { r.look(ctx, c) })
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// container is one that has a log.
type container struct {
	id, log string
	running bool
}

func each(containers Containers, do func(container)) {
	for _, uid := range containers.UIDs() {
		pod := containers.Pod(uid)
		for i := range pod.Containers {
			if c := &pod.Containers[i]; c.LogPath != "" {
				do(container{id: c.ID, log: c.LogPath, running: c.State == observed.Running})
			}
		}
	}
}

// look has a log rotated if that is due. The log of a container that has ended
// does not grow, and stays as it is. Neither is something rotated that is not a
// file: then somebody logs elsewhere.
func (r *Rotator) look(ctx context.Context, c container) {
	if !c.running {
		return
	}
	info, err := os.Lstat(c.log)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		r.begin(ctx, c, r.replace)
	case err != nil:
		r.config.Log.Warn("the size of a container's log is not known", "container", c.id, "err", err)
	case info.Mode().IsRegular() && info.Size() >= r.config.MaxBytes:
		r.begin(ctx, c, r.rotate)
	}
}

// begin starts work on a container's log, unless there is some already.
func (r *Rotator) begin(ctx context.Context, c container, do func(context.Context, container) error) {
	ctx, release, other := r.hold(ctx, c.log)
	if other != nil {
		return
	}
	r.work.Go(func() {
		defer release()
		select {
		case r.places <- struct{}{}:
			defer func() { <-r.places }()
		case <-ctx.Done():
			return
		}
		if err := do(ctx, c); err != nil && ctx.Err() == nil && !ended(err) {
			r.config.Log.Warn("a container's log is not rotated, or not wholly; it is tried again", "container", c.id, "log", c.log, "err", err)
		}
	})
}

// ended tells whether the runtime says that a container does not run any more.
// Not every runtime says it so clearly.
func ended(err error) bool {
	code := status.Code(err)
	return code == codes.NotFound || code == codes.FailedPrecondition
}

// hold makes its caller the only one at work on a log until it calls release,
// or returns who is. The context ends when somebody wants the log removed.
func (r *Rotator) hold(ctx context.Context, log string) (held context.Context, release func(), other *hold) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if other := r.holds[log]; other != nil {
		return nil, nil, other
	}
	held, cancel := context.WithCancel(ctx)
	h := &hold{cancel, make(chan struct{})}
	r.holds[log] = h
	return held, func() {
		r.mu.Lock()
		delete(r.holds, log)
		r.mu.Unlock()
		cancel()
		close(h.done)
	}, nil
}

// Remove removes the log of a container that has ended, and all that rotation
// made of it. A rotation under way is given up first. What is not there is
// removed already.
func (r *Rotator) Remove(ctx context.Context, log string) error {
	for {
		_, release, other := r.hold(ctx, log)
		if other == nil {
			defer release()
			return remove(log)
		}
		other.cancel()
		select {
		case <-other.done:
		case <-ctx.Done():
			return fmt.Errorf("wait for the end of the rotation of %s: %w", log, ctx.Err())
		}
	}
}
