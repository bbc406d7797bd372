package evict

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/berth-io/berth/agent/usage"
)

// NotifyConfig of a Notifier.
type NotifyConfig struct {
	Cgroups    usage.Hierarchy
	PodsCgroup string // as in usage.Config
	Thresholds []Threshold
}

// NewNotifier returns the kernel's notifier of this host: on cgroup v1 its
// memory cgroups tell when a threshold is crossed, in either direction; on v2,
// which has nothing of the kind, the kernel tells of pressure on memory (PSI),
// which comes before memory runs out.
func NewNotifier(c NotifyConfig) Notifier {
	if c.Cgroups.Unified {
		return &stalls{path: "/proc/pressure/memory"}
	}
	n := &crossings{poked: make(chan struct{}, 1)}
	for _, t := range c.Thresholds {
		switch t.Signal {
		case MemoryAvailable:
			n.watched = append(n.watched, &crossing{threshold: t, dir: c.Cgroups.Mount})
		case AllocatableMemoryAvailable:
			n.watched = append(n.watched, &crossing{threshold: t, dir: filepath.Join(c.Cgroups.Mount, c.PodsCgroup), pods: true})
		}
	}
	return n
}

// trigger: tasks stood still for 150 ms of a second for want of memory. The
// kernel tells at most once a second.
const trigger = "some 150000 1000000\x00"

// stalls is the notifier of v2.
type stalls struct{ path string }

func (*stalls) Arm(usage.Node) error { return nil }

// Run waits in poll(2), which Go's poller cannot do for priority data.
func (s *stalls) Run(ctx context.Context, poke func()) error {
	pressure, err := unix.Open(s.path, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", s.path, err)
	}
	defer unix.Close(pressure)
	if _, err := unix.Write(pressure, []byte(trigger)); err != nil {
		return fmt.Errorf("set a trigger in %s: %w", s.path, err)
	}
	end, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		return fmt.Errorf("make an eventfd: %w", err)
	}
	defer unix.Close(end)
	waked := make(chan error, 1)
	stop := context.AfterFunc(ctx, func() {
		_, err := unix.Write(end, binary.NativeEndian.AppendUint64(nil, 1))
		waked <- err
	})
	defer func() {
		if !stop() {
			<-waked // end is closed after that
		}
	}()
	for {
		fds := []unix.PollFd{{Fd: int32(pressure), Events: unix.POLLPRI}, {Fd: int32(end), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, -1); errors.Is(err, unix.EINTR) {
			continue
		} else if err != nil {
			return fmt.Errorf("wait for pressure on memory: %w", err)
		}
		switch {
		case fds[1].Revents != 0:
			return nil
		case fds[0].Revents&unix.POLLERR != 0:
			return fmt.Errorf("%s has no triggers any more", s.path)
		case fds[0].Revents != 0:
			poke()
		}
	}
}

// crossings is the notifier of v1.
type crossings struct {
	poked chan struct{}

	mu      sync.Mutex // of Arm and the end of Run
	watched []*crossing
	ended   bool
}

// crossing is the registration of one threshold. It is renewed each round,
// since what the kernel counts as used has what can be dropped in it.
type crossing struct {
	threshold Threshold
	dir       string
	pods      bool // of the memory of all pods
	at        int64
	event     *os.File // nil: not registered
}

// Arm registers thresholds at the usage that means what they say now.
func (c *crossings) Arm(node usage.Node) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended {
		return nil
	}
	var errs []error
	for _, w := range c.watched {
		m := node.Memory
		if w.pods {
			m = node.Pods
		}
		if m.Capacity == 0 {
			continue // no limit, nothing to cross
		}
		at := usageAt(w.threshold, m)
		if at == w.at && w.event != nil {
			continue
		}
		w.close()
		event, err := register(w.dir, at)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		w.event, w.at = event, at
		go c.follow(event)
	}
	return errors.Join(errs...)
}

// usageAt is the usage, in whole pages, at which the threshold is crossed: its
// idle part is none that counts.
func usageAt(t Threshold, m usage.Memory) int64 {
	idle := int64(m.Usage - m.WorkingSet)
	at := int64(m.Capacity) - t.Value.of(int64(m.Capacity)) + idle
	page := int64(os.Getpagesize())
	return max(at, 0) / page * page
}

// register asks a cgroup to write to an eventfd. Closing it ends that.
func register(dir string, at int64) (*os.File, error) {
	watch, err := os.Open(filepath.Join(dir, "memory.usage_in_bytes"))
	if err != nil {
		return nil, err
	}
	defer watch.Close()
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("make an eventfd: %w", err)
	}
	event := os.NewFile(uintptr(fd), "eventfd")
	line := slices.Concat([]byte(strconv.Itoa(fd)), []byte(" "), []byte(strconv.Itoa(int(watch.Fd()))), []byte(" "), []byte(strconv.FormatInt(at, 10)))
	if err := os.WriteFile(filepath.Join(dir, "cgroup.event_control"), line, 0); err != nil {
		return nil, errors.Join(err, event.Close())
	}
	return event, nil
}

// follow ends when the event is closed.
func (c *crossings) follow(event *os.File) {
	count := make([]byte, 8)
	for {
		if _, err := event.Read(count); err != nil {
			return
		}
		select {
		case c.poked <- struct{}{}:
		default:
		}
	}
}

// Run pokes whenever a threshold is crossed.
func (c *crossings) Run(ctx context.Context, poke func()) error {
	defer func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.ended = true
		for _, w := range c.watched {
			w.close()
		}
	}()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-c.poked:
			poke()
		}
	}
}

func (w *crossing) close() {
	if w.event != nil {
		w.event.Close()
		w.event = nil
	}
}
