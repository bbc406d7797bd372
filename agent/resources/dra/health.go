package dra

import (
	"context"
	"encoding/json"
	"log/slog"
	"path/filepath"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	v1 "k8s.io/api/core/v1"
	healthpb "k8s.io/kubelet/pkg/apis/dra-health/v1alpha1"

	"github.com/berth-io/berth/agent/resources/statefile"
)

const (
	// healthTimeout is how long what a driver said counts, unless it said how long
	// (kubelet: cm/dra/healthinfo.go).
	healthTimeout = 30 * time.Second
	// followAgain is the pause before a driver is asked again.
	followAgain = 5 * time.Second
)

// health is what drivers say of their devices' health (kubelet:
// cm/dra/healthinfo.go). What nobody has said for a while is unknown.
type health struct {
	file string
	log  *slog.Logger
	// changed is told of devices with another health than before.
	changed func(driver string, devices []deviceHealth)
	poke    chan struct{} // capacity one

	mu      sync.Mutex
	drivers map[string]driverHealth
	// from is who said last what is known of a driver's devices.
	from map[string]healthpb.DRAResourceHealthClient
}

// driverHealth and deviceHealth are as in the file; they have the kubelet's names.
type driverHealth struct {
	Devices map[string]deviceHealth // by pool/device
}

type deviceHealth struct {
	PoolName           string
	DeviceName         string
	Health             v1.ResourceHealthStatus
	LastUpdated        time.Time
	HealthCheckTimeout time.Duration
	Message            string
}

func (d deviceHealth) key() string { return d.PoolName + "/" + d.DeviceName }

// until is when it stops to count.
func (d deviceHealth) until() time.Time {
	timeout := d.HealthCheckTimeout
	if timeout == 0 {
		timeout = healthTimeout
	}
	return d.LastUpdated.Add(timeout)
}

// newHealth reads the state file. One that cannot be read is as good as none:
// drivers say it all again.
func newHealth(dir string, log *slog.Logger, changed func(driver string, devices []deviceHealth)) *health {
	h := &health{
		file: filepath.Join(dir, "dra_health_state"), log: log, changed: changed, poke: make(chan struct{}, 1),
		drivers: map[string]driverHealth{}, from: map[string]healthpb.DRAResourceHealthClient{},
	}
	content, err := statefile.Read(h.file)
	if err == nil && content != nil {
		err = json.Unmarshal(content, &h.drivers)
	}
	if err != nil {
		log.Warn("what was known of the health of devices is lost; drivers will say it again", "file", h.file, "error", err)
		h.drivers = map[string]driverHealth{}
	}
	return h
}

// run lets what nobody has said for a while be unknown, until ctx ends.
func (h *health) run(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-h.poke:
		case <-timer.C:
		}
		timer.Stop()
		if next := h.expire(time.Now()); !next.IsZero() {
			timer.Reset(time.Until(next))
		}
	}
}

// expire returns when the next is due; zero is never.
func (h *health) expire(now time.Time) (next time.Time) {
	for driver, devices := range h.expired(now, &next) {
		h.changed(driver, devices)
	}
	return next
}

func (h *health) expired(now time.Time, next *time.Time) map[string][]deviceHealth {
	h.mu.Lock()
	defer h.mu.Unlock()
	changed := map[string][]deviceHealth{}
	for driver, known := range h.drivers {
		for key, d := range known.Devices {
			switch until := d.until(); {
			case d.Health == v1.ResourceHealthStatusUnknown:
			case until.Before(now):
				d.Health, d.Message, d.LastUpdated = v1.ResourceHealthStatusUnknown, "", now
				known.Devices[key] = d
				changed[driver] = append(changed[driver], d)
			case next.IsZero() || until.Before(*next):
				*next = until.Add(time.Millisecond)
			}
		}
	}
	if len(changed) > 0 {
		h.save()
	}
	return changed
}

// of is the device's health, and what the driver says of it; nil: nothing.
func (h *health) of(driver, pool, name string) (v1.ResourceHealthStatus, *string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	d, found := h.drivers[driver].Devices[deviceHealth{PoolName: pool, DeviceName: name}.key()]
	if !found || time.Now().After(d.until()) {
		return v1.ResourceHealthStatusUnknown, nil
	}
	if d.Message == "" {
		return d.Health, nil
	}
	return d.Health, &d.Message
}

// follow takes in what the driver says until ctx ends. A driver that does not know
// the service is not asked again: it gets to know it with another plugin.
func (h *health) follow(ctx context.Context, driver string, from healthpb.DRAResourceHealthClient) {
	for {
		err := h.listen(ctx, driver, from)
		if ctx.Err() != nil || status.Code(err) == codes.Unimplemented {
			return
		}
		h.forget(driver, from)
		h.log.Debug("a DRA driver does not tell of its devices' health; it is asked again", "driver", driver, "error", err)
		select {
		case <-ctx.Done():
			return
		case <-time.After(followAgain):
		}
	}
}

func (h *health) listen(ctx context.Context, driver string, from healthpb.DRAResourceHealthClient) error {
	stream, err := from.NodeWatchResources(ctx, &healthpb.NodeWatchResourcesRequest{})
	if err != nil {
		return err
	}
	for {
		told, err := stream.Recv()
		if err != nil {
			return err
		}
		h.take(driver, from, told.GetDevices())
	}
}

// take replaces what is known of the devices that the driver speaks of. Others
// keep what was said of them for as long as that counts.
func (h *health) take(driver string, from healthpb.DRAResourceHealthClient, told []*healthpb.DeviceHealth) {
	now := time.Now()
	h.mu.Lock()
	h.from[driver] = from
	known := h.drivers[driver]
	if known.Devices == nil {
		known.Devices = map[string]deviceHealth{}
		h.drivers[driver] = known
	}
	var changed []deviceHealth
	for _, t := range told {
		d := deviceHealthOf(t, now)
		before, found := known.Devices[d.key()]
		known.Devices[d.key()] = d
		if before.LastUpdated = now; !found || before != d {
			changed = append(changed, d)
		}
	}
	if len(changed) > 0 {
		h.save()
	}
	h.mu.Unlock()
	if len(changed) > 0 {
		h.changed(driver, changed)
	}
	select {
	case h.poke <- struct{}{}:
	default:
	}
}

func deviceHealthOf(t *healthpb.DeviceHealth, now time.Time) deviceHealth {
	d := deviceHealth{
		PoolName: t.GetDevice().GetPoolName(), DeviceName: t.GetDevice().GetDeviceName(),
		Health: v1.ResourceHealthStatusUnknown, LastUpdated: now, HealthCheckTimeout: healthTimeout, Message: t.GetMessage(),
	}
	switch t.GetHealth() {
	case healthpb.HealthStatus_HEALTHY:
		d.Health = v1.ResourceHealthStatusHealthy
	case healthpb.HealthStatus_UNHEALTHY:
		d.Health = v1.ResourceHealthStatusUnhealthy
	}
	if seconds := t.GetHealthCheckTimeoutSeconds(); seconds > 0 {
		d.HealthCheckTimeout = time.Duration(seconds) * time.Second
	}
	const most = v1.ResourceHealthMessageMaxLength
	if len(d.Message) > most {
		d.Message = d.Message[:most-3] + "..."
	}
	return d
}

// forget drops what the driver said, unless another plugin of it has taken over.
func (h *health) forget(driver string, from healthpb.DRAResourceHealthClient) {
	h.mu.Lock()
	if h.from[driver] != from {
		h.mu.Unlock()
		return
	}
	var gone []deviceHealth
	for _, d := range h.drivers[driver].Devices {
		gone = append(gone, d)
	}
	delete(h.drivers, driver)
	delete(h.from, driver)
	h.save()
	h.mu.Unlock()
	h.changed(driver, gone)
}

// save is called with mu held. Without the file a restart costs what drivers say
// again.
func (h *health) save() {
	if err := statefile.Write(h.file, h.drivers); err != nil {
		h.log.Warn("what is known of the health of devices is lost with a restart", "error", err)
	}
}
