// Package oci drives an OCI runtime by its command line, on behalf of the
// shim: one fork for each operation, bounded in time.
package oci

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/berth-io/berth/cri/shim/internal/reap"
)

// Runtime is how to call the runtime.
type Runtime struct {
	Binary        string
	Root          string
	Args          []string // more global flags
	SystemdCgroup bool
	Timeout       time.Duration // of one command; zero means none
	Dir           string        // for files that live as long as one command
	Env           []string      // of the runtime itself
	Lock          uintptr       // descriptor that every command inherits: it tells that one still runs
	Reaper        *reap.Reaper

	seq atomic.Int64 // names the files in Dir
}

// Stdio are the descriptors of a process to start. They stay the caller's.
type Stdio struct {
	Stdin, Stdout, Stderr uintptr
	Console               string // console socket, relative to the command's directory; empty: no terminal
}

// Started is a process that the runtime has started and the shim has adopted.
type Started struct {
	Pid  int
	Exit <-chan reap.Exit
}

// ErrTimeout is in the chain of the error for a command that ran into
// Runtime.Timeout and was killed.
var ErrTimeout = errors.New("timed out")

// Run makes and starts a container: "run --detach", the one fork of a start.
func (r *Runtime) Run(id, bundle string, stdio Stdio) (Started, error) {
	pidFile := filepath.Join(bundle, "init.pid")
	args := []string{"run", "--detach", "--bundle", bundle, "--pid-file", pidFile}
	return r.start("start container "+id, bundle, pidFile, stdio, append(consoleArgs(args, stdio), id))
}

// Restore makes a container and goes on with the processes in criu's images.
func (r *Runtime) Restore(id, bundle, images string, stdio Stdio) (Started, error) {
	pidFile := filepath.Join(bundle, "init.pid")
	args := []string{
		"restore", "--detach", "--bundle", bundle, "--pid-file", pidFile, "--image-path", images, "--work-path", bundle,
		"--tcp-established", "--ext-unix-sk", "--file-locks",
	}
	return r.start("restore container "+id, bundle, pidFile, stdio, append(consoleArgs(args, stdio), id))
}

// Exec starts process, in OCI's JSON, in a running container; cgroup is one
// below the container's, or empty.
func (r *Runtime) Exec(id string, process []byte, stdio Stdio, cgroup string) (Started, error) {
	base := r.fileBase("exec")
	spec, pidFile := base+".json", base+".pid"
	if err := os.WriteFile(spec, process, 0o600); err != nil {
		return Started{}, fmt.Errorf("exec in container %s: %w", id, err)
	}
	defer os.Remove(spec)
	defer os.Remove(pidFile)
	args := []string{"exec", "--detach", "--process", spec, "--pid-file", pidFile}
	if cgroup != "" {
		args = append(args, "--cgroup", cgroup)
	}
	return r.start("exec in container "+id, r.Dir, pidFile, stdio, append(consoleArgs(args, stdio), id))
}

// Delete removes what the runtime keeps of a container. With force it kills
// first what may still run of it, which takes runc a tenth of a second even
// when nothing does. A container that the runtime does not know is no error.
func (r *Runtime) Delete(id string, force bool) error {
	// Both runc and crun keep a container's state in ROOT/ID.
	if _, err := os.Stat(filepath.Join(r.Root, id)); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	fd := null.Fd()
	args := []string{"delete", id}
	if force {
		args = []string{"delete", "--force", id}
	}
	return r.command("delete container "+id, r.Dir, Stdio{Stdin: fd, Stdout: fd, Stderr: fd}, args)
}

func consoleArgs(args []string, stdio Stdio) []string {
	if stdio.Console == "" {
		return args
	}
	return append(args, "--console-socket", stdio.Console)
}

// start runs a detaching command and adopts the process it leaves behind.
func (r *Runtime) start(what, dir, pidFile string, stdio Stdio, args []string) (Started, error) {
	done := r.Reaper.Adopt()
	defer done()
	if err := r.command(what, dir, stdio, args); err != nil {
		return Started{}, err
	}
	text, err := os.ReadFile(pidFile)
	if err != nil {
		return Started{}, fmt.Errorf("%s: read the runtime's pid file: %w", what, err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return Started{}, fmt.Errorf("%s: parse %s: %w", what, pidFile, err)
	}
	exit, err := r.Reaper.Claim(pid)
	if err != nil {
		return Started{}, fmt.Errorf("%s: %w", what, err)
	}
	return Started{Pid: pid, Exit: exit}, nil
}

// command runs the runtime to its end, or to the timeout. It gets a process
// group of its own, so that a hung one can be killed with its children, and
// dies with the shim: what it would go on to make would be nobody's.
func (r *Runtime) command(what, dir string, stdio Stdio, args []string) error {
	logFile := r.fileBase("runtime") + ".log"
	defer os.Remove(logFile)
	argv := append([]string{r.Binary, "--root", r.Root, "--log", logFile, "--log-format", "json"}, r.Args...)
	if r.SystemdCgroup {
		argv = append(argv, "--systemd-cgroup")
	}
	argv = append(argv, args...)
	pid, exited, err := r.Reaper.Fork(argv, &syscall.ProcAttr{
		Dir:   dir,
		Env:   r.Env,
		Files: []uintptr{stdio.Stdin, stdio.Stdout, stdio.Stderr, r.Lock},
		Sys:   &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL},
	})
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	var deadline <-chan time.Time
	if r.Timeout > 0 {
		timer := time.NewTimer(r.Timeout)
		defer timer.Stop()
		deadline = timer.C
	}
	select {
	case exit := <-exited:
		if exit.Status.Exited() && exit.Status.ExitStatus() == 0 {
			return nil
		}
		return fmt.Errorf("%s: %s", what, reason(logFile, exit))
	case <-deadline:
		message := lastError(logFile)
		if err := r.Reaper.SignalGroup(pid, syscall.SIGKILL); err == nil {
			<-exited
		}
		err := fmt.Errorf("%s: %s %s did not finish in %v and was killed: %w",
			what, filepath.Base(r.Binary), args[0], r.Timeout, ErrTimeout)
		if message != "" {
			err = fmt.Errorf("%w; its last error: %s", err, message)
		}
		return err
	}
}

// fileBase is a path in Dir that no other command uses.
func (r *Runtime) fileBase(kind string) string {
	return filepath.Join(r.Dir, kind+"-"+strconv.FormatInt(r.seq.Add(1), 10))
}

func reason(logFile string, exit reap.Exit) string {
	if message := lastError(logFile); message != "" {
		return message
	}
	if exit.Status.Signaled() {
		return "the runtime was ended by signal " + exit.Status.Signal().String()
	}
	return "the runtime ended with code " + strconv.Itoa(exit.Code()) + " and no error in its log"
}

// maxLog bounds how much of a runtime's log is read for its error.
const maxLog = 64 << 10

// lastError is the runtime's own word on why it failed: the message of the
// last log line of level error or worse.
func lastError(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	if st, err := f.Stat(); err == nil && st.Size() > maxLog {
		if _, err := f.Seek(-maxLog, io.SeekEnd); err != nil {
			return ""
		}
	}
	text, err := io.ReadAll(io.LimitReader(f, maxLog))
	if err != nil {
		return ""
	}
	return parseLog(string(text))
}

func parseLog(text string) (message string) {
	for line := range strings.Lines(text) {
		var entry struct {
			Level string `json:"level"`
			Msg   string `json:"msg"`
		}
		if json.Unmarshal([]byte(line), &entry) != nil {
			continue
		}
		if entry.Level == "error" || entry.Level == "fatal" || entry.Level == "panic" {
			message = strings.TrimSpace(entry.Msg)
		}
	}
	return message
}
