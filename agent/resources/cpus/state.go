package cpus

import (
	"encoding/json"
	"fmt"
	"maps"

	"k8s.io/utils/cpuset"

	"github.com/berth-io/berth/agent/resources/statefile"
)

// State is who has which CPUs. A State that was handed out is not changed.
type State struct {
	// Default are the CPUs that all share who have none to themselves.
	Default cpuset.CPUSet
	// Assigned are exclusive CPUs by pod UID and container name.
	Assigned map[string]map[string]cpuset.CPUSet
}

// Of are the CPUs that the container may run on: its own or the shared ones.
func (s State) Of(podUID, container string) cpuset.CPUSet {
	if own, found := s.Assigned[podUID][container]; found {
		return own
	}
	return s.Default
}

func (s State) clone() State {
	c := State{Default: s.Default, Assigned: make(map[string]map[string]cpuset.CPUSet, len(s.Assigned))}
	for uid, containers := range s.Assigned {
		c.Assigned[uid] = maps.Clone(containers)
	}
	return c
}

func (s *State) assign(podUID, container string, cpus cpuset.CPUSet) {
	if s.Assigned[podUID] == nil {
		s.Assigned[podUID] = map[string]cpuset.CPUSet{}
	}
	s.Assigned[podUID][container] = cpus
}

// Equal compares two states.
func (s State) Equal(other State) bool {
	return s.Default.Equals(other.Default) && maps.EqualFunc(s.Assigned, other.Assigned,
		func(a, b map[string]cpuset.CPUSet) bool { return maps.EqualFunc(a, b, cpuset.CPUSet.Equals) })
}

// checkpoint is the file's format (kubelet: cm/cpumanager/state/checkpoint.go,
// the second version, which 1.36 writes).
type checkpoint struct {
	PolicyName    string                       `json:"policyName"`
	DefaultCPUSet string                       `json:"defaultCpuSet"`
	Entries       map[string]map[string]string `json:"entries,omitempty"`
	Checksum      checksum                     `json:"checksum"`
}

type checksum uint64

func (c checkpoint) sum() uint64 {
	c.Checksum = 0
	return statefile.Sum(&c, "(*cpus.checkpoint)", "(*state.CPUManagerCheckpoint)", "(cpus.checksum)", "(checksum.Checksum)")
}

// Load reads cpu_manager_state. Without a file it gives the zero State. A
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
		return State{}, fmt.Errorf("could not restore state from checkpoint: %w, please drain this node and delete the CPU manager checkpoint file %q before restarting", err, path)
	}
	return s, nil
}

func decode(content []byte, policy string) (State, error) {
	// A map that is absent counts as an empty one in the checksum.
	c := checkpoint{Entries: map[string]map[string]string{}}
	err := json.Unmarshal(content, &c)
	if err != nil {
		return State{}, err
	}
	// Files without a checksum are the kubelet's of old.
	if sum := c.sum(); c.Checksum != 0 && uint64(c.Checksum) != sum {
		return State{}, &statefile.CorruptError{Actual: sum, Expected: uint64(c.Checksum)}
	}
	if c.PolicyName != policy {
		return State{}, fmt.Errorf("configured policy %q differs from state checkpoint policy %q", policy, c.PolicyName)
	}
	s := State{}.clone()
	if s.Default, err = cpuset.Parse(c.DefaultCPUSet); err != nil {
		return State{}, fmt.Errorf("could not parse default cpu set %q: %w", c.DefaultCPUSet, err)
	}
	for uid, containers := range c.Entries {
		for name, text := range containers {
			cpus, err := cpuset.Parse(text)
			if err != nil {
				return State{}, fmt.Errorf("could not parse cpuset %q for container %q in pod %q: %w", text, name, uid, err)
			}
			s.assign(uid, name, cpus)
		}
	}
	return s, nil
}

func encode(policy string, s State) checkpoint {
	c := checkpoint{PolicyName: policy, DefaultCPUSet: s.Default.String(), Entries: map[string]map[string]string{}}
	for uid, containers := range s.Assigned {
		c.Entries[uid] = map[string]string{}
		for name, cpus := range containers {
			c.Entries[uid][name] = cpus.String()
		}
	}
	c.Checksum = checksum(c.sum())
	return c
}

// Save writes cpu_manager_state.
func Save(path, policy string, s State) error {
	if err := statefile.Write(path, encode(policy, s)); err != nil {
		return fmt.Errorf("save who has which CPUs: %w", err)
	}
	return nil
}
