package dra

import (
	"encoding/json"
	"fmt"
	"hash/crc32"
	"maps"
	"path/filepath"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/sets"

	"github.com/berth-io/berth/agent/resources/statefile"
)

// claim is one ResourceClaim that pods of this node use; its fields have the
// kubelet's names (kubelet: cm/dra/state/state.go). It is not changed.
type claim struct {
	ClaimUID  types.UID
	ClaimName string
	Namespace string
	PodUIDs   sets.Set[string]
	// DriverState has every driver that gave a device, with the devices once they
	// are prepared.
	DriverState map[string]driverState

	// prepared: by drivers that this agent has asked. They are asked again after a
	// restart, when a pod that uses the claim starts.
	prepared bool
}

type driverState struct {
	Devices []device
}

// device is how its driver described it.
type device struct {
	PoolName     string
	DeviceName   string
	ShareID      *types.UID
	RequestNames []string
	CDIDeviceIDs []string
}

func (i *claim) key() string { return keyOf(i.Namespace, i.ClaimName) }

// inUse tells whether drivers hold the claim's devices ready. After a restart
// that is known of devices only.
func (i *claim) inUse() bool {
	if i.prepared {
		return true
	}
	for _, state := range i.DriverState {
		if len(state.Devices) > 0 {
			return true
		}
	}
	return false
}

// with is the claim with other pods.
func (i *claim) with(pods sets.Set[string]) *claim {
	next := *i
	next.PodUIDs = pods
	return &next
}

// checkpoint is the file's format (kubelet: cm/dra/state/checkpoint.go).
type checkpoint struct {
	Data     string
	Checksum uint32
}

type checkpointData struct {
	metav1.TypeMeta
	ClaimInfoStateList []*claim
}

var checkpointType = metav1.TypeMeta{Kind: "DRACheckpoint", APIVersion: "checkpoint.dra.kubelet.k8s.io/v1"}

func (c *Claims) file() string { return filepath.Join(c.config.Dir, "dra_manager_state") }

func save(path string, claims map[string]*claim) error {
	data := checkpointData{TypeMeta: checkpointType, ClaimInfoStateList: []*claim{}}
	for _, key := range slices.Sorted(maps.Keys(claims)) {
		data.ClaimInfoStateList = append(data.ClaimInfoStateList, claims[key])
	}
	content, err := json.Marshal(data)
	if err != nil {
		return fmt.Errorf("encode %s: %w", path, err)
	}
	return statefile.Write(path, checkpoint{Data: string(content), Checksum: crc32.ChecksumIEEE(content)})
}

// load reads the file; there are no claims where there is none.
func load(path string) (map[string]*claim, error) {
	claims := map[string]*claim{}
	content, err := statefile.Read(path)
	if err != nil || content == nil {
		return claims, err
	}
	var file checkpoint
	if err := json.Unmarshal(content, &file); err != nil {
		return nil, err
	}
	if sum := crc32.ChecksumIEEE([]byte(file.Data)); sum != file.Checksum {
		return nil, &statefile.CorruptError{Actual: uint64(sum), Expected: uint64(file.Checksum)}
	}
	var data checkpointData
	if err := json.Unmarshal([]byte(file.Data), &data); err != nil {
		return nil, err
	}
	for n, info := range data.ClaimInfoStateList {
		if info == nil || info.ClaimName == "" || info.Namespace == "" {
			return nil, fmt.Errorf("ClaimInfoStateList[%d]: a claim without name or namespace", n)
		}
		claims[info.key()] = info
	}
	return claims, nil
}
