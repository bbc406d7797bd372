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
	"sync"

	"github.com/moby/sys/atomicwriter"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	// Block is how many IDs a pod gets. A block starts at a multiple of it.
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

// Allocator hands out blocks of a range.
type Allocator struct {
	pods string
	find func(context.Context) (Range, error)

	mu sync.Mutex // of who looks for a block and takes it
}

// New returns an Allocator for the pods with directories below podsDir. find
// is asked for the range when a pod needs a block.
func New(podsDir string, find func(context.Context) (Range, error)) *Allocator {
	return &Allocator{pods: podsDir, find: find}
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
	first, err := a.read(podUID)
	if errors.Is(err, fs.ErrNotExist) {
		first, err = a.allocate(ctx, podUID)
	}
	if err != nil {
		return nil, err
	}
	one := []*runtimeapi.IDMapping{{HostId: first, ContainerId: 0, Length: Block}}
	return &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_POD, Uids: one, Gids: one}, nil
}

func (a *Allocator) allocate(ctx context.Context, podUID string) (uint32, error) {
	within, err := a.find(ctx)
	if err != nil {
		return 0, fmt.Errorf("find the IDs that pods may have: %w", err)
	}
	taken, err := a.taken()
	if err != nil {
		return 0, err
	}
	for first := uint64(within.First); first+Block-1 <= uint64(within.Last); first += Block {
		if !taken[uint32(first)] {
			return uint32(first), a.write(podUID, uint32(first))
		}
	}
	return 0, fmt.Errorf("all user and group IDs that pods may have, from %d to %d, are taken by %d pods", within.First, within.Last, len(taken))
}

// taken has the first IDs of the blocks that pods have. A file that says
// nothing fails it: two pods with the same IDs are worse than one that waits.
func (a *Allocator) taken() (map[uint32]bool, error) {
	entries, err := os.ReadDir(a.pods)
	if err != nil {
		return nil, fmt.Errorf("read the pods' directories: %w", err)
	}
	taken := map[uint32]bool{}
	for _, e := range entries {
		first, err := a.read(e.Name())
		switch {
		case err == nil:
			taken[first] = true
		case !errors.Is(err, fs.ErrNotExist):
			return nil, fmt.Errorf("%w (remove the file once that pod is gone)", err)
		}
	}
	return taken, nil
}

func (a *Allocator) path(podUID string) string { return filepath.Join(a.pods, podUID, file) }

func (a *Allocator) read(podUID string) (first uint32, err error) {
	data, err := os.ReadFile(a.path(podUID))
	if err != nil {
		return 0, fmt.Errorf("read the IDs of pod %s: %w", podUID, err)
	}
	var m mappings
	if err := json.Unmarshal(data, &m); err != nil {
		return 0, fmt.Errorf("parse %s: %w", a.path(podUID), err)
	}
	if len(m.UIDs) != 1 || len(m.GIDs) != 1 || m.UIDs[0] != m.GIDs[0] {
		return 0, fmt.Errorf("%s: it must have one mapping, the same for users and groups", a.path(podUID))
	}
	one := m.UIDs[0]
	if one.ContainerID != 0 || one.Length != Block || one.HostID%Block != 0 || one.HostID == 0 {
		return 0, fmt.Errorf("%s: %d IDs from %d as %d: it must be %d, from a multiple of that on, as 0", a.path(podUID), one.Length, one.HostID, one.ContainerID, Block)
	}
	return one.HostID, nil
}

func (a *Allocator) write(podUID string, first uint32) error {
	one := []mapping{{HostID: first, Length: Block}}
	data, err := json.Marshal(mappings{UIDs: one, GIDs: one})
	if err != nil {
		return fmt.Errorf("encode the IDs of pod %s: %w", podUID, err)
	}
	if err := atomicwriter.WriteFile(a.path(podUID), data, 0o644); err != nil {
		return fmt.Errorf("write the IDs of pod %s: %w", podUID, err)
	}
	return nil
}
