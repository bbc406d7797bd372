// Package gc removes what no pod needs any more: images, and dead containers,
// sandboxes and logs that no pod's worker will remove. The rules are the
// kubelet's (pkg/kubelet/images/image_gc_manager.go,
// pkg/kubelet/kuberuntime/kuberuntime_gc.go).
//
//	gc.go          when, and for whom else
//	image.go       which images: pure
//	images.go      looks at them and removes them
//	record.go      when images were used, kept over a restart
//	container.go   which dead containers and sandboxes: pure
//	containers.go  looks at them and removes them
//	log.go         logs and links without a pod
//
// A running pod's worker prunes what is dead of its own pod (agent/plan/prune.go),
// and removes everything when its pod is gone. Left for here are pods that no
// worker knows, limits across pods, and the dead containers of pods that have
// ended, which are kept for their logs until the disk is full.
package gc

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/berth-io/berth/agent/usage"
)

const (
	// containerPeriod and imagePeriod are the kubelet's.
	containerPeriod = time.Minute
	imagePeriod     = 5 * time.Minute
	// timeout of one collection.
	timeout = 10 * time.Minute
)

// Owner is what the agent has to do with a pod.
type Owner int

const (
	// Nobody: no source wants the pod and no worker has it. It is only said
	// when every source has reported.
	Nobody Owner = iota
	// Active: a worker runs the pod or ends it, and goes by its containers.
	Active
	// Ended: nothing of the pod runs or will, and its status is kept elsewhere.
	Ended
)

// Pods knows the pods of this node.
type Pods interface {
	Owner(uid types.UID) Owner
	// ImageVolumes are the images that pods have as volumes, as they name them.
	ImageVolumes() []string
}

// Disk tells how full the images' file system is.
type Disk interface {
	ImageFS(ctx context.Context) (usage.FS, error)
}

// Events records events about this node.
type Events interface {
	Node(eventType, reason, format string, args ...any)
}

// Logs are the logs of containers.
type Logs interface {
	// RemoveOf removes the logs of a container, rotated ones too.
	RemoveOf(ctx context.Context, containerID string) error
}

// Config of a Collector.
type Config struct {
	Images     ImagePolicy
	Containers ContainerPolicy
	// Record is the file that keeps when images were used.
	Record string
	// PodLogsDir has the pods' logs, ContainerLogsDir the links to them.
	PodLogsDir, ContainerLogsDir string
	// Logs removes a container's logs before the container goes.
	Logs Logs
	// Collected is told which images are left after some were removed, and when
	// the collection began; nil: nobody wants to know.
	Collected func(left []string, began time.Time)
	// ImageCollected is told of each image that was removed, and for what: "age"
	// or "space"; nil: nobody counts.
	ImageCollected func(reason string)
	Log            *slog.Logger
}

// Collector collects. Its methods may be called concurrently.
type Collector struct {
	config  Config
	runtime Runtime
	store   ImageStore
	pods    Pods
	disk    Disk
	events  Events

	collecting chan struct{} // capacity one; full while images are collected
	records    records       // nil: not read yet
}

// New returns a Collector, or an error that names the setting which is wrong;
// Run runs it.
func New(c Config, runtime Runtime, store ImageStore, pods Pods, disk Disk, events Events) (*Collector, error) {
	if err := c.Images.check(); err != nil {
		return nil, err
	}
	return &Collector{config: c, runtime: runtime, store: store, pods: pods, disk: disk, events: events, collecting: make(chan struct{}, 1)}, nil
}

// begin waits for a collection of images that is under way to end.
func (c *Collector) begin(ctx context.Context) (end func(), err error) {
	select {
	case c.collecting <- struct{}{}:
		return func() { <-c.collecting }, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("wait for the collection of images that is under way: %w", ctx.Err())
	}
}

// Run collects until ctx ends.
func (c *Collector) Run(ctx context.Context) error {
	containers, images := time.NewTicker(containerPeriod), time.NewTicker(imagePeriod)
	defer containers.Stop()
	defer images.Stop()
	failedBefore := false
	c.collectContainers(ctx)
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-containers.C:
			c.collectContainers(ctx)
		case <-images.C:
			failedBefore = c.collectImages(ctx, failedBefore)
		}
	}
}

// collectContainers removes what the policy says.
func (c *Collector) collectContainers(ctx context.Context) {
	if err := c.removeContainers(ctx, false); err != nil && ctx.Err() == nil {
		c.config.Log.Warn("dead containers were not all removed", "err", err)
		c.events.Node(v1.EventTypeWarning, "ContainerGCFailed", "%s", err.Error())
	}
}

// collectImages tells whether it failed. As in the kubelet only failures in a
// row are an event.
func (c *Collector) collectImages(ctx context.Context, failedBefore bool) (failed bool) {
	err := c.images(ctx, time.Now())
	if err == nil || ctx.Err() != nil {
		return false
	}
	c.config.Log.Warn("images were not collected", "err", err)
	if failedBefore {
		c.events.Node(v1.EventTypeWarning, "ImageGCFailed", "%s", err.Error())
	}
	return true
}

// RemoveDeadContainers removes all dead containers but the last of each name of
// active pods.
func (c *Collector) RemoveDeadContainers(ctx context.Context) error {
	return c.removeContainers(ctx, true)
}

// RemoveUnusedImages removes all images that are not in use, pinned or new.
func (c *Collector) RemoveUnusedImages(ctx context.Context) error {
	return c.unusedImages(ctx, time.Now())
}

// unfinished is what an interrupted write of the record leaves.
func (c *Collector) unfinished() string {
	dir, name := filepath.Split(c.config.Record)
	return filepath.Join(dir, ".tmp-"+name+"*")
}
