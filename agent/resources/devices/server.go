package devices

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation"
	pluginapi "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
)

const (
	socketName = "kubelet.sock"
	// answerTimeout bounds what a plugin is asked while it registers.
	answerTimeout = 10 * time.Second
)

// plugin is a plugin that is there.
type plugin struct {
	resource string
	socket   string
	conn     *grpc.ClientConn
	client   pluginapi.DevicePluginClient
	options  *pluginapi.DevicePluginOptions
	// end stops following it.
	end context.CancelFunc
}

// Run serves kubelet.sock and follows the plugins that register until ctx ends.
// Sockets of plugins that registered before are removed: a plugin that sees this
// or a new kubelet.sock registers again.
func (p *Plugins) Run(ctx context.Context) error {
	if err := p.removeSockets(); err != nil {
		return err
	}
	listener, err := net.Listen("unix", filepath.Join(p.config.Dir, socketName))
	if err != nil {
		return fmt.Errorf("serve the registration of device plugins: %w", err)
	}
	server := grpc.NewServer()
	group, ctx := errgroup.WithContext(ctx)
	pluginapi.RegisterRegistrationServer(server, &registration{plugins: p, ctx: ctx})
	group.Go(func() error {
		<-ctx.Done()
		server.Stop()
		return nil
	})
	group.Go(func() error { return p.watchGrace(ctx) })
	group.Go(func() error {
		if err := server.Serve(listener); err != nil && ctx.Err() == nil {
			return fmt.Errorf("serve the registration of device plugins: %w", err)
		}
		return nil
	})
	err = group.Wait()
	p.stopAll()
	return err
}

// watchGrace tells when a resource is gone for good.
func (p *Plugins) watchGrace(ctx context.Context) error {
	tick := time.NewTicker(time.Minute)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			p.mu.Lock()
			before := len(p.resources)
			p.dropStopped()
			changed := len(p.resources) != before
			p.mu.Unlock()
			if changed {
				p.saveAndTell(nil)
			}
		}
	}
}

func (p *Plugins) removeSockets() error {
	entries, err := os.ReadDir(p.config.Dir)
	if err != nil {
		return fmt.Errorf("look for sockets of device plugins: %w", err)
	}
	for _, entry := range entries {
		if entry.Type()&fs.ModeSocket == 0 {
			continue
		}
		if err := os.Remove(filepath.Join(p.config.Dir, entry.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove a socket of a device plugin: %w", err)
		}
	}
	return nil
}

// registration is the service at kubelet.sock.
type registration struct {
	pluginapi.UnimplementedRegistrationServer
	plugins *Plugins
	ctx     context.Context // of Run: a plugin is followed for longer than its call
}

// Register is what a plugin calls once it serves its own socket.
func (r *registration) Register(_ context.Context, request *pluginapi.RegisterRequest) (*pluginapi.Empty, error) {
	if counts := r.plugins.config.Counts; counts != nil {
		counts.DevicePluginRegistered(request.GetResourceName())
	}
	err := r.plugins.Register(r.ctx, request.GetResourceName(), filepath.Join(r.plugins.config.Dir, request.GetEndpoint()), []string{request.GetVersion()})
	if err != nil {
		r.plugins.config.Log.Warn("a device plugin could not register", "resource", request.GetResourceName(), "error", err)
	}
	return &pluginapi.Empty{}, err
}

// Validate says whether a plugin of that resource and those API versions can be
// used. Where its socket is does not matter.
func (p *Plugins) Validate(resource, _ string, versions []string) error {
	if !slices.ContainsFunc(versions, func(v string) bool { return slices.Contains(pluginapi.SupportedVersions[:], v) }) {
		return fmt.Errorf("requested API version %q is not supported by kubelet. Supported version is %q", strings.Join(versions, ", "), pluginapi.SupportedVersions)
	}
	if !isExtendedResource(resource) {
		return fmt.Errorf("the ResourceName %q is invalid", resource)
	}
	return nil
}

func isExtendedResource(name string) bool {
	return strings.Contains(name, "/") && !strings.Contains(name, "kubernetes.io/") && !strings.HasPrefix(name, "requests.") &&
		len(validation.IsQualifiedName("requests."+name)) == 0
}

// Register starts to follow the plugin at that socket, in place of one that had
// the resource before. It is followed until it goes away or ctx ends.
func (p *Plugins) Register(ctx context.Context, resource, socket string, versions []string) error {
	if err := p.Validate(resource, socket, versions); err != nil {
		return err
	}
	conn, err := grpc.NewClient("passthrough:///"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithAuthority("localhost"),
		grpc.WithContextDialer(func(ctx context.Context, path string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", path)
		}))
	if err != nil {
		return fmt.Errorf("failed to dial device plugin: %w", err)
	}
	client := pluginapi.NewDevicePluginClient(conn)
	asked, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	options, err := client.GetDevicePluginOptions(asked, &pluginapi.Empty{}, grpc.WaitForReady(true))
	if err != nil {
		return errors.Join(fmt.Errorf("failed to get device plugin options: %w", err), conn.Close())
	}
	followed, end := context.WithCancel(ctx)
	next := &plugin{resource: resource, socket: socket, conn: conn, client: client, options: options, end: end}
	p.mu.Lock()
	if p.stopping {
		p.mu.Unlock()
		end()
		return errors.Join(errors.New("device plugins are not taken any more: the node is stopping"), conn.Close())
	}
	p.following.Add(1)
	r := p.resources[resource]
	if r == nil {
		r = &pluginResource{devices: map[string]*pluginapi.Device{}}
		p.resources[resource] = r
	}
	before := r.plugin
	r.plugin, r.stopped = next, time.Time{}
	p.removed.Delete(resource)
	p.mu.Unlock()
	if before != nil {
		before.end()
	}
	p.config.Log.Info("a device plugin registered", "resource", resource, "socket", socket)
	go p.follow(followed, next)
	return nil
}

// Deregister forgets the plugin at that socket.
func (p *Plugins) Deregister(resource, socket string) {
	p.mu.Lock()
	var current *plugin
	if r := p.resources[resource]; r != nil && r.plugin != nil && r.plugin.socket == socket {
		current = r.plugin
	}
	p.mu.Unlock()
	if current != nil {
		current.end()
	}
}

// stopAll ends what Run and Register have started.
func (p *Plugins) stopAll() {
	p.mu.Lock()
	p.stopping = true
	for _, r := range p.resources {
		if r.plugin != nil {
			r.plugin.end()
		}
	}
	p.mu.Unlock()
	p.following.Wait()
}

// follow takes in what the plugin tells until it goes away.
func (p *Plugins) follow(ctx context.Context, from *plugin) {
	defer p.following.Done()
	err := errors.Join(p.listAndWatch(ctx, from), from.conn.Close())
	p.mu.Lock()
	r := p.resources[from.resource]
	current := r != nil && r.plugin == from
	if current {
		r.plugin, r.stopped = nil, p.config.Now()
	}
	p.mu.Unlock()
	from.end()
	if current && ctx.Err() == nil {
		p.config.Log.Warn("a device plugin went away: its devices are unhealthy until it registers again", "resource", from.resource, "error", err)
	}
	if current {
		p.saveAndTell(nil)
	}
}

func (p *Plugins) listAndWatch(ctx context.Context, from *plugin) error {
	stream, err := from.client.ListAndWatch(ctx, &pluginapi.Empty{})
	if err != nil {
		return err
	}
	for {
		told, err := stream.Recv()
		if err != nil {
			return err
		}
		p.takeIn(from, told.GetDevices())
	}
}

// takeIn replaces what is known of the resource's devices.
func (p *Plugins) takeIn(from *plugin, told []*pluginapi.Device) {
	p.mu.Lock()
	r := p.resources[from.resource]
	if r == nil || r.plugin != from {
		p.mu.Unlock()
		return // another plugin took over
	}
	next := make(map[string]*pluginapi.Device, len(told))
	changed := sets.New[string]()
	for _, d := range told {
		if before := r.devices[d.GetID()]; before == nil || before.GetHealth() != d.GetHealth() {
			changed.Insert(d.GetID())
		}
		next[d.GetID()] = d
	}
	for id := range r.devices {
		if next[id] == nil {
			changed.Insert(id)
		}
	}
	r.devices = next
	affected := p.podsWith(from.resource, changed.Has)
	p.mu.Unlock()
	p.saveAndTell(affected)
}

// podsWith are the pods that have one of the resource's devices.
func (p *Plugins) podsWith(resource string, device func(id string) bool) []string {
	var uids []string
	for uid, pod := range p.pods {
		for _, container := range pod {
			if slices.ContainsFunc(container[resource].devices.ids().UnsortedList(), device) {
				uids = append(uids, uid)
				break
			}
		}
	}
	slices.Sort(uids)
	return uids
}

func (p *Plugins) saveAndTell(podUIDs []string) {
	if err := p.save(); err != nil {
		p.config.Log.Warn("what devices there are could not be saved", "error", err)
	}
	if p.config.CapacityChanged != nil {
		p.config.CapacityChanged()
	}
	if len(podUIDs) > 0 && p.config.HealthChanged != nil {
		p.config.HealthChanged(podUIDs)
	}
}
