package spec

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/moby/sys/capability"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berth-io/berth/cri/shim/enter"
)

// Running is the part of a container's OCI configuration that concerns the
// processes which are started in it beside its own.
type Running struct {
	Process *specs.Process `json:"process"`
	Linux   struct {
		Namespaces []specs.LinuxNamespace `json:"namespaces"`
		// Seccomp is the profile's text, empty where there is none.
		Seccomp json.RawMessage `json:"seccomp"`

		Personality  json.RawMessage `json:"personality"`
		IntelRdt     json.RawMessage `json:"intelRdt"`
		MemoryPolicy json.RawMessage `json:"memoryPolicy"`
		TimeOffsets  json.RawMessage `json:"timeOffsets"`
	} `json:"linux"`
}

// ParseRunning reads an OCI configuration.
func ParseRunning(config []byte) (Running, error) {
	var r Running
	if err := json.Unmarshal(config, &r); err != nil {
		return r, fmt.Errorf("parse the OCI configuration: %w", err)
	}
	if r.Process == nil {
		return r, errors.New("the OCI configuration has no process")
	}
	return r, nil
}

// ErrByRuntime says that a process has to be started by the OCI runtime.
var ErrByRuntime = errors.New("only the OCI runtime can start it")

// Enter is how process p of container id is started without the OCI runtime.
// filter is what its seccomp profile comes to, nil where it has none. The error
// is ErrByRuntime where something is asked for that package enter does not do:
// terminals, which nobody waits for, and what only NRI plugins set.
func (r Running) Enter(id string, p specs.Process, filter []byte) (*enter.Spec, error) {
	if p.Terminal || p.Capabilities == nil || p.Scheduler != nil || p.IOPriority != nil || p.ExecCPUAffinity != nil {
		return nil, ErrByRuntime
	}
	for _, rare := range []json.RawMessage{r.Linux.Personality, r.Linux.IntelRdt, r.Linux.MemoryPolicy, r.Linux.TimeOffsets} {
		if isSet(rare) {
			return nil, ErrByRuntime
		}
	}
	s := &enter.Spec{
		Args: p.Args, Env: p.Env, Cwd: p.Cwd,
		UID: p.User.UID, GID: p.User.GID, Groups: p.User.AdditionalGids, Umask: p.User.Umask,
		OOMScore: p.OOMScoreAdj, NoNewPrivileges: p.NoNewPrivileges,
		Keyring:  "_ses." + id, // where runc has put the container's first process
		SELinux:  p.SelinuxLabel,
		AppArmor: p.ApparmorProfile,
		Capabilities: enter.Capabilities{
			Bounding: bits(p.Capabilities.Bounding), Effective: bits(p.Capabilities.Effective), Permitted: bits(p.Capabilities.Permitted),
			Inheritable: bits(p.Capabilities.Inheritable), Ambient: bits(p.Capabilities.Ambient),
		},
		UserNamespace: slices.ContainsFunc(r.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == specs.UserNamespace }),
	}
	for _, l := range p.Rlimits {
		resource, ok := resources[l.Type]
		if !ok {
			return nil, ErrByRuntime
		}
		s.Rlimits = append(s.Rlimits, enter.Rlimit{Resource: resource, Soft: l.Soft, Hard: l.Hard})
	}
	if r.HasSeccomp() {
		flags, err := seccompFlags(r.Linux.Seccomp)
		if err != nil || len(filter) == 0 {
			return nil, errors.Join(ErrByRuntime, err)
		}
		s.Seccomp, s.SeccompFlags = filter, flags
	}
	return s, nil
}

// HasSeccomp tells whether the container has a seccomp profile.
func (r Running) HasSeccomp() bool { return isSet(r.Linux.Seccomp) }

func isSet(text json.RawMessage) bool { return len(text) > 0 && string(text) != "null" }

// seccompFlags are those of seccomp(2) as runc sets them. A profile that asks
// somebody (SCMP_ACT_NOTIFY) needs the runtime to introduce the two.
func seccompFlags(profile []byte) (flags uintptr, err error) {
	var p struct {
		Flags            []specs.LinuxSeccompFlag `json:"flags"`
		ListenerPath     string                   `json:"listenerPath"`
		ListenerMetadata string                   `json:"listenerMetadata"`
		Syscalls         []struct {
			Action specs.LinuxSeccompAction `json:"action"`
		} `json:"syscalls"`
	}
	if err := json.Unmarshal(profile, &p); err != nil {
		return 0, fmt.Errorf("parse the seccomp profile: %w", err)
	}
	if p.ListenerPath != "" || p.ListenerMetadata != "" {
		return 0, ErrByRuntime
	}
	for _, call := range p.Syscalls {
		if call.Action == specs.ActNotify {
			return 0, ErrByRuntime
		}
	}
	if p.Flags == nil {
		return unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW, nil // runc's default
	}
	for _, flag := range p.Flags {
		switch flag {
		case specs.LinuxSeccompFlagLog:
			flags |= unix.SECCOMP_FILTER_FLAG_LOG
		case specs.LinuxSeccompFlagSpecAllow:
			flags |= unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW
		case "SECCOMP_FILTER_FLAG_TSYNC": // of all threads; the process has one
		default:
			return 0, ErrByRuntime
		}
	}
	return flags, nil
}

// bits has one for each capability that this build knows. Others the OCI runtime
// leaves out too.
func bits(names []string) (set uint64) {
	for _, name := range names {
		if n, ok := capabilityNumbers[name]; ok {
			set |= 1 << n
		}
	}
	return set
}

var capabilityNumbers = func() map[string]uint {
	all := map[string]uint{}
	for _, c := range capability.ListKnown() {
		all[named([]string{c.String()})[0]] = uint(c)
	}
	return all
}()

// resources are the kernel's numbers of getrlimit(2).
var resources = map[string]int{
	"RLIMIT_AS": unix.RLIMIT_AS, "RLIMIT_CORE": unix.RLIMIT_CORE, "RLIMIT_CPU": unix.RLIMIT_CPU, "RLIMIT_DATA": unix.RLIMIT_DATA,
	"RLIMIT_FSIZE": unix.RLIMIT_FSIZE, "RLIMIT_LOCKS": unix.RLIMIT_LOCKS, "RLIMIT_MEMLOCK": unix.RLIMIT_MEMLOCK,
	"RLIMIT_MSGQUEUE": unix.RLIMIT_MSGQUEUE, "RLIMIT_NICE": unix.RLIMIT_NICE, "RLIMIT_NOFILE": unix.RLIMIT_NOFILE,
	"RLIMIT_NPROC": unix.RLIMIT_NPROC, "RLIMIT_RSS": unix.RLIMIT_RSS, "RLIMIT_RTPRIO": unix.RLIMIT_RTPRIO,
	"RLIMIT_RTTIME": unix.RLIMIT_RTTIME, "RLIMIT_SIGPENDING": unix.RLIMIT_SIGPENDING, "RLIMIT_STACK": unix.RLIMIT_STACK,
}
