package dra

import (
	"context"
	"log/slog"
	"sync"
	"time"

	resourceapi "k8s.io/api/resource/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	resourcev1 "k8s.io/client-go/kubernetes/typed/resource/v1"
)

const (
	// wipeAfter is how long a driver may be away (kubelet: cm/dra/manager.go,
	// defaultWipingDelay).
	wipeAfter = 30 * time.Second
	// A removal that failed is tried again after a pause that doubles.
	firstPause, lastPause = time.Second, 5 * time.Minute
	wipeTimeout           = 10 * time.Second
)

// allDrivers stands for every driver of the node.
const allDrivers = ""

// wiper removes the node's ResourceSlices of drivers that are not there: pods
// would be sent here that cannot start. When the agent starts, none is there yet.
type wiper struct {
	slices resourcev1.ResourceSliceInterface
	node   string
	log    *slog.Logger
	poke   chan struct{} // capacity one

	mu  sync.Mutex
	due map[string]*wipe // by driver
}

type wipe struct {
	at    time.Time
	pause time.Duration
}

func newWiper(slices resourcev1.ResourceSliceInterface, node string, log *slog.Logger) *wiper {
	return &wiper{
		slices: slices, node: node, log: log, poke: make(chan struct{}, 1),
		due: map[string]*wipe{allDrivers: {pause: firstPause}},
	}
}

// lost has the driver's slices removed unless it comes back in time. A driver that
// was lost before has no more time than it had.
func (w *wiper) lost(driver string) {
	w.mu.Lock()
	if w.due[driver] == nil {
		w.due[driver] = &wipe{at: time.Now().Add(wipeAfter), pause: firstPause}
	}
	w.mu.Unlock()
	select {
	case w.poke <- struct{}{}:
	default:
	}
}

// back lets the driver's slices be.
func (w *wiper) back(driver string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.due, driver)
}

// run removes what is due until ctx ends.
func (w *wiper) run(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		driver, next := w.next()
		timer.Stop()
		if next != nil {
			timer.Reset(time.Until(next.at))
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-w.poke:
			continue
		case <-timer.C:
		}
		if !w.still(driver, next) {
			continue
		}
		err := w.wipe(ctx, driver)
		if err != nil {
			w.log.Debug("ResourceSlices could not be removed; it is tried again", "driver", driver, "error", err)
		}
		w.done(driver, next, err)
	}
}

// next is the wipe that is due first.
func (w *wiper) next() (driver string, next *wipe) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for d, at := range w.due {
		if next == nil || at.at.Before(next.at) {
			driver, next = d, at
		}
	}
	return driver, next
}

func (w *wiper) still(driver string, was *wipe) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return was != nil && w.due[driver] == was
}

func (w *wiper) done(driver string, was *wipe, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.due[driver] != was {
		return // it came back meanwhile
	}
	if err == nil {
		delete(w.due, driver)
		return
	}
	w.due[driver] = &wipe{at: time.Now().Add(was.pause), pause: min(2*was.pause, lastPause)}
}

func (w *wiper) wipe(ctx context.Context, driver string) error {
	ctx, cancel := context.WithTimeout(ctx, wipeTimeout)
	defer cancel()
	of := fields.Set{resourceapi.ResourceSliceSelectorNodeName: w.node}
	if driver != allDrivers {
		of[resourceapi.ResourceSliceSelectorDriver] = driver
	}
	err := w.slices.DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{FieldSelector: of.String()})
	if apierrors.IsNotFound(err) {
		return nil // the API server has no such resource
	}
	return err
}
