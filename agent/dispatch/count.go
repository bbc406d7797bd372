package dispatch

import "github.com/berth-io/berth/agent/manifest"

// Counts are what is counted of pods that come in unusual ways (agent/metrics).
type Counts interface {
	// PodRestarted: a pod was wanted again with its old UID, and starts anew.
	PodRestarted(static bool)
	// OrphanFound: the runtime has a pod that no source has told of.
	OrphanFound()
}

// Standing is how a pod's worker stands.
type Standing struct {
	Static        bool // the pod is from a manifest
	Unwanted      bool // no source wants it any more
	Stray         bool // none has ever told this agent of it
	Ending, Ended bool // it was asked to end; nothing of it runs any more
}

// Standings counts the workers by how they stand.
func (d *Dispatcher) Standings() map[Standing]int {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := map[Standing]int{}
	for uid, w := range d.workers {
		out[Standing{
			Static: manifest.Static(w.Pod()), Unwanted: w.Forgotten(), Stray: d.strays[uid],
			Ending: w.Stopping(), Ended: w.Settled(),
		}]++
	}
	return out
}

// restarted counts a pod that starts anew.
func (d *Dispatcher) restarted(static bool) {
	if d.config.Counts != nil {
		d.config.Counts.PodRestarted(static)
	}
}

// found notes a pod that no source has told of. d.mu is not held.
func (d *Dispatcher) found(uid string) {
	o := d.config.Observations.Pod(uid)
	if d.config.Counts != nil && o.Sandbox() != nil {
		d.config.Counts.OrphanFound()
	}
	d.mu.Lock()
	d.strays[uid] = true
	d.mu.Unlock()
}
