package gc

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"google.golang.org/grpc"
	v1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// ImageStore is what is asked of the image service.
type ImageStore interface {
	ListImages(ctx context.Context, in *runtimeapi.ListImagesRequest, opts ...grpc.CallOption) (*runtimeapi.ListImagesResponse, error)
	ImageStatus(ctx context.Context, in *runtimeapi.ImageStatusRequest, opts ...grpc.CallOption) (*runtimeapi.ImageStatusResponse, error)
	RemoveImage(ctx context.Context, in *runtimeapi.RemoveImageRequest, opts ...grpc.CallOption) (*runtimeapi.RemoveImageResponse, error)
}

// Reasons of removals, as the kubelet's metric names them.
const (
	forAge   = "age"
	forSpace = "space"
)

// images removes what is too old, and for space what the policy says. When
// images are not collected it still sees who uses them.
func (c *Collector) images(ctx context.Context, now time.Time) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	end, err := c.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	unused, err := c.unused(ctx, now)
	if err != nil || c.config.Images.off() {
		return err
	}
	old := c.config.Images.old(unused, now)
	if _, err := c.remove(ctx, old, math.MaxInt64, forAge); err != nil {
		return fmt.Errorf("wanted to free images older than %v: %w", c.config.Images.MaxAge, err)
	}
	unused = slices.DeleteFunc(unused, func(i Image) bool { return slices.Contains(old, i) })
	fs, err := c.disk.ImageFS(ctx)
	if err != nil {
		return err
	}
	if fs.Capacity == 0 {
		err := errors.New("invalid capacity 0 on image filesystem")
		c.events.Node(v1.EventTypeWarning, "InvalidDiskCapacity", "%s", err.Error())
		return err
	}
	need, percent := c.config.Images.need(fs)
	if need == 0 {
		return nil
	}
	c.config.Log.Info("the images' file system is full beyond the high threshold", "used", percent, "toFree", need)
	freed, err := c.free(ctx, unused, need, now)
	if err != nil {
		return err
	}
	if freed < need {
		message := fmt.Sprintf("Insufficient free disk space on the node's image filesystem (%d%% of %s used). "+
			"Failed to free sufficient space by deleting unused images (freed %d bytes). "+
			"Investigate disk usage, as it could be used by active images, logs, volumes, or other data.",
			percent, size(int64(fs.Capacity)), freed)
		c.events.Node(v1.EventTypeWarning, "FreeDiskSpaceFailed", "%s", message)
		return errors.New(message)
	}
	return nil
}

func (c *Collector) unusedImages(ctx context.Context, now time.Time) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	end, err := c.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	unused, err := c.unused(ctx, now)
	if err != nil {
		return err
	}
	_, err = c.free(ctx, unused, math.MaxInt64, now)
	return err
}

// free removes images until so many bytes are free, and tells who is left.
func (c *Collector) free(ctx context.Context, unused []Image, need int64, now time.Time) (freed int64, err error) {
	freed, err = c.remove(ctx, c.config.Images.removable(unused, now), need, forSpace)
	if err != nil {
		return freed, fmt.Errorf("wanted to free %d bytes, but freed %d: %w", need, freed, err)
	}
	if c.config.Collected != nil {
		var left []string
		for id := range c.records {
			left = append(left, id)
		}
		c.config.Collected(left, now)
	}
	return freed, nil
}

// remove goes on after an image that cannot be removed. freed is what the
// images are said to be worth: what they share with others stays.
func (c *Collector) remove(ctx context.Context, images []Image, need int64, reason string) (freed int64, err error) {
	var errs []error
	for _, i := range images {
		if freed >= need || ctx.Err() != nil {
			break
		}
		if _, err := c.store.RemoveImage(ctx, &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: i.ID}}); err != nil {
			errs = append(errs, fmt.Errorf("remove image %s: %w", i.ID, err))
			continue
		}
		c.config.Log.Info("an image was removed", "image", i.ID, "bytes", i.Size, "for", reason)
		delete(c.records, i.ID)
		if c.config.ImageCollected != nil {
			c.config.ImageCollected(reason)
		}
		freed += i.Size
	}
	return freed, errors.Join(errs...)
}

// unused lists the images that nobody uses and that are not pinned, in the
// order in which they go, and keeps when the others were used.
func (c *Collector) unused(ctx context.Context, now time.Time) ([]Image, error) {
	c.load()
	list, err := c.store.ListImages(ctx, &runtimeapi.ListImagesRequest{})
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	used, err := c.used(ctx)
	if err != nil {
		return nil, err
	}
	there := map[string]bool{}
	for _, i := range list.GetImages() {
		there[i.GetId()] = used[i.GetId()]
	}
	c.records.see(there, now)
	if err := c.save(); err != nil {
		// A full disk must not keep images from being removed.
		c.config.Log.Warn("after a restart it will not be known when images were used", "err", err)
	}
	var unused []Image
	for _, i := range list.GetImages() {
		if r := c.records[i.GetId()]; !there[i.GetId()] && !i.GetPinned() {
			unused = append(unused, Image{ID: i.GetId(), Size: int64(i.GetSize()), FirstSeen: r.FirstSeen, LastUsed: r.LastUsed})
		}
	}
	return inOrder(unused), nil
}

// used are the IDs of images under containers, dead ones too, and in volumes.
func (c *Collector) used(ctx context.Context) (map[string]bool, error) {
	containers, err := c.runtime.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
	if err != nil {
		return nil, fmt.Errorf("list containers: %w", err)
	}
	used := map[string]bool{}
	for _, x := range containers.GetContainers() {
		// A runtime fills in one or the other.
		used[x.GetImageId()], used[x.GetImageRef()], used[x.GetImage().GetImage()] = true, true, true
	}
	for _, ref := range c.pods.ImageVolumes() {
		status, err := c.store.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: ref}})
		if err != nil {
			return nil, fmt.Errorf("look for the image %s of a volume: %w", ref, err)
		}
		used[status.GetImage().GetId()] = true
	}
	return used, nil
}
