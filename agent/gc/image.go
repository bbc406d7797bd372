package gc

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/berth-io/berth/agent/usage"
)

// ImagePolicy are the kubelet's settings.
type ImagePolicy struct {
	// HighPercent of the file system used makes images be removed until
	// LowPercent is. 100 and no MaxAge: images are removed only for evictions.
	HighPercent, LowPercent int
	// MinAge is how long an image is left alone after it was first seen.
	MinAge time.Duration
	// MaxAge is how long an image may be unused; zero: for ever.
	MaxAge time.Duration
}

// check returns an error that names the field which is wrong.
func (p ImagePolicy) check() error {
	if p.HighPercent < 0 || p.HighPercent > 100 {
		return fmt.Errorf("imageGCHighThresholdPercent: %d is not within 0 and 100", p.HighPercent)
	}
	if p.LowPercent < 0 {
		return fmt.Errorf("imageGCLowThresholdPercent: %d is below 0", p.LowPercent)
	}
	if p.LowPercent > p.HighPercent {
		return fmt.Errorf("imageGCLowThresholdPercent: %d is above imageGCHighThresholdPercent, %d", p.LowPercent, p.HighPercent)
	}
	return nil
}

// off: nothing is to be done regularly.
func (p ImagePolicy) off() bool { return p.HighPercent == 100 && p.MaxAge == 0 }

// Image is an image that nobody uses now.
type Image struct {
	ID   string
	Size int64 // bytes
	// FirstSeen is when it was found first, LastUsed when it was found in use
	// last; zero: never.
	FirstSeen, LastUsed time.Time
}

// inOrder sorts images, who goes first first: the one that was used least
// recently, of those the one that has been here longest.
func inOrder(images []Image) []Image {
	slices.SortStableFunc(images, func(a, b Image) int {
		return cmp.Or(a.LastUsed.Compare(b.LastUsed), a.FirstSeen.Compare(b.FirstSeen), cmp.Compare(a.ID, b.ID))
	})
	return images
}

// old are the images that have been unused for too long. The kubelet counts an
// image that was never used as infinitely old and would remove it although it
// was pulled just now; here it is as old as it is here.
func (p ImagePolicy) old(images []Image, now time.Time) []Image {
	if p.MaxAge == 0 {
		return nil
	}
	var old []Image
	for _, i := range images {
		since := i.LastUsed
		if i.FirstSeen.After(since) {
			since = i.FirstSeen
		}
		if now.Sub(since) > p.MaxAge {
			old = append(old, i)
		}
	}
	return old
}

// removable are the images that may go for want of space.
func (p ImagePolicy) removable(images []Image, now time.Time) []Image {
	return slices.DeleteFunc(slices.Clone(images), func(i Image) bool {
		return !i.LastUsed.Before(now) || now.Sub(i.FirstSeen) < p.MinAge
	})
}

// need is how many bytes must become free, and how much is used in percent.
// Zero: nothing must.
func (p ImagePolicy) need(fs usage.FS) (bytes int64, percent int) {
	capacity, available := int64(fs.Capacity), int64(min(fs.Available, fs.Capacity))
	percent = 100 - int(available*100/capacity)
	if percent < p.HighPercent {
		return 0, percent
	}
	return max(capacity*int64(100-p.LowPercent)/100-available, 0), percent
}

// size for people, as the kubelet writes it.
func size(bytes int64) string {
	units := []string{"KiB", "MiB", "GiB", "TiB"}
	if bytes < 1024 {
		return fmt.Sprintf("%d B", bytes)
	}
	f, unit := float64(bytes)/1024, 0
	for f >= 1024 && unit < len(units)-1 {
		f, unit = f/1024, unit+1
	}
	return fmt.Sprintf("%.1f %s", f, units[unit])
}
