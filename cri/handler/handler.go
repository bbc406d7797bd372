// Package handler owns the OCI runtimes behind the CRI's runtime handlers:
// which there are, what each can do, and the commands that the daemon runs of
// them itself. Starting, executing and deleting is the shims', which get the
// same configuration.
//
// Only cri/server calls it.
package handler

import (
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/berth-io/berth/cri/shim"
)

// Config is one OCI runtime.
type Config struct {
	Path          string        // of the program
	Root          string        // its --root; no two runtimes may share one
	SystemdCgroup bool          // pass --systemd-cgroup
	Args          []string      // global flags before the command, such as --debug
	Timeout       time.Duration // of one command; zero means none
	// Enter has the shim start the processes of Exec and ExecSync by itself, see
	// package enter. It is for runtimes whose containers are made as runc's are.
	Enter bool
	// PrivilegedWithoutHostDevices keeps the node's devices from privileged
	// containers that ask for none, as runtimes want it that bring a kernel of
	// their own (containerd has an option of this name).
	PrivilegedWithoutHostDevices bool
}

// Runtime is the OCI runtime of one handler.
type Runtime struct {
	Name string
	Config

	mu     sync.Mutex // held while the program is asked
	asked  identity   // the program that was
	at     time.Time
	known  Features
	failed error
}

// Shim is what a shim is told of the runtime.
func (r *Runtime) Shim() shim.Runtime {
	return shim.Runtime{
		Binary: r.Path, Root: r.Root, SystemdCgroup: r.SystemdCgroup, Args: r.Args, Timeout: r.Timeout,
	}
}

// Set are all handlers of a node.
type Set struct {
	byName   map[string]*Runtime
	standard *Runtime
}

// NewSet makes the handlers of a node. standard is the one of pods that name
// no handler.
func NewSet(configs map[string]Config, standard string) (*Set, error) {
	s := &Set{byName: map[string]*Runtime{}}
	roots := map[string]string{}
	for _, name := range slices.Sorted(maps.Keys(configs)) {
		c := configs[name]
		if c.Path == "" || c.Root == "" {
			return nil, fmt.Errorf("runtime handler %s: it has no path or no root", name)
		}
		if other, taken := roots[c.Root]; taken {
			return nil, fmt.Errorf("runtime handler %s: its root %s is also that of %s", name, c.Root, other)
		}
		roots[c.Root] = name
		s.byName[name] = &Runtime{Name: name, Config: c}
	}
	if s.standard = s.byName[standard]; s.standard == nil {
		return nil, fmt.Errorf("default runtime handler %q: there is none of this name", standard)
	}
	return s, nil
}

// Get finds the runtime of a handler; the empty name is the default's.
func (s *Set) Get(name string) (*Runtime, bool) {
	if name == "" {
		return s.standard, true
	}
	r, ok := s.byName[name]
	return r, ok
}

// Default is the runtime of pods that name no handler.
func (s *Set) Default() *Runtime { return s.standard }

// All are the runtimes in the order of their names.
func (s *Set) All() []*Runtime {
	var list []*Runtime
	for _, name := range slices.Sorted(maps.Keys(s.byName)) {
		list = append(list, s.byName[name])
	}
	return list
}
