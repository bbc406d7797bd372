// Package statefile reads and writes the kubelet's state files: JSON with a
// checksum over the Go values, so that a node can go from the kubelet to Berth
// and back without a drain.
package statefile

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/moby/sys/atomicwriter"
	"k8s.io/utils/dump"

	"github.com/berth-io/berth/internal/failpoint"
)

// Sum is the checksum that the kubelet would write for the value (kubelet:
// checkpointmanager/checksum). It depends on the names of Go types; names are
// pairs of a name as it is here, in parentheses and with its package, and as it
// is in the kubelet.
func Sum(value any, names ...string) uint64 {
	hash := fnv.New32a()
	_, _ = hash.Write([]byte(strings.NewReplacer(names...).Replace(dump.ForHash(value))))
	return uint64(hash.Sum32())
}

// CorruptError is what a file with a wrong checksum is answered with.
type CorruptError struct{ Actual, Expected uint64 }

func (e *CorruptError) Error() string {
	return fmt.Sprintf("checkpoint is corrupted: its checksum is %d, what it holds has %d", e.Expected, e.Actual)
}

// Read reads a file; nil where there is none. What a Write that was cut off has
// left is removed.
func Read(path string) ([]byte, error) {
	unfinished, err := filepath.Glob(filepath.Join(filepath.Dir(path), ".tmp-"+filepath.Base(path)+"*"))
	for _, left := range unfinished {
		err = errors.Join(err, os.Remove(left))
	}
	if err != nil {
		return nil, fmt.Errorf("remove an unfinished state file: %w", err)
	}
	content, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return content, err
}

// Write replaces the file as a whole.
func Write(path string, value any) error {
	content, err := json.Marshal(value)
	if err != nil {
		return fmt.Errorf("encode %s: %w", path, err)
	}
	if err := atomicwriter.WriteFile(path, content, 0o600); err != nil {
		return err
	}
	failpoint.Hit("agent/state-written")
	return nil
}
