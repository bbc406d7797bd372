package event

import (
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/record"
)

const (
	// patience is how long an event waits at most: long enough for a burst of
	// pods to be through, short for who reads it, and short enough for the
	// broadcaster, which keeps a thousand.
	patience = 10 * time.Second
	pause    = 20 * time.Millisecond
)

// Yield returns a sink that does not send while busy tells that pods are being
// started, for some seconds at most: each event costs the API server about as
// much as the status that somebody waits for, and nobody waits for events.
func Yield(sink record.EventSink, busy func() bool) record.EventSink {
	return yielding{EventSink: sink, busy: busy}
}

type yielding struct {
	record.EventSink
	busy func() bool
}

func (y yielding) Create(e *v1.Event) (*v1.Event, error) {
	y.wait(e)
	return y.EventSink.Create(e)
}

func (y yielding) Update(e *v1.Event) (*v1.Event, error) {
	y.wait(e)
	return y.EventSink.Update(e)
}

func (y yielding) Patch(e *v1.Event, data []byte) (*v1.Event, error) {
	y.wait(e)
	return y.EventSink.Patch(e, data)
}

// wait is no longer than patience whatever the clock does.
func (y yielding) wait(e *v1.Event) {
	began := time.Now()
	waited := min(max(0, began.Sub(e.LastTimestamp.Time)), patience)
	for y.busy() && waited+time.Since(began) < patience {
		time.Sleep(pause)
	}
}
