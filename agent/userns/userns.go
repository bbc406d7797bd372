// Package userns gives each pod with a user namespace user and group IDs of the
// host that no other pod has, by the kubelet's rules and in its files:
// KUBELET/pods/UID/userns. The files are all it keeps; a pod's IDs are free
// again when its directory is gone.
package userns

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/moby/sys/atomicwriter"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	// Block is how many IDs a pod gets unless it is configured otherwise, and
	// what every number of IDs is a multiple of.
	Block = 65536
	// file is the name that the kubelet uses.
	file = "userns"
)

// Range is where the IDs of pods are taken from.
type Range struct {
	First uint32 // a multiple of Block, and not 0
	Last  uint32 // the last ID
}

// Default is the kubelet's where nothing is configured: all but the first
// block, which is the host's own users', and the last, which has an ID that
// means none.
var Default = Range{First: Block, Last: math.MaxUint32 - Block}

// Allocator hands out blocks of a range. A block starts at a multiple of its
// length.
type Allocator struct {
	pods   string
	length uint32
	find   func(context.Context) (Range, error)

	mu sync.Mutex // of who looks for a block and takes it
}

// New returns an Allocator for the pods with directories below podsDir, with
// blocks of idsPerPod (userNamespaces.idsPerPod): a multiple of Block; zero:
// Block. Pods that have a block of another length keep it. find is asked for the
// range when a pod needs a block.
func New(podsDir string, idsPerPod uint32, find func(context.Context) (Range, error)) *Allocator {
	if idsPerPod == 0 {
		idsPerPod = Block
	}
	return &Allocator{pods: podsDir, length: idsPerPod, find: find}
}

// mappings is the content of the file.
type mappings struct {
	UIDs []mapping `json:"uidMappings"`
	GIDs []mapping `json:"gidMappings"`
}

type mapping struct {
	HostID      uint32 `json:"hostId"`
	ContainerID uint32 `json:"containerId"`
	Length      uint32 `json:"length"`
}

// Of returns a pod's user namespace, always the same one. The pod's directory
// must be there.
func (a *Allocator) Of(ctx context.Context, podUID string) (*runtimeapi.UserNamespace, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	has, err := a.read(podUID)
	if errors.Is(err, fs.ErrNotExist) {
		has, err = a.allocate(ctx, podUID)
	}
	if err != nil {
		return nil, err
	}
	one := []*runtimeapi.IDMapping{{HostId: has.HostID, ContainerId: 0, Length: has.Length}}
	return &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_POD, Uids: one, Gids: one}, nil
}

func (a *Allocator) allocate(ctx context.Context, podUID string) (mapping, error) {
	within, err := a.find(ctx)
	if err != nil {
		return mapping{}, fmt.Errorf("find the IDs that pods may have: %w", err)
	}
	taken, err := a.taken()
	if err != nil {
		return mapping{}, err
	}
	length := uint64(a.length)
	for first := max((uint64(within.First)+length-1)/length, 1) * length; first+length-1 <= uint64(within.Last); first += length {
		block := mapping{HostID: uint32(first), Length: a.length}
		if !slices.ContainsFunc(taken, block.overlaps) {
			return block, a.write(podUID, block)
		}
	}
	return mapping{}, fmt.Errorf("all user and group IDs that pods may have, from %d to %d, are taken by %d pods", within.First, within.Last, len(taken))
}

func (m mapping) overlaps(o mapping) bool {
	return uint64(m.HostID) < uint64(o.HostID)+uint64(o.Length) && uint64(o.HostID) < uint64(m.HostID)+uint64(m.Length)
}

// taken are the blocks that pods have. A file that says nothing fails it: two
// pods with the same IDs are worse than one that waits.
func (a *Allocator) taken() ([]mapping, error) {
	entries, err := os.ReadDir(a.pods)
	if err != nil {
		return nil, fmt.Errorf("read the pods' directories: %w", err)
	}
	var taken []mapping
	for _, e := range entries {
		block, err := a.read(e.Name())
		switch {
		case err == nil:
			taken = append(taken, block)
		case !errors.Is(err, fs.ErrNotExist):
			return nil, fmt.Errorf("%w (remove the file once that pod is gone)", err)
		}
	}
	return taken, nil
}

func (a *Allocator) path(podUID string) string { return filepath.Join(a.pods, podUID, file) }

func (a *Allocator) read(podUID string) (mapping, error) {
	data, err := os.ReadFile(a.path(podUID))
	if err != nil {
		return mapping{}, fmt.Errorf("read the IDs of pod %s: %w", podUID, err)
	}
	var m mappings
	if err := json.Unmarshal(data, &m); err != nil {
		return mapping{}, fmt.Errorf("parse %s: %w", a.path(podUID), err)
	}
	if len(m.UIDs) != 1 || len(m.GIDs) != 1 || m.UIDs[0] != m.GIDs[0] {
		return mapping{}, fmt.Errorf("%s: it must have one mapping, the same for users and groups", a.path(podUID))
	}
	one := m.UIDs[0]
	if one.ContainerID != 0 || one.Length == 0 || one.Length%Block != 0 || one.HostID%one.Length != 0 || one.HostID == 0 {
		return mapping{}, fmt.Errorf("%s: %d IDs from %d as %d: it must be a multiple of %d, from a multiple of itself on, as 0", a.path(podUID), one.Length, one.HostID, one.ContainerID, Block)
	}
	return one, nil
}

func (a *Allocator) write(podUID string, block mapping) error {
	one := []mapping{block}
	data, err := json.Marshal(mappings{UIDs: one, GIDs: one})
	if err != nil {
		return fmt.Errorf("encode the IDs of pod %s: %w", podUID, err)
	}
	if err := atomicwriter.WriteFile(a.path(podUID), data, 0o644); err != nil {
		return fmt.Errorf("write the IDs of pod %s: %w", podUID, err)
	}
	return nil
}
