// Package dradriver is a DRA driver for tests, in the test's process. It has
// devices that are no more than an environment variable: DEVICE_REQUEST=NAME, with
// the request's name in capitals, which a CDI file gives to containers.
package dradriver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	resourceapi "k8s.io/api/resource/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	drapb "k8s.io/kubelet/pkg/apis/dra/v1"
	registerapi "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

// Config of a Driver.
type Config struct {
	// Name is a DNS name. The vendor of its CDI devices is the same.
	Name string
	// Node is the node's name, KubeletDir its agent's directory, and CDIDir where
	// its runtime looks for CDI files.
	Node, KubeletDir, CDIDir string
	// Devices are the names of the node's devices.
	Devices []string
	Client  kubernetes.Interface
}

// Driver is a driver's plugin on one node.
type Driver struct {
	drapb.UnimplementedDRAPluginServer
	config   Config
	server   *grpc.Server
	endpoint string
	register string // the socket where it registers

	mu         sync.Mutex
	registered int
	refused    string
	calls      []string
}

// Start publishes the devices, and offers the plugin to the node's agent.
func Start(ctx context.Context, config Config) (*Driver, error) {
	dir, err := os.MkdirTemp("", "dra") // short, as paths of sockets have to be
	if err != nil {
		return nil, err
	}
	d := &Driver{
		config: config, server: grpc.NewServer(),
		endpoint: filepath.Join(dir, "dra.sock"),
		register: filepath.Join(config.KubeletDir, "plugins_registry", config.Name+"-reg.sock"),
	}
	drapb.RegisterDRAPluginServer(d.server, d)
	registerapi.RegisterRegistrationServer(d.server, registrar{driver: d})
	if err := errors.Join(d.Publish(ctx), os.MkdirAll(config.CDIDir, 0o755)); err != nil {
		return nil, errors.Join(err, d.Stop())
	}
	for _, socket := range []string{d.endpoint, d.register} {
		listener, err := net.Listen("unix", socket)
		if err != nil {
			return nil, errors.Join(err, d.Stop())
		}
		go func() { _ = d.server.Serve(listener) }() // ends with Stop
	}
	return d, nil
}

// Stop takes the plugin away. Its ResourceSlice and CDI files stay. It may be
// called again.
func (d *Driver) Stop() error {
	d.server.Stop()
	return os.RemoveAll(filepath.Dir(d.endpoint))
}

func (d *Driver) sliceName() string { return d.config.Node + "-" + d.config.Name }

// Publish makes the node's ResourceSlice unless it is there.
func (d *Driver) Publish(ctx context.Context) error {
	slice := &resourceapi.ResourceSlice{ObjectMeta: metav1.ObjectMeta{Name: d.sliceName()}, Spec: resourceapi.ResourceSliceSpec{
		Driver: d.config.Name, NodeName: &d.config.Node,
		Pool: resourceapi.ResourcePool{Name: d.config.Node, Generation: 1, ResourceSliceCount: 1},
	}}
	for _, name := range d.config.Devices {
		slice.Spec.Devices = append(slice.Spec.Devices, resourceapi.Device{Name: name})
	}
	_, err := d.config.Client.ResourceV1().ResourceSlices().Create(ctx, slice, metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("publish the devices of %s: %w", d.config.Name, err)
	}
	return nil
}

// Published tells whether the node's ResourceSlice is there.
func (d *Driver) Published(ctx context.Context) (bool, error) {
	_, err := d.config.Client.ResourceV1().ResourceSlices().Get(ctx, d.sliceName(), metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	return err == nil, err
}

// Registered is how often the agent has registered the plugin, and why not, the
// last time that it was refused.
func (d *Driver) Registered() (times int, refused string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.registered, d.refused
}

// Calls are "prepare NAMESPACE/NAME" and "unprepare NAMESPACE/NAME" for each claim,
// in order.
func (d *Driver) Calls() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.calls)
}

func (d *Driver) called(what string, claim *drapb.Claim) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.calls = append(d.calls, what+" "+claim.GetNamespace()+"/"+claim.GetName())
}

// CDIFiles are those of claims that are prepared.
func (d *Driver) CDIFiles() ([]string, error) {
	return filepath.Glob(filepath.Join(d.config.CDIDir, d.config.Name+"-*.json"))
}

func (d *Driver) cdiFile(claimUID string) string {
	return filepath.Join(d.config.CDIDir, d.config.Name+"-"+claimUID+".json")
}

// NodePrepareResources writes a CDI file for each claim.
func (d *Driver) NodePrepareResources(ctx context.Context, request *drapb.NodePrepareResourcesRequest) (*drapb.NodePrepareResourcesResponse, error) {
	answer := &drapb.NodePrepareResourcesResponse{Claims: map[string]*drapb.NodePrepareResourceResponse{}}
	for _, claim := range request.GetClaims() {
		d.called("prepare", claim)
		devices, err := d.prepare(ctx, claim)
		if err != nil {
			answer.Claims[claim.GetUid()] = &drapb.NodePrepareResourceResponse{Error: err.Error()}
			continue
		}
		answer.Claims[claim.GetUid()] = &drapb.NodePrepareResourceResponse{Devices: devices}
	}
	return answer, nil
}

type edits struct {
	Env []string `json:"env"`
}

type cdiDevice struct {
	Name           string `json:"name"`
	ContainerEdits edits  `json:"containerEdits"`
}

type cdiFile struct {
	Version string      `json:"cdiVersion"`
	Kind    string      `json:"kind"`
	Devices []cdiDevice `json:"devices"`
}

func (d *Driver) prepare(ctx context.Context, claim *drapb.Claim) ([]*drapb.Device, error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	object, err := d.config.Client.ResourceV1().ResourceClaims(claim.GetNamespace()).Get(ctx, claim.GetName(), metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	file := cdiFile{Version: "0.6.0", Kind: d.config.Name + "/device"}
	var devices []*drapb.Device
	for _, result := range object.Status.Allocation.Devices.Results {
		if result.Driver != d.config.Name {
			continue
		}
		name := claim.GetUid() + "-" + result.Request
		variable := "DEVICE_" + strings.ToUpper(strings.ReplaceAll(result.Request, "-", "_"))
		file.Devices = append(file.Devices, cdiDevice{Name: name, ContainerEdits: edits{Env: []string{variable + "=" + result.Device}}})
		devices = append(devices, &drapb.Device{
			PoolName: result.Pool, DeviceName: result.Device, RequestNames: []string{result.Request},
			CdiDeviceIds: []string{file.Kind + "=" + name},
		})
	}
	content, err := json.Marshal(file)
	if err != nil {
		return nil, err
	}
	return devices, os.WriteFile(d.cdiFile(claim.GetUid()), content, 0o644)
}

// NodeUnprepareResources removes the claims' CDI files.
func (d *Driver) NodeUnprepareResources(_ context.Context, request *drapb.NodeUnprepareResourcesRequest) (*drapb.NodeUnprepareResourcesResponse, error) {
	answer := &drapb.NodeUnprepareResourcesResponse{Claims: map[string]*drapb.NodeUnprepareResourceResponse{}}
	for _, claim := range request.GetClaims() {
		d.called("unprepare", claim)
		answer.Claims[claim.GetUid()] = &drapb.NodeUnprepareResourceResponse{}
		if err := os.RemoveAll(d.cdiFile(claim.GetUid())); err != nil {
			answer.Claims[claim.GetUid()].Error = err.Error()
		}
	}
	return answer, nil
}

// registrar answers the agent's questions when it finds the plugin.
type registrar struct {
	registerapi.UnimplementedRegistrationServer
	driver *Driver
}

// GetInfo says what the plugin is.
func (r registrar) GetInfo(context.Context, *registerapi.InfoRequest) (*registerapi.PluginInfo, error) {
	return &registerapi.PluginInfo{
		Type: registerapi.DRAPlugin, Name: r.driver.config.Name, Endpoint: r.driver.endpoint, SupportedVersions: []string{drapb.DRAPluginService},
	}, nil
}

// NotifyRegistrationStatus takes in what the agent made of it.
func (r registrar) NotifyRegistrationStatus(_ context.Context, s *registerapi.RegistrationStatus) (*registerapi.RegistrationStatusResponse, error) {
	r.driver.mu.Lock()
	defer r.driver.mu.Unlock()
	if s.GetPluginRegistered() {
		r.driver.registered++
	} else {
		r.driver.refused = s.GetError()
	}
	return &registerapi.RegistrationStatusResponse{}, nil
}
