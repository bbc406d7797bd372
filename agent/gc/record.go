package gc

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/moby/sys/atomicwriter"
)

// record is what is remembered of an image.
type record struct {
	FirstSeen time.Time `json:"firstSeen"`
	LastUsed  time.Time `json:"lastUsed,omitzero"`
}

// records are by image ID.
type records map[string]record

// see takes in which images there are and which are in use, and forgets those
// that are gone.
func (r records) see(images map[string]bool, now time.Time) {
	for id := range r {
		if _, there := images[id]; !there {
			delete(r, id)
		}
	}
	for id, inUse := range images {
		one, known := r[id]
		// A clock that was set back must not make an image young for ever.
		if !known || one.FirstSeen.After(now) {
			one.FirstSeen = now
		}
		if inUse || one.LastUsed.After(now) {
			one.LastUsed = now
		}
		r[id] = one
	}
}

// load reads the records of the agent before. Without them all images look
// new, which keeps them a little longer.
func (c *Collector) load() {
	if c.records != nil {
		return
	}
	c.records = records{}
	unfinished, err := filepath.Glob(c.unfinished())
	for _, path := range unfinished {
		err = errors.Join(err, os.Remove(path))
	}
	text, readErr := os.ReadFile(c.config.Record)
	if readErr == nil {
		readErr = json.Unmarshal(text, &c.records)
	} else if errors.Is(readErr, fs.ErrNotExist) {
		readErr = nil
	}
	if err = errors.Join(err, readErr); err != nil {
		c.config.Log.Warn("when images were used before is not known", "file", c.config.Record, "err", err)
	}
	if c.records == nil { // the file said null
		c.records = records{}
	}
}

func (c *Collector) save() error {
	text, err := json.Marshal(c.records)
	if err == nil {
		err = atomicwriter.WriteFile(c.config.Record, text, 0o600)
	}
	if err != nil {
		return fmt.Errorf("keep when images were used: %w", err)
	}
	return nil
}
