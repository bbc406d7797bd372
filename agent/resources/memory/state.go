package memory

import (
	"encoding/json"
	"fmt"

	"github.com/berth-io/berth/agent/resources/statefile"
)

// checkpoint is the file's format (kubelet: cm/memorymanager/state/checkpoint.go,
// the first version, which 1.36 writes).
type checkpoint struct {
	PolicyName   string              `json:"policyName"`
	MachineState machineState        `json:"machineState"`
	Entries      containerAssignment `json:"entries,omitempty"`
	Checksum     checksum            `json:"checksum"`
}

type (
	checksum            uint64
	machineState        map[int]*Node
	containerAssignment map[string]map[string][]Block
)

func (c checkpoint) sum() uint64 {
	c.Checksum = 0
	return statefile.Sum(&c,
		"(*memory.checkpoint)", "(*state.MemoryManagerCheckpoint)",
		"(memory.machineState)", "(state.NUMANodeMap)",
		"(*memory.Node)", "(*state.NUMANodeState)",
		"*memory.Table", "*state.MemoryTable",
		"(memory.containerAssignment)", "(state.ContainerMemoryAssignments)",
		"memory.Block", "state.Block",
		"(memory.checksum)", "(checksum.Checksum)")
}

// Load reads memory_manager_state. Without a file it gives the zero State. A
// file of another policy, one that is damaged and one that cannot be read are
// errors.
func Load(path, policy string) (State, error) {
	content, err := statefile.Read(path)
	if err == nil && content == nil {
		return State{}, nil
	}
	var s State
	if err == nil {
		s, err = decode(content, policy)
	}
	if err != nil {
		return State{}, fmt.Errorf("could not restore state from checkpoint: %w, please drain this node and delete the memory manager checkpoint file %q before restarting", err, path)
	}
	return s, nil
}

func decode(content []byte, policy string) (State, error) {
	// A map that is absent counts as an empty one in the checksum.
	c := checkpoint{MachineState: machineState{}, Entries: containerAssignment{}}
	if err := json.Unmarshal(content, &c); err != nil {
		return State{}, err
	}
	// Files without a checksum are the kubelet's of old.
	if sum := c.sum(); c.Checksum != 0 && uint64(c.Checksum) != sum {
		return State{}, &statefile.CorruptError{Actual: sum, Expected: uint64(c.Checksum)}
	}
	if c.PolicyName != policy {
		return State{}, fmt.Errorf("configured policy %q differs from state checkpoint policy %q", policy, c.PolicyName)
	}
	for id, n := range c.MachineState {
		if n == nil {
			return State{}, fmt.Errorf("NUMA node %d is empty", id)
		}
		for name, table := range n.MemoryMap {
			if table == nil {
				return State{}, fmt.Errorf("%s of NUMA node %d is empty", name, id)
			}
		}
	}
	return State{Nodes: c.MachineState, Assigned: c.Entries}, nil
}

func encode(policy string, s State) checkpoint {
	s = s.clone() // no map of it is nil
	c := checkpoint{PolicyName: policy, MachineState: s.Nodes, Entries: s.Assigned}
	c.Checksum = checksum(c.sum())
	return c
}

// Save writes memory_manager_state.
func Save(path, policy string, s State) error {
	if err := statefile.Write(path, encode(policy, s)); err != nil {
		return fmt.Errorf("save who has which memory: %w", err)
	}
	return nil
}
