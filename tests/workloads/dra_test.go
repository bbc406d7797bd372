package workloads

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	podresourcesapi "k8s.io/kubelet/pkg/apis/podresources/v1"

	"github.com/berth-io/berth/tests/cluster"
	"github.com/berth-io/berth/tests/dradriver"
)

// dra is a node with a DRA driver.
type dra struct {
	*space
	node   *cluster.Node
	driver *dradriver.Driver
	config dradriver.Config
}

// newDRA starts a driver of that name, which is short: sockets are named after it.
func newDRA(t *testing.T, name string) *dra {
	t.Helper()
	if shared == nil {
		t.Skip(without)
	}
	d := &dra{space: makeSpace(t), node: shared.Nodes[0]}
	d.config = dradriver.Config{
		Name: name, Node: d.node.Name, KubeletDir: d.node.KubeletDir(), CDIDir: "/var/run/cdi",
		Devices: []string{"red", "green", "blue"}, Client: shared.Client,
	}
	d.start()
	t.Cleanup(func() {
		// The pods need it until they have gone.
		if out, err := shared.Kubectl(context.Background(), "-n", d.ns, "delete", "pods", "--all", "--force", wait); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
		d.eventually(func() error {
			files, err := d.driver.CDIFiles()
			if err == nil && len(files) > 0 {
				err = fmt.Errorf("claims are prepared still: %q", files)
			}
			return err
		})
		d.stop()
		if out, err := shared.Kubectl(context.Background(), "delete", "--ignore-not-found", "deviceclass/"+d.ns, "resourceslice/"+d.node.Name+"-"+d.config.Name); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
	})
	d.apply(`{apiVersion: resource.k8s.io/v1, kind: DeviceClass, metadata: {name: ` + d.ns + `},
		spec: {selectors: [{cel: {expression: "device.driver == '` + d.config.Name + `'"}}]}}`)
	return d
}

// start starts the driver, which is registered then.
func (d *dra) start() {
	d.t.Helper()
	var err error
	if d.driver, err = dradriver.Start(d.ctx, d.config); err != nil {
		d.t.Fatal(err)
	}
	d.registered(1)
}

func (d *dra) registered(times int) {
	d.t.Helper()
	d.eventually(func() error {
		got, refused := d.driver.Registered()
		if got < times {
			return fmt.Errorf("the driver is registered %d times, refused with %q", got, refused)
		}
		return nil
	})
}

func (d *dra) stop() {
	d.t.Helper()
	if err := d.driver.Stop(); err != nil {
		d.t.Error(err)
	}
}

// restart kills the node's agent and starts it again, with something done in
// between.
func (d *dra) restart(between func()) {
	d.t.Helper()
	if err := d.node.Stop(syscall.SIGKILL); err != nil {
		d.t.Fatal(err)
	}
	times, _ := d.driver.Registered()
	between()
	if err := d.node.Start(); err != nil {
		d.t.Fatal(err)
	}
	if err := d.node.WaitReady(d.ctx); err != nil {
		d.t.Fatal(err)
	}
	d.registered(times + 1)
}

// request is the specification of a claim for one device.
func (d *dra) request(names ...string) string {
	var list []string
	for _, name := range names {
		list = append(list, "{name: "+name+", exactly: {deviceClassName: "+d.ns+"}}")
	}
	return "{devices: {requests: [" + strings.Join(list, ", ") + "]}}"
}

func (d *dra) claim(name string, requests ...string) {
	d.t.Helper()
	d.apply("{apiVersion: resource.k8s.io/v1, kind: ResourceClaim, metadata: {name: " + name + "}, spec: " + d.request(requests...) + "}")
}

func (d *dra) template(name string, requests ...string) {
	d.t.Helper()
	d.apply("{apiVersion: resource.k8s.io/v1, kind: ResourceClaimTemplate, metadata: {name: " + name + "}, spec: {spec: " + d.request(requests...) + "}}")
}

// calls waits for what the driver was asked for since the first n calls.
func (d *dra) calls(n int, want ...string) {
	d.t.Helper()
	d.eventually(func() error {
		var got []string
		for _, call := range d.driver.Calls()[n:] {
			got = append(got, strings.ReplaceAll(call, d.ns+"/", ""))
		}
		if slices.Sort(got); !slices.Equal(got, want) {
			return fmt.Errorf("the driver was asked for %q, want %q", got, want)
		}
		return nil
	})
}

// Not beside other tests: the agent is killed.
func TestPodsGetTheDevicesOfTheirClaims(t *testing.T) {
	d := newDRA(t, "devices.berth.test")
	d.claim("own", "one", "two")
	d.template("each", "one")
	d.create("direct", `resourceClaims: [{name: devices, resourceClaimName: own}]`,
		`containers: [{name: box, image: $BOX, resources: {claims: [{name: devices}]}},
			{name: half, image: $BOX, resources: {claims: [{name: devices, request: two}]}},
			{name: none, image: $BOX}]`)
	d.create("generated", `resourceClaims: [{name: device, resourceClaimTemplateName: each}]`,
		`containers: [{name: box, image: $BOX, resources: {claims: [{name: device}]}}]`)
	d.ready("pod/direct", "pod/generated")
	generated := d.get("pod/generated", ".status.resourceClaimStatuses[0].resourceClaimName")

	env := func(pod, container, name string) string {
		return d.kubectl("exec", pod, "-c", container, "--", "sh", "-c", "echo $"+name)
	}
	device := func(claim, request string) string {
		return d.get("resourceclaim/"+claim, `.status.allocation.devices.results[?(@.request=="`+request+`")].device`)
	}
	check := func(when string) {
		t.Helper()
		equal(t, when+": the first device", env("direct", "box", "DEVICE_ONE"), device("own", "one"))
		equal(t, when+": the second device", env("direct", "box", "DEVICE_TWO"), device("own", "two"))
		equal(t, when+": the first device, not asked for", env("direct", "half", "DEVICE_ONE"), "")
		equal(t, when+": one device of two", env("direct", "half", "DEVICE_TWO"), device("own", "two"))
		equal(t, when+": no device asked for", env("direct", "none", "DEVICE_ONE"), "")
		equal(t, when+": the device of the claim from a template", env("generated", "box", "DEVICE_ONE"), device(generated, "one"))
	}
	check("at first")
	d.calls(0, "prepare "+generated, "prepare own")
	equal(t, "devices in the PodResources API", d.podResources("direct"), "box: own red|green|blue half: own red|green|blue none:")

	d.restart(func() {})
	check("after a restart of the agent")
	_, _ = d.try("exec", "direct", "-c", "half", "--", "sh", "-c", "kill 1") // it may be cut off
	d.want("pod/direct", `.status.containerStatuses[?(@.name=="half")].restartCount`, "1")
	d.ready("pod/direct")
	check("after a restart of a container")
	d.calls(0, "prepare "+generated, "prepare own")

	d.kubectl("delete", "pod", "generated", wait)
	d.calls(2, "unprepare "+generated)
	d.restart(func() { // its pod goes while no agent runs
		d.kubectl("delete", "pod", "direct", "--force", wait)
	})
	d.calls(3, "unprepare own")
	d.want("resourceclaim/own", ".status", "{}")
}

// podResources is what the node's PodResources API says of a pod's claims. Names
// of devices that there are become "red|green|blue".
func (d *dra) podResources(pod string) string {
	d.t.Helper()
	conn, err := grpc.NewClient("unix://"+filepath.Join(d.node.KubeletDir(), "pod-resources", "kubelet.sock"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		d.t.Fatal(err)
	}
	defer conn.Close()
	answer, err := podresourcesapi.NewPodResourcesListerClient(conn).Get(d.ctx, &podresourcesapi.GetPodResourcesRequest{PodName: pod, PodNamespace: d.ns})
	if err != nil {
		d.t.Fatal(err)
	}
	var out []string
	for _, c := range answer.GetPodResources().GetContainers() {
		out = append(out, c.GetName()+":")
		for _, claim := range c.GetDynamicResources() {
			names := map[bool]int{}
			for _, r := range claim.GetClaimResources() {
				names[slices.Contains(d.config.Devices, r.GetDeviceName()) && r.GetDriverName() == d.config.Name && len(r.GetCdiDevices()) == 1]++
			}
			if names[true] == 2 && names[false] == 0 {
				out = append(out, claim.GetClaimName()+" "+strings.Join(d.config.Devices, "|"))
			}
		}
	}
	return strings.Join(out, " ")
}

func TestAPodWaitsForItsDriverAndSlicesOfOneThatIsGoneAreRemoved(t *testing.T) {
	d := newDRA(t, "away.berth.test")
	d.claim("own", "one")
	d.stop()
	d.create("waits", `restartPolicy: Never`, `resourceClaims: [{name: device, resourceClaimName: own}]`,
		`containers: [{name: box, image: $BOX, command: [sh, -c, "test -n \"$DEVICE_ONE\""], resources: {claims: [{name: device}]}}]`)
	d.event("Pod/waits", "FailedPrepareDynamicResources",
		"Failed to prepare dynamic resources: prepare dynamic resources: DRA driver "+d.config.Name+" is not registered")
	d.start()
	d.want("pod/waits", ".status.phase", "Succeeded")
	d.calls(0, "prepare own", "unprepare own")
	d.stop()
	left := time.Now()
	d.eventually(func() error {
		published, err := d.driver.Published(d.ctx)
		if err == nil && published {
			err = fmt.Errorf("the ResourceSlice is there %s after the driver has gone", time.Since(left))
		}
		return err
	})
	if waited := time.Since(left); waited < 25*time.Second {
		t.Errorf("the ResourceSlice went %s after the driver", waited)
	}
	d.start() // for the clean-up
}
