package resources

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
)

// askTimeout bounds how long device plugins may take for one pod.
const askTimeout = time.Minute

// Asks tells whether device plugins have to be asked to admit the pod.
func (a *Allocator) Asks(pod *v1.Pod) bool { return a.plugins.Hand(asked(pod)) }

// asked are the resources that the pod asks for and that may be a plugin's, in
// order.
func asked(pod *v1.Pod) []string {
	names := map[string]bool{}
	for _, c := range containers(pod) {
		for name := range c.Resources.Limits {
			if strings.Contains(string(name), "/") {
				names[string(name)] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(names))
}

// AdmitAsking is Admit for a pod that Asks. It may take as long as the plugins
// do, and holds up nobody but pods that ask for the same. Look tells which pods
// hold resources now, this one and all others that are being admitted included.
func (a *Allocator) AdmitAsking(ctx context.Context, pod *v1.Pod, look func() []*v1.Pod) *Rejection {
	done, err := a.turns.take(ctx, asked(pod))
	if err != nil {
		return rejected(err)
	}
	defer done()
	ctx, cancel := context.WithTimeoutCause(ctx, askTimeout, fmt.Errorf("device plugins did not answer within %s", askTimeout))
	defer cancel()
	if err := a.keepNow(look); err != nil {
		return rejected(err)
	}
	d := a.draft()
	d.devices = a.plugins.Draft(ctx, pod)
	if rejection := a.allocate(d, pod); rejection != nil {
		return rejection
	}
	a.deciding.Lock()
	defer a.deciding.Unlock()
	a.admissions.Add(1)
	if again := a.draft(); again.after != d.after {
		// Others have got CPUs or memory meanwhile. The devices are chosen, and
		// no plugin is asked again.
		again.devices = d.devices
		if rejection := a.allocate(again, pod); rejection != nil {
			return rejection
		}
		d = again
	}
	return rejected(a.commit(d))
}

// keepNow takes back what pods had that are gone. One that was admitted since
// anybody looked has to be among those that are looked at.
func (a *Allocator) keepNow(look func() []*v1.Pod) error {
	for {
		before := a.admissions.Load()
		pods := look()
		a.deciding.Lock()
		if a.admissions.Load() == before {
			defer a.deciding.Unlock()
			return a.keep(pods)
		}
		a.deciding.Unlock()
	}
}

// turns lets one pod at a time ask for a resource: who asks chooses from what is
// free, and it is his only when the plugin has answered.
type turns struct {
	mu sync.Mutex
	of map[string]*turn // by resource
}

type turn struct {
	taken chan struct{} // capacity one; full: somebody has it
	users int           // who have it or wait for it
}

// take waits for the turn for all the names, which are in order, so that no two
// wait for each other.
func (t *turns) take(ctx context.Context, names []string) (done func(), err error) {
	var taken []string
	done = func() {
		for _, name := range taken {
			<-t.join(name, -1).taken
		}
	}
	for _, name := range names {
		select {
		case t.join(name, 1).taken <- struct{}{}:
			taken = append(taken, name)
		case <-ctx.Done():
			t.join(name, -1)
			done()
			return nil, context.Cause(ctx)
		}
	}
	return done, nil
}

// join counts who use a resource's turn. One that nobody uses is not kept.
func (t *turns) join(name string, users int) *turn {
	t.mu.Lock()
	defer t.mu.Unlock()
	one := t.of[name]
	if one == nil {
		one = &turn{taken: make(chan struct{}, 1)}
		if t.of == nil {
			t.of = map[string]*turn{}
		}
		t.of[name] = one
	}
	if one.users += users; one.users == 0 {
		delete(t.of, name)
	}
	return one
}
