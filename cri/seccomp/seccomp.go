// Package seccomp knows the filters that the OCI runtime makes of seccomp
// profiles, so that a profile is compiled once and not for every process.
//
// It does not compile profiles: libseccomp has corners enough that a second
// compiler would differ from it some day, in what a container may do. The filter
// of a profile is what the runtime installs for it. The runtime makes a container
// with the profile, which never runs (runc create), and the kernel says which
// filter its process has (PTRACE_SECCOMP_GET_FILTER, ptrace(2)). That takes some
// 60 ms, once for each profile in the life of the daemon.
//
// The containers have names, cgroups and a runtime root of their own. What a
// daemon that was killed has left of them, the next one removes.
package seccomp

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berth-io/berth/internal/failpoint"
)

const (
	// maxProfiles bounds what is remembered. A node has a handful: RuntimeDefault
	// with and without some capabilities, and Localhost ones.
	maxProfiles = 64
	// retryAfter is when a profile is tried again: the reason may have been want of
	// memory or time.
	retryAfter = 10 * time.Minute
	// namePrefix is that of the containers, and of their cgroups.
	namePrefix = "berth-seccomp-"
)

// Config of Filters.
type Config struct {
	Dir           string // for bundles and the runtime's state; nobody else's
	Runtime       string // path of the OCI runtime
	SystemdCgroup bool
	Cgroups       Cgroups
	Timeout       time.Duration // of one command of the runtime
	Logger        *slog.Logger
}

// Cgroups ends what a killed daemon has left in a cgroup, by its path. That there
// is none is no error.
type Cgroups interface {
	Kill(path string) error
	Remove(path string) error
}

// Filters are the filters of profiles. They are found out while Run runs.
type Filters struct {
	cfg Config

	wanted chan key

	mu    sync.Mutex
	known map[key]*filter
}

// key is the hash of a profile's text.
type key [sha256.Size]byte

type filter struct {
	profile json.RawMessage // until it was tried
	program []byte          // empty: it is not known
	failed  time.Time       // when it could not be found out; zero: not yet tried, or known
}

// New starts nothing.
func New(cfg Config) *Filters {
	return &Filters{cfg: cfg, wanted: make(chan key, maxProfiles), known: map[key]*filter{}}
}

// Of is the filter that the runtime installs for a profile, linux.seccomp of an
// OCI configuration as it stands there: an array of struct sock_filter. The first
// time a profile is asked for, its filter is not known; it is found out then. One
// that cannot be found out is tried again after some time.
func (f *Filters) Of(profile json.RawMessage) (program []byte, known bool) {
	k := key(sha256.Sum256(profile))
	f.mu.Lock()
	defer f.mu.Unlock()
	if found, ok := f.known[k]; ok && (found.failed.IsZero() || time.Since(found.failed) < retryAfter) {
		return found.program, len(found.program) > 0
	}
	if len(f.known) >= maxProfiles {
		clear(f.known) // those in use come back
	}
	select {
	case f.wanted <- k:
		f.known[k] = &filter{profile: profile}
	default: // Run has enough to do, or takes none: another time
	}
	return nil, false
}

// tellsFilters is there where the kernel tells filters: with
// CONFIG_CHECKPOINT_RESTORE.
const tellsFilters = "/proc/sys/kernel/ns_last_pid"

// Run finds out the filters of profiles until ctx ends.
func (f *Filters) Run(ctx context.Context) error {
	f.sweep(ctx)
	if _, err := os.Stat(tellsFilters); err != nil {
		f.cfg.Logger.Info("the OCI runtime starts the commands that are executed in containers with a seccomp profile: the kernel has no CONFIG_CHECKPOINT_RESTORE")
		<-ctx.Done() // with nobody to take them, profiles stay unknown
		return nil
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case k := <-f.wanted:
			f.find(ctx, k)
		}
	}
}

func (f *Filters) find(ctx context.Context, k key) {
	f.mu.Lock()
	wanted := f.known[k]
	f.mu.Unlock()
	if wanted == nil || wanted.profile == nil { // forgotten meanwhile, or asked for twice
		return
	}
	program, err := f.read(ctx, wanted.profile)
	f.mu.Lock()
	wanted.profile, wanted.program = nil, program
	if err != nil {
		wanted.failed = time.Now()
	}
	f.mu.Unlock()
	if err != nil && ctx.Err() == nil {
		f.cfg.Logger.Warn("the OCI runtime starts the commands that are executed in containers with this seccomp profile: its filter cannot be had",
			"profile", fmt.Sprintf("%x", k[:6]), "reason", err)
	}
}

// read has the runtime make a container and asks the kernel for its filter.
func (f *Filters) read(ctx context.Context, profile json.RawMessage) (_ []byte, err error) {
	name := namePrefix + strings.ToLower(rand.Text()[:10])
	bundle := filepath.Join(f.cfg.Dir, name)
	defer func() { err = errors.Join(err, f.remove(context.WithoutCancel(ctx), name)) }()
	if err := writeBundle(bundle, name, profile, f.cfg.SystemdCgroup); err != nil {
		return nil, err
	}
	failpoint.Hit("cri/seccomp-bundle-written")
	pidFile := filepath.Join(bundle, "pid")
	if err := f.command(ctx, bundle, "create", "--bundle", bundle, "--pid-file", pidFile, name); err != nil {
		return nil, err
	}
	failpoint.Hit("cri/seccomp-container-created")
	text, err := os.ReadFile(pidFile)
	if err != nil {
		return nil, fmt.Errorf("read the container's process ID: %w", err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return nil, fmt.Errorf("parse %s: %w", pidFile, err)
	}
	return filterOf(pid)
}

// writeBundle makes a container that is never started. Its program is one that
// there is: the root is empty, and may be where nothing can be executed.
// no_new_privs is off, so that the filter is installed before the start.
func writeBundle(dir, name string, profile json.RawMessage, systemd bool) error {
	const program = "/proc/self/exe"
	root := filepath.Join(dir, "rootfs")
	if err := os.MkdirAll(root, 0o700); err != nil {
		return fmt.Errorf("make a bundle: %w", err)
	}
	s := specs.Spec{
		Version: specs.Version,
		Root:    &specs.Root{Path: root},
		Process: &specs.Process{Args: []string{program}, Cwd: "/", Capabilities: &specs.LinuxCapabilities{}},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc"},
			// The runtime makes devices there, and the bundle is where they do not work.
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs"},
		},
		Linux: &specs.Linux{
			CgroupsPath: cgroupOf(name),
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.MountNamespace}, {Type: specs.PIDNamespace}, {Type: specs.IPCNamespace}, {Type: specs.NetworkNamespace},
			},
		},
	}
	if systemd {
		s.Linux.CgroupsPath = systemdSlice + ":" + systemdPrefix + ":" + name
	}
	if err := json.Unmarshal(profile, &s.Linux.Seccomp); err != nil {
		return fmt.Errorf("parse the profile: %w", err)
	}
	text, err := json.Marshal(s)
	if err != nil {
		return fmt.Errorf("make a bundle: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "config.json"), text, 0o600); err != nil {
		return fmt.Errorf("make a bundle: %w", err)
	}
	return nil
}

// runtimeRoot is where the runtime has its state of these containers.
func (f *Filters) runtimeRoot() string { return filepath.Join(f.cfg.Dir, "runtime") }

// command runs one command of the runtime. dir takes its log.
func (f *Filters) command(ctx context.Context, dir string, args ...string) error {
	if f.cfg.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, f.cfg.Timeout)
		defer cancel()
	}
	log := filepath.Join(dir, "runtime.log")
	all := []string{"--root", f.runtimeRoot(), "--log", log}
	if f.cfg.SystemdCgroup {
		all = append(all, "--systemd-cgroup")
	}
	// Its streams are /dev/null: the container's process inherits them. It dies
	// with the daemon: what it would go on to make would be nobody's.
	cmd := exec.CommandContext(ctx, f.cfg.Runtime, append(all, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	if err := cmd.Run(); err != nil {
		said, _ := os.ReadFile(log) // more than the exit code, if there is anything
		return fmt.Errorf("%s %s: %w: %s", filepath.Base(f.cfg.Runtime), args[0], err, strings.TrimSpace(string(said)))
	}
	return nil
}

const (
	systemdSlice  = "system.slice"
	systemdPrefix = "berth"
)

func cgroupOf(name string) string { return "/" + name }

// remove leaves nothing of a container. The bundle goes last: as long as it is
// there, the next daemon tries.
func (f *Filters) remove(ctx context.Context, name string) error {
	bundle := filepath.Join(f.cfg.Dir, name)
	if _, err := os.Stat(filepath.Join(f.runtimeRoot(), name)); err == nil {
		if err := f.command(ctx, bundle, "delete", "--force", name); err != nil {
			return err
		}
	}
	failpoint.Hit("cri/seccomp-container-deleted")
	// A runtime that was killed may have made a cgroup and not yet a record of it.
	path := cgroupOf(name)
	if f.cfg.SystemdCgroup {
		path = "/" + systemdSlice + "/" + systemdPrefix + "-" + name + ".scope"
	}
	if err := errors.Join(f.cfg.Cgroups.Kill(path), f.cfg.Cgroups.Remove(path)); err != nil {
		return err
	}
	if err := os.RemoveAll(bundle); err != nil {
		return fmt.Errorf("remove a bundle: %w", err)
	}
	return nil
}

// sweep removes what an earlier daemon has left.
func (f *Filters) sweep(ctx context.Context) {
	left, err := filepath.Glob(filepath.Join(f.cfg.Dir, namePrefix+"*"))
	if err != nil { // the directory's name is a bad pattern
		f.cfg.Logger.Warn("look for what an earlier daemon has left", "dir", f.cfg.Dir, "reason", err)
	}
	for _, bundle := range left {
		if err := f.remove(ctx, filepath.Base(bundle)); err != nil {
			f.cfg.Logger.Warn("remove what an earlier daemon has left of a container", "bundle", bundle, "reason", err)
		}
	}
}
