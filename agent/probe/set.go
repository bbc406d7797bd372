package probe

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
)

// Set runs the probes of one pod.
type Set struct {
	config    Config
	pod       *v1.Pod
	ctx       context.Context // ends with Stop; parent of every attempt
	cancel    context.CancelFunc
	changed   chan struct{}
	transport *http.Transport

	mu          sync.Mutex
	podIP       string
	terminating bool
	containers  map[string]*container // by name
}

// container is one instance of a container being probed; it is guarded by the
// lock of its set.
type container struct {
	target Target
	ctx    context.Context // ends with the instance
	cancel context.CancelFunc
	probes map[Kind]*prober
	result Result
}

// prober is one probe of one container instance.
type prober struct {
	kind     Kind
	spec     *v1.Probe
	schedule schedule
	history  history
	failure  string      // output of the last attempt, if that failed
	timer    *time.Timer // of the next attempt; nil once the probe has ended
}

// NewSet makes a set without containers. ctx bounds everything it does; Stop
// must be called in any case.
func NewSet(ctx context.Context, config Config, pod *v1.Pod) *Set {
	ctx, cancel := context.WithCancel(ctx)
	return &Set{
		config:     config,
		pod:        pod,
		ctx:        ctx,
		cancel:     cancel,
		changed:    make(chan struct{}, 1),
		transport:  NewTransport(),
		containers: map[string]*container{},
	}
}

// Sync probes exactly the running containers, by default at podIP. An instance
// that is probed already is left alone.
func (s *Set) Sync(podIP string, running []Target) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ctx.Err() != nil {
		return
	}
	s.podIP = podIP
	wanted := make(map[string]bool, len(running))
	for _, t := range running {
		name := t.Container.Name
		wanted[name] = true
		c := s.containers[name]
		if c != nil && c.target.ContainerID == t.ContainerID {
			continue
		}
		if c != nil {
			c.stop()
		}
		s.containers[name] = s.start(t)
	}
	for name, c := range s.containers {
		if !wanted[name] {
			c.stop()
			delete(s.containers, name)
		}
	}
}

// Results are by container name. Those of a container instance are there from
// the Sync that began it to the one that ends it.
func (s *Set) Results() map[string]Result {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make(map[string]Result, len(s.containers))
	for name, c := range s.containers {
		out[name] = c.result
	}
	return out
}

// Changed receives when a Started, Ready or Alive may have changed since it
// last received. It has room for one.
func (s *Set) Changed() <-chan struct{} { return s.changed }

// StopLiveness ends liveness and startup probes, because the pod terminates.
// Readiness goes on, for those who send it traffic.
func (s *Set) StopLiveness() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.terminating = true
	for _, c := range s.containers {
		c.end(Liveness)
		c.end(Startup)
	}
}

// Stop ends everything, attempts under way as well, and waits for nothing.
// Results stay as they are.
func (s *Set) Stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.containers {
		c.stop()
	}
	s.cancel()
}

// start begins to probe an instance.
func (s *Set) start(t Target) *container {
	spec := t.Container
	c := &container{target: t, probes: map[Kind]*prober{}, result: Result{
		ContainerID: t.ContainerID,
		Started:     spec.StartupProbe == nil,
		Alive:       true,
	}}
	c.ctx, c.cancel = context.WithCancel(s.ctx)
	c.result.Ready = c.result.Started && spec.ReadinessProbe == nil
	resumed := t.Previous != nil && t.Previous.ContainerID == t.ContainerID
	if resumed {
		c.result = *t.Previous
	}
	now := time.Now()
	if !c.result.Started {
		s.begin(c, Startup, now, resumed)
	} else {
		s.open(c, now, resumed)
	}
	return c
}

// open begins the probes that wait for the container to have started.
func (s *Set) open(c *container, from time.Time, resumed bool) {
	s.begin(c, Readiness, from, resumed)
	s.begin(c, Liveness, from, resumed)
}

func (s *Set) begin(c *container, kind Kind, from time.Time, resumed bool) {
	spec := specOf(c.target.Container, kind)
	if spec == nil || kind != Readiness && (s.terminating || !c.result.Alive) {
		return
	}
	p := &prober{kind: kind, spec: spec}
	switch {
	case resumed && kind == Startup, resumed && kind == Readiness && !c.result.Ready:
		// Somebody waits for it: the jitter would cost more than the crowd.
		p.schedule = resumedSchedule(spec, from, 0)
	case resumed:
		p.schedule = resumedSchedule(spec, from, rand.Float64())
	default:
		p.schedule = newSchedule(kind, spec, c.target.StartedAt, from)
	}
	c.probes[kind] = p
	s.arm(c, p)
}

func specOf(c *v1.Container, kind Kind) *v1.Probe {
	switch kind {
	case Startup:
		return c.StartupProbe
	case Readiness:
		return c.ReadinessProbe
	default:
		return c.LivenessProbe
	}
}

func (s *Set) arm(c *container, p *prober) {
	at, counts := p.schedule.next()
	p.timer = time.AfterFunc(time.Until(at), func() { s.attempt(c, p, counts) })
}

// attempt probes once and acts on the outcome. It runs on its timer's goroutine.
func (s *Set) attempt(c *container, p *prober, counts bool) {
	s.mu.Lock()
	ended, podIP := p.timer == nil, s.podIP
	s.mu.Unlock()
	if ended {
		return
	}
	began := time.Now()
	out := s.run(c, p.spec, podIP)

	s.mu.Lock()
	if p.timer == nil || c.ctx.Err() != nil { // ended meanwhile: what it said is about no one
		s.mu.Unlock()
		return
	}
	now := time.Now()
	p.schedule.attempted(began, now, counts, out.success())
	before := c.result
	s.judge(c, p, counts, out, now)
	if p.timer != nil {
		s.arm(c, p)
	}
	c.result.At = now
	c.explain()
	after := c.result
	s.mu.Unlock()

	s.tell(c, p.kind, counts, out)
	if s.config.Probed != nil {
		s.config.Probed(c.target.Container, p.kind, out.result(), now.Sub(began))
	}
	if before.Started != after.Started || before.Ready != after.Ready || before.Alive != after.Alive {
		select {
		case s.changed <- struct{}{}:
		default: // a wake-up is on its way
		}
	}
}

// judge draws the conclusions from one attempt.
func (s *Set) judge(c *container, p *prober, counts bool, out outcome, now time.Time) {
	if out.status == unknown {
		p.failure = out.message
		return // the probe did not happen: that says nothing about the container
	}
	if out.success() {
		p.failure = ""
		if !p.history.add(true, p.spec) {
			return
		}
		switch p.kind {
		case Startup:
			c.end(Startup)
			c.result.Started = true
			c.result.Ready = c.target.Container.ReadinessProbe == nil
			s.open(c, now, false)
		case Readiness:
			c.result.Ready = true
		}
		return
	}
	p.failure = out.message
	if !counts || !p.history.add(false, p.spec) {
		return
	}
	if p.kind == Readiness {
		c.result.Ready = false
		return
	}
	// The instance is lost: it is killed, and its successor begins anew.
	c.result.Alive = false
	c.result.Grace = p.spec.TerminationGracePeriodSeconds
	c.result.Kind, c.result.Message = p.kind, p.failure
	c.end(Startup)
	c.end(Liveness)
}

// tell reports an attempt as the kubelet does.
func (s *Set) tell(c *container, kind Kind, counts bool, out outcome) {
	if s.config.Event == nil {
		return
	}
	event := func(reason, format string, args ...any) {
		s.config.Event(c.target.Container, v1.EventTypeWarning, reason, fmt.Sprintf(format, args...))
	}
	switch {
	case out.status == warning:
		event("ProbeWarning", "%s probe warning: %s", kind, out.message)
	case out.status == failure && counts:
		event("Unhealthy", "%s probe failed: %s", kind, out.message)
	case out.status == unknown && counts:
		event("Unhealthy", "%s probe errored and resulted in unknown state: %s", kind, out.message)
	}
}

// explain names the probe that keeps the container from being well. What it
// was given up for stays.
func (c *container) explain() {
	if !c.result.Alive {
		return
	}
	c.result.Kind, c.result.Message = "", ""
	for _, kind := range []Kind{Startup, Liveness, Readiness} {
		if p := c.probes[kind]; p != nil && p.failure != "" {
			c.result.Kind, c.result.Message = kind, p.failure
			return
		}
	}
}

// end ends one probe.
func (c *container) end(kind Kind) {
	if p := c.probes[kind]; p != nil {
		p.timer.Stop()
		p.timer = nil
		delete(c.probes, kind)
	}
}

// stop ends the probing of an instance.
func (c *container) stop() {
	for kind := range c.probes {
		c.end(kind)
	}
	c.cancel()
}
