package dra

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	v1 "k8s.io/api/core/v1"
	resourceapi "k8s.io/api/resource/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/dynamic-resource-allocation/resourceclaim"
	drapb "k8s.io/kubelet/pkg/apis/dra/v1"

	"github.com/berth-io/berth/internal/failpoint"
)

// fetchTimeout bounds one question to the API server.
const fetchTimeout = 30 * time.Second

// Prepare has the drivers prepare all claims of the pod. It is called before the
// pod's sandbox is made, again with each new sandbox. Nothing is kept of a pod that
// cannot use its claims: it can be deleted without a driver. Errors are the
// kubelet's (cm/dra/manager.go, PrepareResources).
func (c *Claims) Prepare(ctx context.Context, pod *v1.Pod) error {
	began := time.Now()
	err := c.prepare(ctx, pod)
	c.metrics.operation("PrepareResources", began, err)
	if err != nil {
		return fmt.Errorf("prepare dynamic resources: %w", err)
	}
	return nil
}

func (c *Claims) prepare(ctx context.Context, pod *v1.Pod) error {
	want, err := c.resolve(ctx, pod)
	if err != nil || len(want) == 0 {
		return err
	}
	keys := slices.Sorted(maps.Keys(want))
	release, err := c.hold(ctx, keys)
	if err != nil {
		return err
	}
	defer release()
	if err := c.refer(string(pod.UID), want); err != nil {
		return err
	}
	failpoint.Hit("agent/claims-referred")
	prepared, err := c.ask(ctx, keys)
	if err != nil || len(prepared) == 0 {
		return err
	}
	failpoint.Hit("agent/claims-prepared")
	err = c.change(func(claims map[string]*claim) {
		for key, states := range prepared {
			next := *claims[key]
			next.DriverState, next.prepared = states, true
			claims[key] = &next
		}
	})
	if err != nil {
		return fmt.Errorf("checkpoint ResourceClaim state: %w", err)
	}
	failpoint.Hit("agent/prepared-recorded")
	return nil
}

// resolve finds the pod's claims as the API server has them, by namespace/name,
// and checks that the pod may use them and that their drivers are there. A driver
// that is not is an error even for a claim that is prepared: something is wrong with
// the node.
func (c *Claims) resolve(ctx context.Context, pod *v1.Pod) (map[string]*claim, error) {
	want := map[string]*claim{}
	list := podClaims(pod)
	for i := range list {
		name, mustCheckOwner, err := resourceclaim.Name(pod, &list[i])
		if err != nil {
			return nil, err
		}
		if name == nil {
			continue // none was needed
		}
		found, err := c.fetch(ctx, pod.Namespace, *name)
		if err != nil {
			return nil, fmt.Errorf("fetch ResourceClaim %s: %w", *name, err)
		}
		if mustCheckOwner {
			if err := resourceclaim.IsForPod(pod, found, false); err != nil {
				return nil, err
			}
		}
		if !resourceclaim.IsReservedForPod(pod, found, false) {
			return nil, fmt.Errorf("pod %s (%s) is not allowed to use ResourceClaim %s (%s)", pod.Name, pod.UID, *name, found.UID)
		}
		info, err := newClaim(found)
		if err != nil {
			return nil, fmt.Errorf("ResourceClaim %s: %w", found.Name, err)
		}
		for _, driver := range slices.Sorted(maps.Keys(info.DriverState)) {
			if _, err := c.drivers.get(driver); err != nil {
				return nil, err
			}
		}
		want[info.key()] = info
	}
	return want, nil
}

func (c *Claims) fetch(ctx context.Context, namespace, name string) (*resourceapi.ResourceClaim, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, fetchTimeout, fmt.Errorf("the API server did not answer within %s", fetchTimeout))
	defer cancel()
	found, err := c.config.Client.ResourceClaims(namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil && ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	return found, err
}

// newClaim is a claim that no pod uses yet.
func newClaim(from *resourceapi.ResourceClaim) (*claim, error) {
	if from.Status.Allocation == nil {
		return nil, errors.New("not allocated")
	}
	info := &claim{ClaimUID: from.UID, ClaimName: from.Name, Namespace: from.Namespace, PodUIDs: sets.New[string](), DriverState: map[string]driverState{}}
	for _, result := range from.Status.Allocation.Devices.Results {
		info.DriverState[result.Driver] = driverState{}
	}
	return info, nil
}

// refer writes that the pod uses the claims, before any driver is asked: whoever
// finds it has the claims unprepared.
func (c *Claims) refer(podUID string, want map[string]*claim) error {
	known, news := c.current(), false
	for key, info := range want {
		old := known[key]
		if old != nil && old.ClaimUID != info.ClaimUID {
			return fmt.Errorf("old ResourceClaim with same name %s and different UID %s still exists (previous pod force-deleted?!)", info.ClaimName, old.ClaimUID)
		}
		news = news || old == nil || !old.PodUIDs.Has(podUID)
	}
	if !news {
		return nil
	}
	err := c.change(func(claims map[string]*claim) {
		for key, info := range want {
			if old := claims[key]; old != nil {
				info = old
			}
			claims[key] = info.with(info.PodUIDs.Clone().Insert(podUID))
		}
	})
	if err != nil {
		return fmt.Errorf("checkpoint ResourceClaim cache: %w", err)
	}
	return nil
}

// ask has each driver prepare those of the claims that are not, in one call, and
// returns what they said by the claims' keys.
func (c *Claims) ask(ctx context.Context, keys []string) (map[string]map[string]driverState, error) {
	known := c.current()
	prepared := map[string]map[string]driverState{}
	batches := map[string]batch{}
	for _, key := range keys {
		if info := known[key]; !info.prepared {
			prepared[key] = map[string]driverState{}
			addTo(batches, info)
		}
	}
	for _, driver := range slices.Sorted(maps.Keys(batches)) {
		b := batches[driver]
		to, err := c.drivers.get(driver)
		if err != nil {
			return nil, err
		}
		answer, err := to.prepare(ctx, &drapb.NodePrepareResourcesRequest{Claims: b.claims})
		if err != nil {
			return nil, fmt.Errorf("NodePrepareResources: %w", err)
		}
		if err := check(b, "NodePrepareResources", answer.GetClaims()); err != nil {
			return nil, err
		}
		for uid, result := range answer.GetClaims() {
			prepared[b.keys[uid]][driver] = driverState{Devices: devicesOf(result)}
		}
	}
	return prepared, nil
}

func devicesOf(result *drapb.NodePrepareResourceResponse) []device {
	var devices []device
	for _, d := range result.GetDevices() {
		devices = append(devices, device{
			PoolName: d.GetPoolName(), DeviceName: d.GetDeviceName(), ShareID: (*types.UID)(d.ShareId),
			RequestNames: d.GetRequestNames(), CDIDeviceIDs: d.GetCdiDeviceIds(),
		})
	}
	return devices
}

// batch is what one driver is asked for at once.
type batch struct {
	claims []*drapb.Claim
	keys   map[string]string // namespace/name by the claim's UID
}

// addTo adds a claim to the batch of each of its drivers.
func addTo(batches map[string]batch, info *claim) {
	request := &drapb.Claim{Namespace: info.Namespace, Uid: string(info.ClaimUID), Name: info.ClaimName}
	for driver := range info.DriverState {
		b := batches[driver]
		if b.keys == nil {
			b.keys = map[string]string{}
		}
		b.claims = append(b.claims, request)
		b.keys[request.GetUid()] = info.key()
		batches[driver] = b
	}
}

// check says what is wrong with a driver's answer, if anything is.
func check[R interface{ GetError() string }](b batch, call string, results map[string]R) error {
	for _, uid := range slices.Sorted(maps.Keys(results)) {
		at := slices.IndexFunc(b.claims, func(claim *drapb.Claim) bool { return claim.GetUid() == uid })
		if at < 0 {
			return fmt.Errorf("%s returned result for unknown claim UID %s", call, uid)
		}
		if text := results[uid].GetError(); text != "" {
			return fmt.Errorf("%s failed for ResourceClaim %s: %s", call, b.claims[at].GetName(), text)
		}
	}
	if unfinished := len(b.claims) - len(results); unfinished != 0 {
		return fmt.Errorf("%s skipped %d ResourceClaims", call, unfinished)
	}
	return nil
}
