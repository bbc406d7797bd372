// Package node is the Node object of this host: it registers it, keeps its
// status true and renews its lease. What the status says is computed from facts
// (status.go, pure); where the facts come from is the caller's business.
package node

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
	coordinationv1 "k8s.io/api/coordination/v1"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/component-helpers/apimachinery/lease"
	"k8s.io/utils/clock"

	"github.com/berth-io/berth/internal/failpoint"
)

// KubeletVersion is the kubelet whose role and behaviour Berth has: what the
// API server, kubeadm and its version skew rules go by.
const KubeletVersion = "v1.36.3"

// Config of a Registrar.
type Config struct {
	// Client is for this alone: nothing else that the agent asks of the API
	// server may hold up the word that the node is alive. Its requests end after a
	// time.
	Client kubernetes.Interface
	// Unreachable is called when the lease could not be renewed several times in
	// a row: connections may hang. nil: nobody wants to know.
	Unreachable func()
	Name        string
	// Labels, Annotations and Taints are given to a node that registers.
	// Labels of a node that exists already are its cluster's, but for those
	// that say what the host is.
	Labels      map[string]string
	Annotations map[string]string
	Taints      []v1.Taint
	ProviderID  string
	// Register makes the node's object where there is none (registerNode).
	Register bool
	// Object is the node's object as the API server was last seen to have it;
	// false: it was not seen. Others write into it too: controllers above all,
	// which take a node that they do not hear of for lost.
	Object func() (*v1.Node, bool)
	// Facts are what the status says; ctx bounds looking for them.
	Facts func(ctx context.Context) Facts
	// Event tells of what became of the node, in the kubelet's reasons.
	Event func(eventType, reason, message string)
	// Startup is told how a node becomes one; nil: nobody counts.
	Startup Startup
	// Every is how often the facts are looked at, and Report how often the
	// status is written even though it says the same (nodeStatusUpdateFrequency,
	// nodeStatusReportFrequency).
	Every, Report time.Duration
	Lease         time.Duration // its duration (nodeLeaseDurationSeconds)
	Log           *slog.Logger
}

// Startup are the steps of a node that is new (agent/metrics).
type Startup interface {
	// NodeRegistering: the API server is asked to make the node's object.
	NodeRegistering()
	// NodeRegistered: it has made it.
	NodeRegistered()
	// NodeReady: it has that the node is ready.
	NodeReady()
}

// Registrar owns the node's object, its status and its lease.
type Registrar struct {
	config Config
	wake   chan struct{} // capacity one
	made   chan struct{} // closed
}

// New returns a Registrar; Run registers.
func New(c Config) *Registrar {
	return &Registrar{config: c, wake: make(chan struct{}, 1), made: make(chan struct{})}
}

// Poke tells that facts have changed: the status is looked at now.
func (r *Registrar) Poke() {
	select {
	case r.wake <- struct{}{}:
	default: // it has not looked at the last one yet
	}
}

// Registered is closed once the API server has the node.
func (r *Registrar) Registered() <-chan struct{} { return r.made }

const (
	requestTimeout           = 10 * time.Second
	factsTimeout             = 10 * time.Second
	firstPause, longestPause = 100 * time.Millisecond, 7 * time.Second
	// eager is how often a node that is not ready yet is looked at.
	eager = 100 * time.Millisecond
	// starting is for how long it is.
	starting = 30 * time.Second
	// leaseFraction of its duration is how often a lease is renewed
	// (pkg/kubelet/kubelet.go, nodeLeaseRenewIntervalFraction).
	leaseFraction = 0.25
)

// Run registers the node and keeps its object true until ctx ends. It only
// returns ctx's error: an API server that is away is tried again.
func (r *Registrar) Run(ctx context.Context) error {
	node, err := r.register(ctx)
	if err != nil {
		return err
	}
	failpoint.Hit("agent/node-registered")
	close(r.made)
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return r.heartbeat(ctx) })
	group.Go(func() error { return r.keep(ctx, node) })
	return group.Wait()
}

// register makes the node's object, or takes over the one there is.
func (r *Registrar) register(ctx context.Context) (*v1.Node, error) {
	for pause := firstPause; ; pause = min(2*pause, longestPause) {
		node, err := r.tryRegister(ctx)
		if err == nil {
			return node, nil
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		r.config.Log.Warn("the node is not registered yet; it is tried again", "err", err, "pause", pause)
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(pause):
		}
	}
}

func (r *Registrar) tryRegister(ctx context.Context) (*v1.Node, error) {
	want := r.initial(ctx)
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	nodes := r.config.Client.CoreV1().Nodes()
	var refused error
	if r.config.Register {
		if r.config.Startup != nil {
			r.config.Startup.NodeRegistering()
		}
		node, err := nodes.Create(ctx, want, metav1.CreateOptions{})
		if err == nil {
			if r.config.Startup != nil {
				r.config.Startup.NodeRegistered()
			}
			return node, nil
		}
		// One that may not be created may be there all the same.
		if !apierrors.IsAlreadyExists(err) && !apierrors.IsForbidden(err) {
			return nil, fmt.Errorf("create node %s: %w", want.Name, err)
		}
		refused = err
	}
	node, err := nodes.Get(ctx, want.Name, metav1.GetOptions{})
	if err != nil && apierrors.IsForbidden(refused) {
		return nil, fmt.Errorf("create node %s: %w", want.Name, refused)
	}
	if err != nil {
		return nil, fmt.Errorf("get node %s: %w", want.Name, err)
	}
	next := node.DeepCopy()
	reconcile(next, want)
	if equality.Semantic.DeepEqual(node, next) {
		return node, nil
	}
	return r.patch(ctx, node, next, "")
}

// initial is the node as it registers.
func (r *Registrar) initial(ctx context.Context) *v1.Node {
	node := &v1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: r.config.Name, Labels: maps.Clone(r.config.Labels), Annotations: maps.Clone(r.config.Annotations)},
		Spec:       v1.NodeSpec{Taints: slices.Clone(r.config.Taints), ProviderID: r.config.ProviderID},
	}
	node.Status = Status(r.facts(ctx), node.Status, time.Now())
	return node
}

// reconcile brings a node that was registered before up to date with what the
// host is. Other labels, and the taints, are its cluster's by now.
func reconcile(node, want *v1.Node) {
	if node.Labels == nil {
		node.Labels = map[string]string{}
	}
	for _, key := range hostLabels {
		if value, ok := want.Labels[key]; ok && value != "" {
			node.Labels[key] = value
		}
	}
	if _, still := want.Annotations[providedIP]; !still {
		delete(node.Annotations, providedIP)
	}
	for key, value := range want.Annotations {
		if node.Annotations == nil {
			node.Annotations = map[string]string{}
		}
		node.Annotations[key] = value
	}
}

// providedIP tells an external cloud provider which addresses of the node were
// configured (k8s.io/cloud-provider/api, AnnotationAlphaProvidedIPAddr).
const providedIP = "alpha.kubernetes.io/provided-node-ip"

// hostLabels are what the kubelet keeps up to date on an existing node
// (pkg/kubelet/kubelet_node_status.go, updateDefaultLabels).
var hostLabels = []string{
	v1.LabelHostname, v1.LabelTopologyZone, v1.LabelTopologyRegion, v1.LabelFailureDomainBetaZone, v1.LabelFailureDomainBetaRegion,
	v1.LabelInstanceTypeStable, v1.LabelInstanceType, v1.LabelOSStable, v1.LabelArchStable, "beta.kubernetes.io/os", "beta.kubernetes.io/arch",
}

func (r *Registrar) facts(ctx context.Context) Facts {
	ctx, cancel := context.WithTimeout(ctx, factsTimeout)
	defer cancel()
	return r.config.Facts(ctx)
}

// keep writes the status when it says something else, and from time to time
// when it does not.
func (r *Registrar) keep(ctx context.Context, node *v1.Node) error {
	r.tell(v1.NodeStatus{}, node.Status)
	began := time.Now()
	var written time.Time
	var seen *v1.Node // the newest that the watch has told
	unschedulable := false
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-timer.C:
		case <-r.wake:
		}
		if object, ok := r.config.Object(); ok && object != seen {
			node, seen = object, object
		}
		if unschedulable != node.Spec.Unschedulable {
			unschedulable = node.Spec.Unschedulable
			r.event(schedulableReason(unschedulable))
		}
		failed := false
		now := time.Now()
		next := Status(r.facts(ctx), node.Status, now)
		if now.Sub(written) >= r.config.Report || !Same(node.Status, next) {
			switch updated, err := r.write(ctx, node, next); {
			case err == nil:
				r.tell(node.Status, next)
				if ready(next) && r.config.Startup != nil {
					r.config.Startup.NodeReady()
				}
				node, written = updated, now
			case ctx.Err() == nil:
				r.config.Log.Warn("the node's status is not in the API yet; it is tried again", "err", err)
				node, failed = r.reread(ctx, node), true
			}
		}
		pause := r.config.Every
		if !failed && !ready(node.Status) && now.Sub(began) < starting {
			pause = eager
		}
		timer.Reset(pause)
	}
}

// reread takes what the API server has: the status may have been written after
// all, or the node deleted and made anew.
func (r *Registrar) reread(ctx context.Context, node *v1.Node) *v1.Node {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	got, err := r.config.Client.CoreV1().Nodes().Get(ctx, node.Name, metav1.GetOptions{})
	switch {
	case err == nil:
		return got
	case apierrors.IsNotFound(err) && r.config.Register:
		if made, err := r.tryRegister(ctx); err == nil {
			r.config.Log.Info("the node's object was deleted; it is registered again")
			return made
		}
	}
	return node
}

func (r *Registrar) write(ctx context.Context, node *v1.Node, status v1.NodeStatus) (*v1.Node, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	next := *node
	next.Status = status
	updated, err := r.patch(ctx, node, &next, "status")
	if err != nil {
		return nil, fmt.Errorf("write the status of node %s: %w", node.Name, err)
	}
	failpoint.Hit("agent/node-reported")
	return updated, nil
}

func (r *Registrar) patch(ctx context.Context, old, next *v1.Node, subresource string) (*v1.Node, error) {
	before, err := json.Marshal(old)
	if err != nil {
		return nil, err
	}
	after, err := json.Marshal(next)
	if err != nil {
		return nil, err
	}
	data, err := strategicpatch.CreateTwoWayMergePatch(before, after, v1.Node{})
	if err != nil {
		return nil, err
	}
	var sub []string
	if subresource != "" {
		sub = append(sub, subresource)
	}
	return r.config.Client.CoreV1().Nodes().Patch(ctx, old.Name, types.StrategicMergePatchType, data, metav1.PatchOptions{}, sub...)
}

// tell makes events of what has changed, in the kubelet's words.
func (r *Registrar) tell(old, next v1.NodeStatus) {
	if id := next.NodeInfo.BootID; old.NodeInfo.BootID != "" && id != old.NodeInfo.BootID {
		r.config.Event(v1.EventTypeWarning, "Rebooted", fmt.Sprintf("Node %s has been rebooted, boot id: %s", r.config.Name, id))
	}
	for i := range next.Conditions {
		if c := &next.Conditions[i]; changed(find(old.Conditions, c.Type), c) {
			r.event(eventReason(c))
		}
	}
}

func (r *Registrar) event(reason string) {
	r.config.Event(v1.EventTypeNormal, reason, fmt.Sprintf("Node %s status is now: %s", r.config.Name, reason))
}

// heartbeat renews the node's lease, which tells the cluster that it is alive.
func (r *Registrar) heartbeat(ctx context.Context) error {
	renew := time.Duration(float64(r.config.Lease) * leaseFraction)
	lease.NewController(clock.RealClock{}, r.config.Client, r.config.Name, int32(r.config.Lease/time.Second), r.config.Unreachable, renew,
		r.config.Name, v1.NamespaceNodeLease, r.own).Run(ctx)
	return ctx.Err()
}

// own makes the lease go with its node.
func (r *Registrar) own(l *coordinationv1.Lease) error {
	if len(l.OwnerReferences) > 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), requestTimeout)
	defer cancel()
	node, err := r.config.Client.CoreV1().Nodes().Get(ctx, r.config.Name, metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("get node %s, which owns its lease: %w", r.config.Name, err)
	}
	l.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: node.Name, UID: node.UID}}
	return nil
}
