// Package checkpoint keeps, one file a pod, what a restarted agent cannot find
// out anew: that a pod was told to stop, that it had its run, since when its
// conditions hold, what its probes said. What containers run, with which
// attempt and back-off, is not here: the runtime knows that.
package checkpoint

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/moby/sys/atomicwriter"
	v1 "k8s.io/api/core/v1"

	"github.com/berth-io/berth/agent/allocation"
	"github.com/berth-io/berth/agent/phase"
	"github.com/berth-io/berth/agent/plan"
	"github.com/berth-io/berth/agent/probe"
	"github.com/berth-io/berth/agent/timeline"
)

// Pod is what is kept of a pod.
type Pod struct {
	// Pod is the pod as it was last wanted, with its last status: what a pod is
	// terminated by when its source forgot it while the agent was away.
	// Its spec has the resources that the pod is allocated.
	Pod   *v1.Pod     `json:"pod"`
	Phase phase.Phase `json:"phase"`
	Stop  *Stop       `json:"stop,omitempty"`
	// Forgotten: no source wanted the pod any more. Wanted again, it starts over.
	Forgotten bool `json:"forgotten,omitempty"`
	// Past is what ran before the boot, and has not been started again since.
	Past   map[string]plan.Past    `json:"past,omitempty"`
	Probes map[string]probe.Result `json:"probes,omitempty"`
	Steps  []timeline.Step         `json:"steps,omitempty"`
	// Actuated is what the pod's cgroups are set to.
	Actuated allocation.Actuated `json:"actuated,omitzero"`
	// BootID is the boot in which this was written.
	BootID string `json:"bootID"`
}

// Stop is a request that a pod end.
type Stop struct {
	At time.Time `json:"at"`
	// Grace in seconds, counted from At.
	Grace int64 `json:"grace"`
	// Reason and Message are for the Killing event.
	Reason  string `json:"reason"`
	Message string `json:"message"`
	// Failed makes the pod's phase Failed with that reason; nil: the
	// containers' exit codes decide.
	Failed *plan.Waiting `json:"failed,omitempty"`
	// Conditions are set in the pod's status, each in place of one of its type.
	Conditions []v1.PodCondition `json:"conditions,omitempty"`
}

// Deadline is when the grace period ends.
func (s *Stop) Deadline() time.Time { return s.At.Add(time.Duration(s.Grace) * time.Second) }

// Store is a directory of checkpoints.
type Store struct{ dir string }

// Open makes the directory where it is missing.
func Open(dir string) (*Store, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the checkpoint directory: %w", err)
	}
	return &Store{dir: dir}, nil
}

// Save writes a pod's checkpoint in one step. A durable one is on the disk
// when Save returns; another survives the agent's death, but perhaps not the
// host's, after which what it says of this boot is void anyway.
func (s *Store) Save(p Pod, durable bool) error {
	data, err := json.Marshal(p)
	if err != nil {
		return fmt.Errorf("encode the checkpoint of pod %s/%s: %w", p.Pod.Namespace, p.Pod.Name, err)
	}
	path := s.path(string(p.Pod.UID))
	if durable {
		err = atomicwriter.WriteFile(path, data, 0o600)
	} else if err = os.WriteFile(path+".tmp", data, 0o600); err == nil {
		err = os.Rename(path+".tmp", path)
	}
	if err != nil {
		return fmt.Errorf("write the checkpoint of pod %s/%s: %w", p.Pod.Namespace, p.Pod.Name, err)
	}
	return nil
}

// Remove forgets a pod, also what an interrupted Save of it left.
func (s *Store) Remove(podUID string) error {
	for _, path := range []string{s.path(podUID) + ".tmp", s.path(podUID)} {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove the checkpoint of pod %s: %w", podUID, err)
		}
	}
	return nil
}

// Load reads all checkpoints. One that cannot be read is moved aside and
// reported in errs; the others are not held up by it. What a Save that was cut
// off left is removed.
func (s *Store) Load() (pods []Pod, errs []error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, []error{fmt.Errorf("read checkpoints: %w", err)}
	}
	for _, e := range entries {
		path := filepath.Join(s.dir, e.Name())
		if strings.HasSuffix(e.Name(), ".tmp") || strings.HasPrefix(e.Name(), ".tmp-") {
			if err := os.Remove(path); err != nil {
				errs = append(errs, fmt.Errorf("remove an unfinished checkpoint: %w", err))
			}
			continue
		}
		if !strings.HasSuffix(e.Name(), ".json") {
			continue
		}
		p, err := read(path)
		if err == nil && s.path(string(p.Pod.UID)) != path {
			err = fmt.Errorf("it is of pod UID %q", p.Pod.UID)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("checkpoint %s is not usable and was renamed to .bad: %w", path, errors.Join(err, os.Rename(path, path+".bad"))))
			continue
		}
		pods = append(pods, p)
	}
	return pods, errs
}

func read(path string) (Pod, error) {
	var p Pod
	data, err := os.ReadFile(path)
	if err != nil {
		return p, err
	}
	if err := json.Unmarshal(data, &p); err != nil {
		return p, err
	}
	if p.Pod == nil || p.Pod.UID == "" {
		return p, errors.New("it has no pod")
	}
	if p.Phase < phase.Starting || p.Phase > phase.Finished {
		return p, fmt.Errorf("phase %d does not exist", p.Phase)
	}
	return p, nil
}

func (s *Store) path(podUID string) string { return filepath.Join(s.dir, podUID+".json") }
