package server

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/berth-io/berth/cri/shim"
	"github.com/berth-io/berth/cri/spec"
	"github.com/berth-io/berth/cri/store"
)

// Filters are the seccomp filters that the OCI runtime installs; see
// seccomp.Filters.
type Filters interface {
	Of(profile json.RawMessage) (program []byte, known bool)
}

// process is the container's own process with another command: the same user,
// environment and confinement. Where the shim can start it without the OCI
// runtime, it says how.
func (s *Server) process(c store.Container, command []string, tty bool) (shim.Process, error) {
	data, err := os.ReadFile(filepath.Join(s.containers.Dir(c.ID), "config.json"))
	if err != nil {
		return shim.Process{}, fmt.Errorf("read the OCI configuration: %w", err)
	}
	running, err := spec.ParseRunning(data)
	if err != nil {
		return shim.Process{}, err
	}
	p := shim.Process{ContainerID: c.ID, Spec: *running.Process}
	p.Spec.Args, p.Spec.Terminal = command, tty
	if tty && !running.Process.Terminal {
		p.Spec.Env = append(p.Spec.Env, "TERM=xterm")
	}
	return p, s.mayEnter(&p, c, running)
}

// mayEnter adds how the shim starts a process by itself, if it can.
func (s *Server) mayEnter(p *shim.Process, c store.Container, running spec.Running) error {
	if s.cfg.Sealed == nil {
		return nil
	}
	sb, err := s.sandboxes.Find(c.SandboxID)
	if err != nil {
		return findError("sandbox", c.SandboxID, err)
	}
	handler, err := s.runtimeOf(sb)
	if err != nil {
		return err
	}
	if !handler.Enter {
		return nil
	}
	var filter []byte
	if running.HasSeccomp() {
		var known bool
		if filter, known = s.cfg.Filters.Of(running.Linux.Seccomp); !known {
			return nil
		}
	}
	p.Enter, err = running.Enter(c.ID, p.Spec, filter)
	if errors.Is(err, spec.ErrByRuntime) {
		return nil
	}
	p.Sealed = s.cfg.Sealed
	return err
}
