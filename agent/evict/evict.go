// Package evict ends pods before the node runs out of memory, disk, inodes or
// process IDs, and pods that take more local storage than they may, by the
// kubelet's rules and with its words (pkg/kubelet/eviction).
//
//	evict.go      the rounds: look, reclaim, end a pod
//	signal.go     what can run short, and what helps: pure
//	threshold.go  the settings
//	state.go      since when thresholds are met, which are due: pure
//	rank.go       who ends first: pure
//	victim.go     whom to end and what its status says: pure
//	notify.go     the kernel's word that memory runs short
//
// Every ten seconds, as in the kubelet, a round reads what the node uses, which
// costs some dozen reads of small files. Pods are measured only when one must
// end, and those with limits on local storage.
package evict

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/berth-io/berth/agent/disruption"
	"github.com/berth-io/berth/agent/usage"
)

const (
	// period between rounds is the kubelet's evictionMonitoringPeriod.
	period = 10 * time.Second
	// least time between rounds, however often the kernel calls.
	least = time.Second
	// goneTimeout is how long a round waits for its victims, goneCheck how often
	// it looks: as in the kubelet.
	goneTimeout = 30 * time.Second
	goneCheck   = time.Second
	// timeout of what a round asks others, reclaimTimeout of what it has others
	// free: a runtime that hangs keeps no pod from ending for a shortage.
	timeout        = 2 * time.Minute
	reclaimTimeout = time.Minute
)

// Pods knows the pods of this node.
type Pods interface {
	// Active are the pods that were admitted and have not ended, with the
	// resources allocated to them.
	Active() []*v1.Pod
	// Finished tells whether nothing of a pod runs and its volumes are gone.
	Finished(uid types.UID) bool
	// Stop asks the pod's worker to end it, and records the stop's event. It
	// does not wait.
	Stop(uid types.UID, stop disruption.Stop)
}

// Meter measures.
type Meter interface {
	Node(ctx context.Context) (usage.Node, error)
	// Pods measures those pods, as far as it can; the error tells what it cannot.
	Pods(ctx context.Context, pods []*v1.Pod) (map[types.UID]usage.Pod, error)
}

// Reclaimer frees what no pod needs (agent/gc).
type Reclaimer interface {
	RemoveDeadContainers(ctx context.Context) error
	RemoveUnusedImages(ctx context.Context) error
}

// Events records events about this node.
type Events interface {
	Node(eventType, reason, format string, args ...any)
}

// Notifier is the kernel's word that memory may run short.
type Notifier interface {
	// Arm tells the notifier how the node is now.
	Arm(node usage.Node) error
	// Run calls poke until ctx ends.
	Run(ctx context.Context, poke func()) error
}

// Config of a Manager.
type Config struct {
	// Thresholds of Settings.Thresholds.
	Thresholds []Threshold
	// Transition is evictionPressureTransitionPeriod.
	Transition time.Duration
	// MaxPodGrace is evictionMaxPodGracePeriod, in seconds.
	MaxPodGrace int64
	// LocalStorage is localStorageCapacityIsolation: limits on local storage
	// hold.
	LocalStorage bool
	// Spared are pods that are never ended; nil: critical ones.
	Spared func(pod *v1.Pod) bool
	// Notifier wakes rounds up; nil: they are every ten seconds only.
	Notifier Notifier
	// Changed is called when the node's conditions have, and when they are first
	// known; nil: nobody wants to know at once.
	Changed func()
	Counts  Counts // nil: nobody counts
	Log     *slog.Logger
}

// Counts are what is counted of evictions (agent/metrics).
type Counts interface {
	// Evicted: a pod was ended, for the label eviction_signal of the kubelet's metrics.
	Evicted(signal string)
	// EvictionMeasured: a pod is about to be, by numbers of that age.
	EvictionMeasured(signal string, age time.Duration)
}

// Manager watches the node.
type Manager struct {
	config  Config
	pods    Pods
	meter   Meter
	reclaim Reclaimer
	events  Events

	policy *Policy // nil: the file systems are not known yet; of Run alone
	state  State   // of Run alone

	mu         sync.Mutex
	conditions []v1.NodeConditionType
	known      bool // the conditions are those of a round
}

// New returns a Manager; Run runs it.
func New(c Config, pods Pods, meter Meter, reclaim Reclaimer, events Events) *Manager {
	return &Manager{config: c, pods: pods, meter: meter, reclaim: reclaim, events: events}
}

// Pressure are the node's conditions that are true, of MemoryPressure,
// DiskPressure and PIDPressure, sorted.
func (m *Manager) Pressure() []v1.NodeConditionType {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.conditions)
}

// Calm tells whether the node is known to be short of nothing.
func (m *Manager) Calm() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.known && len(m.conditions) == 0
}

// Run watches until ctx ends.
func (m *Manager) Run(ctx context.Context) error {
	poked := make(chan struct{}, 1)
	if m.config.Notifier != nil {
		var listening sync.WaitGroup
		defer listening.Wait()
		listening.Go(func() { m.listen(ctx, poked) })
	}
	for ctx.Err() == nil {
		victims, err := m.round(ctx, time.Now())
		if err != nil && ctx.Err() == nil {
			m.config.Log.Warn("cannot see whether the node runs short of something", "err", err)
		}
		if len(victims) > 0 {
			m.awaitFinished(ctx, victims)
			continue
		}
		sleep(ctx, least, nil)
		sleep(ctx, period-least, poked)
	}
	return ctx.Err()
}

// listen passes the kernel's word on.
func (m *Manager) listen(ctx context.Context, poked chan<- struct{}) {
	err := m.config.Notifier.Run(ctx, func() {
		select {
		case poked <- struct{}{}:
		default:
		}
	})
	if err != nil && ctx.Err() == nil {
		m.config.Log.Warn("the kernel does not tell when memory runs short; it is looked at every 10 s", "err", err)
	}
}

func sleep(ctx context.Context, d time.Duration, cut <-chan struct{}) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	case <-cut:
	}
}

// round looks once and returns the pods that it ended.
func (m *Manager) round(ctx context.Context, now time.Time) ([]types.UID, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	if len(m.config.Thresholds) == 0 && !m.config.LocalStorage {
		m.publish(nil)
		return nil, nil
	}
	node, err := m.meter.Node(ctx)
	if err != nil {
		return nil, err
	}
	if m.policy == nil {
		p := newPolicy(m.config.Thresholds, node.Layout, m.config.Transition, m.config.MaxPodGrace)
		if m.config.Spared != nil {
			p.spared = m.config.Spared
		}
		m.policy = &p
	}
	observed := Observe(node)
	m.state = m.policy.Next(m.state, observed, now)
	m.publish(m.policy.Conditions(m.state, now))
	if m.config.Notifier != nil {
		if err := m.config.Notifier.Arm(node); err != nil {
			m.config.Log.Debug("cannot renew the kernel's memory notification", "err", err)
		}
	}
	active := m.pods.Active()
	if m.config.LocalStorage {
		if ended := m.limits(ctx, active); len(ended) > 0 {
			return ended, nil
		}
	}
	due := m.policy.Due(m.state)
	if len(due) == 0 {
		return nil, nil
	}
	return m.relieve(ctx, due, observed, active, now)
}

// limits ends the pods that overstep theirs.
func (m *Manager) limits(ctx context.Context, active []*v1.Pod) []types.UID {
	limited := slices.DeleteFunc(slices.Clone(active), func(p *v1.Pod) bool { return !Limited(p) })
	if len(limited) == 0 {
		return nil
	}
	used, err := m.meter.Pods(ctx, limited)
	if err != nil {
		// The node itself may still run short, and is looked at all the same.
		m.config.Log.Warn("limits on local storage cannot be checked", "err", err)
	}
	var ended []types.UID
	for _, v := range m.policy.Overstepped(limited, used) {
		ended = append(ended, m.end(v))
	}
	return ended
}

// relieve frees what can be freed, and if that is not enough ends a pod. At is
// when the node was measured.
func (m *Manager) relieve(ctx context.Context, due []Threshold, observed Observations, active []*v1.Pod, at time.Time) ([]types.UID, error) {
	t := due[0]
	what := meanings[t.Signal].resource
	m.events.Node(v1.EventTypeWarning, "EvictionThresholdMet", "Attempting to reclaim %s", what)
	m.config.Log.Info("the node runs short", "resource", what, "signal", t.Signal, "available", observed[t.Signal].Available)
	if m.reclaimFor(ctx, t.Signal) {
		node, err := m.meter.Node(ctx)
		if err != nil {
			m.config.Log.Warn("cannot see whether enough was freed; a pod ends", "err", err)
		} else if m.policy.Relieved(Observe(node)) {
			m.config.Log.Info("enough was freed without ending a pod", "resource", what)
			return nil, nil
		}
	}
	used, err := m.meter.Pods(ctx, active)
	if err != nil {
		// Not knowing what pods use must not keep one from ending.
		m.config.Log.Warn("pods are ranked without their usage", "err", err)
	}
	v, found := m.policy.Victim(due, observed, active, used)
	if !found {
		m.config.Log.Warn("the node runs short, and there is no pod that may be ended", "resource", what)
		return nil, nil
	}
	if m.config.Counts != nil {
		for _, t := range due {
			m.config.Counts.EvictionMeasured(string(t.Signal), time.Since(at))
		}
	}
	return []types.UID{m.end(v)}, nil
}

// reclaimFor tells whether anything was tried.
func (m *Manager) reclaimFor(ctx context.Context, s Signal) bool {
	ways := reclaims(s, m.policy.layout)
	ctx, cancel := context.WithTimeout(ctx, reclaimTimeout)
	defer cancel()
	for _, way := range ways {
		free := m.reclaim.RemoveDeadContainers
		if way == UnusedImages {
			free = m.reclaim.RemoveUnusedImages
		}
		if err := free(ctx); err != nil {
			m.config.Log.Warn("cannot free all that no pod needs", "err", err)
		}
	}
	return len(ways) > 0
}

func (m *Manager) end(v Victim) types.UID {
	m.config.Log.Info("ending a pod", "pod", v.Pod.Namespace+"/"+v.Pod.Name, "why", v.Stop.Message)
	m.pods.Stop(v.Pod.UID, v.Stop)
	if m.config.Counts != nil {
		m.config.Counts.Evicted(v.Signal)
	}
	return v.Pod.UID
}

func (m *Manager) publish(conditions []v1.NodeConditionType) {
	m.mu.Lock()
	same, first := slices.Equal(m.conditions, conditions), !m.known
	m.conditions, m.known = conditions, true
	m.mu.Unlock()
	if same && !first {
		return
	}
	if !same {
		m.config.Log.Info("the node's conditions changed", "true", conditions)
	}
	if m.config.Changed != nil {
		m.config.Changed()
	}
}

// awaitFinished gives what was ended the time to make room, so that no second
// pod ends for the same shortage.
func (m *Manager) awaitFinished(ctx context.Context, victims []types.UID) {
	ctx, cancel := context.WithTimeout(ctx, goneTimeout)
	defer cancel()
	for ctx.Err() == nil {
		sleep(ctx, goneCheck, nil)
		if !slices.ContainsFunc(victims, func(uid types.UID) bool { return !m.pods.Finished(uid) }) {
			return
		}
	}
}
