// Package fakecri is a container runtime in memory that behaves as the CRI
// says: stop and remove may be repeated, what is unknown is NotFound, events
// carry statuses. Tests use it as the runtime of the agent's packages, in the
// process or through gRPC (Serve), and make it misbehave: calls fail, hang or
// go on after their caller left, events get lost, the stream breaks, containers
// end, sandboxes die, the host boots.
//
//	runtime.go    state, and what tests ask and do
//	fault.go      calls that misbehave
//	sandbox.go    the CRI's calls about sandboxes
//	container.go  ... about containers
//	resize.go     ... about what they may use and do use
//	events.go     ... and the event stream
//	images.go     the image service
//	serve.go      the same through gRPC
package fakecri

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Program is what a container does, by the container's name. The zero value
// runs until it is told to stop, and then stops at once.
type Program struct {
	// Exits: it ends by itself, with Code, after it ran for RunsFor.
	Exits   bool
	RunsFor time.Duration
	Code    int32
	// Stubborn: it ignores the stop signal.
	Stubborn bool
	// StartError makes its start fail, as a missing executable does.
	StartError string
}

// Runtime is the fake. It may be used by several goroutines at once.
type Runtime struct {
	mu         sync.Mutex
	sandboxes  map[string]*sandbox
	containers map[string]*container
	images     map[string]*runtimeapi.Image // present, by reference
	registry   map[string]bool              // what can be pulled
	programs   map[string]Program
	memory     map[string]uint64 // in use, by container name
	exec       func(container string, command []string) (output []byte, code int32)
	readers    map[*reader]bool
	faults     []*fault
	calls      []string
	ids        int
	silent     bool // events are dropped
	eventless  bool // there is no event stream
}

type sandbox struct {
	id      string
	config  *runtimeapi.PodSandboxConfig
	created time.Time
	ready   bool
	ip      string
}

type container struct {
	id       string
	sandbox  string
	config   *runtimeapi.ContainerConfig
	logDir   string
	state    runtimeapi.ContainerState
	created  time.Time
	started  time.Time
	finished time.Time
	code     int32
	reason   string
	message  string
	exited   chan struct{} // closed when it has ended
}

// New returns a runtime that has nothing.
func New() *Runtime {
	return &Runtime{
		sandboxes: map[string]*sandbox{}, containers: map[string]*container{},
		images: map[string]*runtimeapi.Image{}, registry: map[string]bool{},
		programs: map[string]Program{}, memory: map[string]uint64{}, readers: map[*reader]bool{},
	}
}

// Program sets what containers of that name do from their next start on.
func (r *Runtime) Program(container string, p Program) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.programs[container] = p
}

// OnExec answers ExecSync; without it every command succeeds and says nothing.
func (r *Runtime) OnExec(answer func(container string, command []string) (output []byte, code int32)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.exec = answer
}

// Exit ends the newest running container of that name. It tells whether there
// was one.
func (r *Runtime) Exit(name string, code int32) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.newestFirst() {
		if c.config.GetMetadata().GetName() == name && c.running() {
			r.end(c, code)
			return true
		}
	}
	return false
}

// LoseSandbox is the death of a pod's shim: its containers are killed and the
// sandbox is not ready any more, without anybody having asked for it.
func (r *Runtime) LoseSandbox(podName string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range r.sandboxes {
		if s.config.GetMetadata().GetName() == podName && s.ready {
			r.stopSandbox(s)
		}
	}
}

// Reboot forgets everything but the images, and breaks the event streams.
func (r *Runtime) Reboot() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.containers {
		if c.running() {
			close(c.exited)
			c.state = runtimeapi.ContainerState_CONTAINER_EXITED
		}
	}
	clear(r.containers)
	clear(r.sandboxes)
	r.cut(errRebooted)
}

// Calls returns the names of all calls so far that changed something, with
// what they were about: "RunPodSandbox web 0", "StartContainer a 1".
func (r *Runtime) Calls() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.calls)
}

// Running lists the names of running containers, sorted.
func (r *Runtime) Running() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var names []string
	for _, c := range r.containers {
		if c.running() {
			names = append(names, c.config.GetMetadata().GetName())
		}
	}
	slices.Sort(names)
	return names
}

// Container returns the status of the newest container of that name; nil
// without one.
func (r *Runtime) Container(name string) *runtimeapi.ContainerStatus {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.newestFirst() {
		if c.config.GetMetadata().GetName() == name {
			return c.status()
		}
	}
	return nil
}

// Empty tells whether neither sandboxes nor containers are left.
func (r *Runtime) Empty() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.sandboxes) == 0 && len(r.containers) == 0
}

// ReadySandboxes lists "POD-UID ATTEMPT" of the ready sandboxes, sorted.
func (r *Runtime) ReadySandboxes() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []string
	for _, s := range r.sandboxes {
		if s.ready {
			out = append(out, fmt.Sprintf("%s %d", s.config.GetMetadata().GetUid(), s.config.GetMetadata().GetAttempt()))
		}
	}
	slices.Sort(out)
	return out
}

func (r *Runtime) newestFirst() []*container {
	return slices.SortedFunc(maps.Values(r.containers), func(a, b *container) int {
		return cmp.Or(b.created.Compare(a.created), cmp.Compare(b.config.GetMetadata().GetAttempt(), a.config.GetMetadata().GetAttempt()))
	})
}

func (r *Runtime) id(kind string) string {
	r.ids++
	return fmt.Sprintf("%s%d", kind, r.ids)
}

func (r *Runtime) log(format string, args ...any) {
	r.calls = append(r.calls, fmt.Sprintf(format, args...))
}
