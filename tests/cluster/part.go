package cluster

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// tagName marks the processes of a cluster in their environment.
const tagName = "BERTH_TEST_CLUSTER"

// stopTimeout bounds how long a part may take to end after SIGTERM.
const stopTimeout = time.Minute

// part is one running component of a cluster. It outlives this process unless
// it is stopped.
type part struct {
	cmd    *exec.Cmd
	log    string
	exited chan struct{}
}

// environ marks a process as the cluster's, so that Down finds it.
func (c *Cluster) environ() []string {
	return []string{
		"PATH=" + c.Config.Bin + ":" + c.peers() + ":" + os.Getenv("PATH"),
		"HOME=/root",
		"TERM=" + os.Getenv("TERM"),
		// What kubectl remembers of an API is of this cluster alone: others
		// have its address, too.
		"KUBECACHEDIR=" + filepath.Join(c.Dir, "kubectl"),
		"KUBECONFIG=" + c.kubeconfig("admin"),
		tagName + "=" + c.Config.Name,
	}
}

// start runs a component on a host. Its name is that of its log, too.
func (c *Cluster) start(host, name string, args ...string) error {
	if p := c.part(name); p != nil && p.running() {
		return fmt.Errorf("%s runs already", name)
	}
	p := &part{log: filepath.Join(c.logs(), name+".log"), exited: make(chan struct{})}
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	line := append(c.InHost(host), args...)
	p.cmd = exec.Command(line[0], line[1:]...)
	p.cmd.Dir = "/"
	p.cmd.Env, p.cmd.Stdout, p.cmd.Stderr = c.environ(), log, log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // no terminal's signals
	if err := p.cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", name, err)
	}
	go func() {
		_ = p.cmd.Wait() // how it ended is in its log
		close(p.exited)
	}()
	c.mu.Lock()
	c.parts[name] = p
	c.mu.Unlock()
	return nil
}

// part is a component that this process has started; nil: it has not.
func (c *Cluster) part(name string) *part {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.parts[name]
}

func (p *part) running() bool {
	select {
	case <-p.exited:
		return false
	default:
		return true
	}
}

// stop ends a part: with SIGTERM it must end in time, with SIGKILL it does.
func (c *Cluster) stop(name string, signal syscall.Signal) error {
	p := c.part(name)
	if p == nil {
		return fmt.Errorf("%s was not started by this process", name)
	}
	if err := p.cmd.Process.Signal(signal); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stop %s: %w", name, err)
	}
	select {
	case <-p.exited:
		return nil
	case <-time.After(stopTimeout):
		return fmt.Errorf("%s runs %v after signal %d", name, stopTimeout, signal)
	}
}

// tail returns the last lines of a log.
func tail(path string, lines int) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimRight(string(data), "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}
