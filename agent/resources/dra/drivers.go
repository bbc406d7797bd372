package dra

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/stats"
	healthpb "k8s.io/kubelet/pkg/apis/dra-health/v1alpha1"
	drapb "k8s.io/kubelet/pkg/apis/dra/v1"
	drapbv1beta1 "k8s.io/kubelet/pkg/apis/dra/v1beta1"
)

// callTimeout bounds one call to a driver (kubelet:
// cm/dra/plugin/dra_plugin.go).
const callTimeout = 45 * time.Second

// services are those that are spoken; of those that a driver offers, the first in
// its list counts.
var services = []string{drapb.DRAPluginService, drapbv1beta1.DRAPluginService}

// reconnect is how a driver that went away without a word is looked for: it may
// come back behind the same socket.
var reconnect = backoff.Config{BaseDelay: time.Second, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 5 * time.Second}

// Drivers are the DRA drivers of this node. There may be several plugins of one
// driver while it is updated (kubelet: cm/dra/plugin/dra_plugin_manager.go). It is
// a pluginwatch.Handler.
type Drivers struct {
	wiper   *wiper
	health  *health
	metrics *metrics
	came    chan struct{} // capacity one: a driver has come
	log     *slog.Logger

	// following counts the goroutines that follow plugins; none is added once
	// stopping is set.
	following sync.WaitGroup
	mu        sync.Mutex
	stopping  bool
	plugins   map[string][]*plugin // by driver, in the order in which they registered
}

func newDrivers(config Config, health *health, metrics *metrics) *Drivers {
	return &Drivers{
		wiper:  newWiper(config.Client.ResourceSlices(), config.Node, config.Log),
		health: health, metrics: metrics, came: make(chan struct{}, 1), log: config.Log, plugins: map[string][]*plugin{},
	}
}

// plugin is one of a driver's.
type plugin struct {
	driver, endpoint, service string
	conn                      *grpc.ClientConn
	end                       context.CancelFunc // of what follows it
	connected                 bool               // with Drivers.mu
}

// run cleans up after drivers that are not there, until ctx ends.
func (d *Drivers) run(ctx context.Context) error {
	defer d.stopAll()
	return d.wiper.run(ctx)
}

// stopAll ends what Register has started.
func (d *Drivers) stopAll() {
	d.mu.Lock()
	d.stopping = true
	var left []*plugin
	for _, list := range d.plugins {
		left = append(left, list...)
	}
	d.mu.Unlock()
	for _, p := range left {
		d.close(p)
	}
	d.following.Wait()
}

// close must not be called with mu held: it tells connection.HandleConn.
func (d *Drivers) close(p *plugin) {
	p.end()
	if err := p.conn.Close(); err != nil {
		d.log.Warn("the connection to a DRA driver could not be closed", "driver", p.driver, "endpoint", p.endpoint, "error", err)
	}
}

// Validate says why the driver's plugin cannot be used.
func (d *Drivers) Validate(driver, endpoint string, versions []string) error {
	_, err := choose(driver, endpoint, versions)
	return err
}

func choose(driver, endpoint string, versions []string) (service string, err error) {
	if len(versions) == 0 {
		err = errors.New("empty list of supported gRPC services (aka supported versions)")
	} else if at := slices.IndexFunc(versions, func(v string) bool { return slices.Contains(services, v) }); at >= 0 {
		return versions[at], nil
	} else {
		err = fmt.Errorf("none of services supported by the plugin (%q) are supported by the kubelet (%q)", versions, services)
	}
	return "", fmt.Errorf("invalid supported gRPC versions of DRA driver plugin %s at endpoint %s: %w", driver, endpoint, err)
}

// Register takes a plugin of the driver, beside others that it has at other
// endpoints. The plugin is followed until Deregister, or until ctx ends.
func (d *Drivers) Register(ctx context.Context, driver, endpoint string, versions []string) error {
	service, err := choose(driver, endpoint, versions)
	if err != nil {
		return err
	}
	p := &plugin{driver: driver, endpoint: endpoint, service: service}
	p.conn, err = grpc.NewClient("unix:"+endpoint,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: reconnect, MinConnectTimeout: time.Second}),
		grpc.WithChainUnaryInterceptor(d.metrics.interceptor(driver)),
		grpc.WithStatsHandler(&connection{drivers: d, plugin: p}))
	if err != nil {
		return fmt.Errorf("create gRPC connection to DRA driver %s plugin at endpoint %s: %w", driver, endpoint, err)
	}
	followed, end := context.WithCancel(ctx)
	p.end = end
	if err := d.add(p); err != nil {
		d.close(p)
		return err
	}
	p.conn.Connect() // whether it is there is to be known before it is called
	d.changed(driver)
	go func() {
		defer d.following.Done()
		client := healthpb.NewDRAResourceHealthClient(p.conn)
		d.health.follow(followed, driver, client)
		if ctx.Err() == nil { // otherwise the next agent goes on with what is known
			d.health.forget(driver, client)
		}
	}()
	return nil
}

func (d *Drivers) add(p *plugin) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.stopping {
		return errors.New("DRA drivers are not taken any more: the node is stopping")
	}
	if slices.ContainsFunc(d.plugins[p.driver], func(other *plugin) bool { return other.endpoint == p.endpoint }) {
		return fmt.Errorf("endpoint %s already registered for DRA driver plugin %s", p.endpoint, p.driver)
	}
	d.plugins[p.driver] = append(d.plugins[p.driver], p)
	d.following.Add(1)
	return nil
}

// Deregister forgets the plugin at that endpoint.
func (d *Drivers) Deregister(driver, endpoint string) {
	d.mu.Lock()
	list := d.plugins[driver]
	at := slices.IndexFunc(list, func(p *plugin) bool { return p.endpoint == endpoint })
	var gone *plugin
	if at >= 0 {
		gone = list[at]
		d.plugins[driver] = slices.Delete(slices.Clone(list), at, at+1)
		if len(list) == 1 {
			delete(d.plugins, driver)
		}
	}
	d.mu.Unlock()
	if gone != nil {
		d.close(gone)
		d.changed(driver)
	}
}

// changed has the driver's ResourceSlices removed unless one of its plugins is
// there.
func (d *Drivers) changed(driver string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if slices.ContainsFunc(d.plugins[driver], func(p *plugin) bool { return p.connected }) {
		d.wiper.back(driver)
		return
	}
	d.wiper.lost(driver)
}

// get is the plugin to call: of those that are connected the one that registered
// last, or else the last of all.
func (d *Drivers) get(driver string) (*plugin, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	list := d.plugins[driver]
	switch {
	case driver == "":
		return nil, errors.New("DRA driver name is empty")
	case len(list) == 0:
		return nil, fmt.Errorf("DRA driver %s is not registered", driver)
	}
	for _, p := range slices.Backward(list) {
		if p.connected {
			return p, nil
		}
	}
	return list[len(list)-1], nil
}

// prepare asks the plugin; an older one in its own version.
func (p *plugin) prepare(ctx context.Context, request *drapb.NodePrepareResourcesRequest) (*drapb.NodePrepareResourcesResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if p.service == drapbv1beta1.DRAPluginService {
		return drapbv1beta1.V1Beta1ClientWrapper{DRAPluginClient: drapbv1beta1.NewDRAPluginClient(p.conn)}.NodePrepareResources(ctx, request)
	}
	return drapb.NewDRAPluginClient(p.conn).NodePrepareResources(ctx, request)
}

func (p *plugin) unprepare(ctx context.Context, request *drapb.NodeUnprepareResourcesRequest) (*drapb.NodeUnprepareResourcesResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if p.service == drapbv1beta1.DRAPluginService {
		return drapbv1beta1.V1Beta1ClientWrapper{DRAPluginClient: drapbv1beta1.NewDRAPluginClient(p.conn)}.NodeUnprepareResources(ctx, request)
	}
	return drapb.NewDRAPluginClient(p.conn).NodeUnprepareResources(ctx, request)
}

// connection is told by gRPC whether a plugin is there.
type connection struct {
	drivers *Drivers
	plugin  *plugin
}

// HandleConn takes it in. gRPC holds a lock of the connection that Connect needs.
func (c *connection) HandleConn(_ context.Context, s stats.ConnStats) {
	connected := false
	switch s.(type) {
	case *stats.ConnBegin:
		connected = true
	case *stats.ConnEnd:
		go c.plugin.conn.Connect() // does nothing once it is closed
	default:
		return
	}
	c.drivers.mu.Lock()
	c.plugin.connected = connected
	stopping := c.drivers.stopping
	c.drivers.mu.Unlock()
	if stopping {
		return
	}
	c.drivers.changed(c.plugin.driver)
	if !connected {
		return
	}
	select {
	case c.drivers.came <- struct{}{}:
	default: // it is to be told already
	}
}

// TagConn, TagRPC and HandleRPC make it a stats.Handler.
func (c *connection) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }

// TagRPC does nothing.
func (c *connection) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context { return ctx }

// HandleRPC does nothing.
func (c *connection) HandleRPC(context.Context, stats.RPCStats) {}
