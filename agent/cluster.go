package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	v1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	corev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/record"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-io/berth/agent/admit"
	"github.com/berth-io/berth/agent/apiwatch"
	"github.com/berth-io/berth/agent/credentials"
	"github.com/berth-io/berth/agent/dispatch"
	"github.com/berth-io/berth/agent/event"
	"github.com/berth-io/berth/agent/images"
	"github.com/berth-io/berth/agent/kubeletapi"
	"github.com/berth-io/berth/agent/kubeletapi/access"
	"github.com/berth-io/berth/agent/metrics"
	"github.com/berth-io/berth/agent/mirror"
	"github.com/berth-io/berth/agent/node"
	"github.com/berth-io/berth/agent/objects"
	"github.com/berth-io/berth/agent/podreport"
	"github.com/berth-io/berth/agent/podsource"
	"github.com/berth-io/berth/agent/stats"
	"github.com/berth-io/berth/csi/volume"
)

// Cluster is how the agent belongs to a cluster.
type Cluster struct {
	Client kubernetes.Interface
	// Identity keeps what Client and API.Server show of the node valid.
	Identity Identity
	// Images is how images are pulled, and for whom.
	Images Images
	// Heartbeats is for the node's lease and status, without limits and with a
	// timeout (kubelet: HeartbeatClient).
	Heartbeats kubernetes.Interface
	// Events is where events go; its client has limits of its own, so that they
	// hold up nothing else.
	Events corev1.EventInterface
	// Node is how it registers; what is left out is filled in.
	Node node.Config
	// Facts are those of the node's facts that do not change while the agent
	// runs: addresses, capacity, what the host is.
	Facts node.Facts
	// MaxImages are named in the node's status, all for -1 (nodeStatusMaxImages).
	MaxImages int
	// Objects is how ConfigMaps and Secrets are kept up to date; Client, Changed
	// and Log are filled in.
	Objects objects.Config
	// API is the kubelet's, on port 10250.
	API API
	// Admit checks new pods.
	Admit     *admit.Checker
	Resources Resources
}

// Identity is the node's certificates, and its connections to the API server.
type Identity interface {
	// Run gets and renews certificates until ctx ends.
	Run(ctx context.Context) error
	// CloseConnections ends all connections, of which some may hang.
	CloseConnections()
}

// Images is how images are pulled for the pods of a cluster. What is left out
// is filled in.
type Images struct {
	Pulls       images.Config
	Credentials credentials.Config
	Records     credentials.RecordsConfig
}

// API is how the kubelet's API is served. What the parts show is filled in.
type API struct {
	Server  kubeletapi.Config
	Authn   access.AuthnConfig
	Authz   access.AuthzConfig
	Stats   stats.Config
	Metrics metrics.Config
}

// cluster is the agent's side towards the API server.
type cluster struct {
	config    Cluster
	nodeName  string
	runtime   runtimeapi.RuntimeServiceClient
	images    runtimeapi.ImageServiceClient
	pods      *podsource.Source
	node      *apiwatch.Set[*v1.Node]
	services  *apiwatch.Set[*v1.Service]
	classes   *apiwatch.Set[*nodev1.RuntimeClass]
	objects   *objects.Store
	records   *credentials.Records
	report    *podreport.Reporter
	mirror    *mirror.Reconciler
	registrar *node.Registrar
	events    record.EventBroadcaster
	busy      func() bool   // pods are being started
	timeout   time.Duration // of a request to the runtime
	log       *slog.Logger
	// nodeChanged receives when the node's object has changed; capacity one.
	nodeChanged chan struct{}
}

// newCluster puts the parts together. What events are told to is made before:
// everything tells events.
func (a *Agent) newCluster(c Cluster, events record.EventBroadcaster) (*cluster, error) {
	k := &cluster{
		events: events, busy: func() bool { return a.actor.Busy() },
		config: c, nodeName: a.config.Node.Name, runtime: a.runtime, images: a.images,
		timeout: a.config.RuntimeTimeout, log: a.config.Log, nodeChanged: make(chan struct{}, 1),
	}
	core := c.Client.CoreV1().RESTClient()
	k.pods = podsource.New(core, k.nodeName, k.log)
	k.node = apiwatch.New(apiwatch.Config[*v1.Node]{
		Client: core, Resource: "nodes", Selector: fields.OneTermEqualSelector("metadata.name", k.nodeName),
		Example: &v1.Node{}, Log: k.log,
		Changed: func() {
			k.tellNode()
			a.ledger.Retry() // labels, taints or what it has may be others
		},
	})
	k.services = apiwatch.New(apiwatch.Config[*v1.Service]{
		Client: core, Resource: "services", Example: &v1.Service{}, Trim: trimService, Log: k.log,
	})
	k.classes = apiwatch.New(apiwatch.Config[*nodev1.RuntimeClass]{
		Client: c.Client.NodeV1().RESTClient(), Resource: "runtimeclasses", Example: &nodev1.RuntimeClass{}, Log: k.log,
	})
	k.report = podreport.New(podreport.Config{Client: c.Client.CoreV1(), Pods: k.pods, Counts: a.counts, Log: k.log})
	k.mirror = mirror.New(mirror.Config{Client: c.Client.CoreV1(), State: func() mirror.State { return k.mirrorState(a) }, Log: k.log})
	c.Objects.Client, c.Objects.Log = c.Client, k.log
	c.Objects.Changed = func(uid types.UID) { a.pods.ObjectsChanged(uid) }
	c.Objects.TTL = k.objectTTL
	var err error
	if k.objects, err = objects.New(c.Objects); err != nil {
		return nil, err
	}
	c.Node.Client, c.Node.Unreachable, c.Node.Name, c.Node.Log = c.Heartbeats, c.Identity.CloseConnections, k.nodeName, k.log
	c.Node.Startup = a.counts
	c.Node.Facts = func(ctx context.Context) node.Facts {
		f := k.facts(ctx, a.pressure)
		f.Capacity, f.Allocatable = k.resources(a.exclusive)
		return f
	}
	c.Node.Object = func() (*v1.Node, bool) { return k.node.Get("", k.nodeName) }
	c.Node.Event = func(eventType, reason, message string) { a.events.Node(eventType, reason, "%s", message) }
	k.registrar = node.New(c.Node)
	return k, nil
}

// objectTTL is how long a ConfigMap or Secret may be used again with the strategy
// Cache: the API server's hint in the node's annotation, or the kubelet's default
// (pkg/kubelet/util/manager, GetObjectTTLFromNodeFunc).
func (k *cluster) objectTTL() time.Duration {
	object, ok := k.node.Get("", k.nodeName)
	if !ok {
		return time.Minute
	}
	seconds, err := strconv.Atoi(object.Annotations[v1.ObjectTTLAnnotationKey])
	if err != nil {
		return time.Minute
	}
	return time.Duration(seconds) * time.Second
}

// trimService leaves of a service what a pod is told of it.
func trimService(s *v1.Service) {
	s.Labels, s.Annotations, s.OwnerReferences, s.Finalizers = nil, nil, nil, nil
	s.Status = v1.ServiceStatus{}
	s.Spec = v1.ServiceSpec{ClusterIP: s.Spec.ClusterIP, Ports: s.Spec.Ports}
}

// run keeps up with the API server until ctx ends.
func (k *cluster) run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, part := range []func(context.Context) error{
		k.config.Identity.Run, k.recover, k.follow, k.node.Run, k.services.Run, k.classes.Run, k.objects.Run, k.report.Run, k.mirror.Run, k.registrar.Run, k.assign,
	} {
		group.Go(func() error { return part(ctx) })
	}
	return group.Wait()
}

// puller pulls images with the credentials of pods and node.
func (k *cluster) puller(a *Agent, sources volume.Objects) (*images.Puller, error) {
	c := k.config.Images
	c.Credentials.Secrets, c.Credentials.Tokens, c.Credentials.Event, c.Credentials.Log = sources, k.objects.Tokens(), a.tell, k.log
	c.Credentials.ServiceAccount = func(ctx context.Context, namespace, name string) (*v1.ServiceAccount, error) {
		return k.config.Client.CoreV1().ServiceAccounts(namespace).Get(ctx, name, metav1.GetOptions{})
	}
	c.Credentials.PluginRan, c.Credentials.Configured = a.counts.PluginRan, a.counts.PluginsConfigured
	keys, err := credentials.New(c.Credentials)
	if err != nil {
		return nil, err
	}
	c.Records.Checked, c.Records.Log = a.counts.ImageVerified, k.log
	if k.records, err = credentials.OpenRecords(c.Records); err != nil {
		return nil, err
	}
	c.Pulls.Credentials, c.Pulls.Records, c.Pulls.Pulled = keys, k.records, a.counts.ImagePulled
	c.Pulls.Ensured = a.counts.ImageEnsured
	return images.New(k.images, a.events, c.Pulls), nil
}

// recoverAgain is when images that could not be listed are listed again.
const recoverAgain = 10 * time.Second

// recover takes up what pulls before this agent have left of their records.
// Until it has, images that they brought count as nobody's: pods pull them.
func (k *cluster) recover(ctx context.Context) error {
	for {
		call, cancel := context.WithTimeout(ctx, k.timeout)
		list, err := k.images.ListImages(call, &runtimeapi.ListImagesRequest{})
		cancel()
		if err == nil {
			err = k.records.Recover(list.GetImages())
		}
		if err == nil || ctx.Err() != nil {
			return ctx.Err()
		}
		k.log.Warn("records of the pulls of before are not taken up yet; it is tried again", "err", err)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(recoverAgain):
		}
	}
}

// tellEvents sends events to the API server until stop is called.
func (k *cluster) tellEvents() (stop func()) {
	sink := k.events.StartRecordingToSink(event.Yield(&corev1.EventSinkImpl{Interface: k.config.Events}, k.busy))
	return func() {
		sink.Stop()
		k.events.Shutdown()
	}
}

// forget drops the records of pulls whose images were collected.
func (k *cluster) forget(left []string, listed time.Time) {
	if err := k.records.Prune(left, listed); err != nil {
		k.log.Warn("records of pulls of images that are gone stay; they are removed with the next collection", "err", err)
	}
}

// follow watches the node's pods once the node itself and the services are
// known: before that no pod could be admitted, and no container started.
func (k *cluster) follow(ctx context.Context) error {
	for _, known := range []<-chan struct{}{k.node.Synced(), k.services.Synced(), k.classes.Synced()} {
		select {
		case <-known:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return k.pods.Run(ctx)
}

// kubeletAPI puts the kubelet's API together.
func (k *cluster) kubeletAPI(a *Agent, pods metrics.Pods) (*kubeletapi.Server, error) {
	c := k.config.API
	c.Server.Log, c.Stats.Log, c.Metrics.Log = k.log, k.log, k.log
	c.Server.SyncLoop = a.syncing
	authn, err := access.NewAuthenticator(c.Authn)
	if err != nil {
		return nil, err
	}
	c.Metrics.Events, c.Metrics.CPUs, c.Metrics.Records = a.counts, a.exclusive.CPUs, k.records.Count
	c.Metrics.CPUsByNode = a.exclusive.CPUsByNode
	c.Metrics.Working = func() map[metrics.Working]int { return working(a.pods.Standings()) }
	measure := stats.New(k.runtime, k.images, pods, a.cgroups, c.Stats)
	counted := metrics.New(k.runtime, measure, pods, c.Metrics)
	counted.ObserveClients()
	counted.Registry().MustRegister(a.exclusive.claims)
	return kubeletapi.New(kubeletapi.Parts{
		Pods: pods, Runtime: k.runtime, Stats: measure, Metrics: counted, Authn: authn, Authz: access.NewAuthorizer(c.Authz),
	}, c.Server), nil
}

// working has workers in the kubelet's words.
func working(standings map[dispatch.Standing]int) map[metrics.Working]int {
	out := map[metrics.Working]int{}
	for s, n := range standings {
		w := metrics.Working{Lifecycle: "sync", Config: "desired"}
		switch {
		case s.Ended:
			w.Lifecycle = "terminated"
		case s.Ending:
			w.Lifecycle = "terminating"
		}
		switch {
		case s.Stray:
			w.Config, w.Static = "runtime_only", "unknown"
		case s.Unwanted:
			w.Config = "orphan"
		}
		if s.Static {
			w.Static = "true"
		}
		out[w] += n
	}
	return out
}

// current is the node as last seen, with the allocatable resources of now. One
// that is not registered yet is what it will register as.
func (k *cluster) current(e *exclusive) *v1.Node {
	object, ok := k.node.Get("", k.nodeName)
	if !ok {
		object = &v1.Node{ObjectMeta: metav1.ObjectMeta{Name: k.nodeName, Labels: k.config.Node.Labels}}
	}
	return k.withResources(object, e)
}

// withResources is the node with the resources of now.
func (k *cluster) withResources(object *v1.Node, e *exclusive) *v1.Node {
	n := *object
	n.Status.Capacity, n.Status.Allocatable = k.resources(e)
	return &n
}

// resources are the node's, with the devices of now. What made them once makes
// them again: a device is no reason that anything else does not add up.
func (k *cluster) resources(e *exclusive) (capacity, allocatable v1.ResourceList) {
	r, err := e.config.Capacity(e.plugins.Capacity())
	if err != nil {
		k.log.Warn("the node's devices are not in its capacity", "err", err)
		return k.config.Facts.Capacity, k.config.Facts.Allocatable
	}
	return r.Capacity, r.Allocatable
}

func (k *cluster) tellNode() {
	k.mirror.Poke()
	select {
	case k.nodeChanged <- struct{}{}:
	default: // it is looked at anyway
	}
}

// assign tells the runtime which pod subnets the cluster has given this node.
func (k *cluster) assign(ctx context.Context) error {
	var told []string
	again := time.NewTimer(0)
	defer again.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-k.nodeChanged:
		case <-again.C:
		}
		object, ok := k.node.Get("", k.nodeName)
		if !ok || len(object.Spec.PodCIDRs) == 0 || slices.Equal(told, object.Spec.PodCIDRs) {
			continue
		}
		call, cancel := context.WithTimeout(ctx, k.timeout)
		_, err := k.runtime.UpdateRuntimeConfig(call, &runtimeapi.UpdateRuntimeConfigRequest{RuntimeConfig: &runtimeapi.RuntimeConfig{
			NetworkConfig: &runtimeapi.NetworkConfig{PodCidr: strings.Join(object.Spec.PodCIDRs, ",")},
		}})
		cancel()
		if err != nil {
			k.log.Warn("the runtime does not know this node's pod subnets; it is told again", "err", err)
			again.Reset(time.Second)
			continue
		}
		told = object.Spec.PodCIDRs
		k.registrar.Poke() // the network may be ready by now
	}
}

// declared are features that the API server and the scheduler rely on only
// where a node has them (k8s.io/component-helpers/nodedeclaredfeatures).
var declared = []string{
	"ExtendWebSocketsToKubelet", "InPlacePodLevelResourcesVerticalScaling", "InPlacePodVerticalScalingInitContainers",
	"RestartAllContainersOnContainerExits",
}

// facts gathers what changes of a node.
func (k *cluster) facts(ctx context.Context, p *pressure) node.Facts {
	f := k.config.Facts
	f.DeclaredFeatures = declared
	f.MemoryPressure, f.DiskPressure, f.PIDPressure = p.under(v1.NodeMemoryPressure), p.under(v1.NodeDiskPressure), p.under(v1.NodePIDPressure)
	version, err := k.runtime.Version(ctx, &runtimeapi.VersionRequest{})
	if err != nil {
		f.Info.ContainerRuntimeVersion = "unknown://Unknown"
	} else {
		f.Info.ContainerRuntimeVersion = version.GetRuntimeName() + "://" + version.GetRuntimeVersion()
	}
	status, err := k.runtime.Status(ctx, &runtimeapi.StatusRequest{})
	if err != nil {
		f.Problems = append(f.Problems, fmt.Sprintf("container runtime status check may not have completed yet: %v", err))
		return f
	}
	f.Problems, f.Handlers, f.Features = node.Runtime(status)
	if p != nil && p.stopper.ShuttingDown() {
		f.Problems = append(f.Problems, "node is shutting down")
	}
	list, err := k.images.ListImages(ctx, &runtimeapi.ListImagesRequest{})
	if err != nil {
		k.log.Warn("the node's images are not in its status", "err", err)
		return f
	}
	f.Images = node.Images(list.GetImages(), k.config.MaxImages)
	return f
}

func (k *cluster) mirrorState(a *Agent) mirror.State {
	desired := a.source.Snapshot()
	_, mirrors, complete := k.pods.Pods()
	s := mirror.State{Static: desired.Set.Pods, Mirrors: mirrors, Complete: complete && desired.Complete}
	if object, ok := k.node.Get("", k.nodeName); ok {
		s.Node = object
	}
	return s
}

// Services returns the cluster's services.
func (k *cluster) Services() ([]*v1.Service, error) {
	list, synced := k.services.List()
	if !synced {
		return nil, errors.New("services have not yet been read at least once, cannot construct envvars")
	}
	return list, nil
}

// Handler returns the runtime handler of a RuntimeClass.
func (k *cluster) Handler(name string) (string, error) {
	class, ok := k.classes.Get("", name)
	if !ok {
		return "", fmt.Errorf("failed to get sandbox runtime: RuntimeClass.node.k8s.io %q not found", name)
	}
	return class.Handler, nil
}
