package enter

import (
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// child is all that the forked process needs, in the kernel's formats. It must
// allocate nothing and call nothing that does.
type child struct {
	clone  cloneArgs
	report int // the pipe for a failure

	tasks   []int
	rlimits []Rlimit
	later   uintptr // namespaces to enter
	keyring *byte
	umask   int // -1: as it is

	bounding uint64
	caps     [2]unix.CapUserData
	ambient  uint64
	uid, gid uintptr
	groups   []uint32
	cwd      *byte
	nnp      bool

	filter      unix.SockFprog
	filterFlags uintptr

	path *byte
	argv []*byte
	env  []*byte

	// What the kernel writes to, or reads as it is.
	stat      unix.Stat_t
	all       [maxCPUs / 64]uint64
	where     [unix.PathMax]byte
	none      [16]uint64 // no signals; the default action
	action    [16]uint64 // of a signal
	capHeader unix.CapUserHeader
	step      step
	said      failure
}

// cloneArgs is struct clone_args of clone3(2).
type cloneArgs struct {
	flags, pidFD, childTID, parentTID, exitSignal, stack, stackSize, tls, setTID, setTIDSize, cgroup uint64
}

// maxFilter is the kernel's bound on a filter, in instructions (BPF_MAXINSNS).
const maxFilter = 4096

// maxCPUs is more than any kernel knows.
const maxCPUs = 64 * 1024

func prepare(s Spec, places cgroups, files descriptors) (*child, error) {
	if unsafe.Sizeof(uintptr(0)) != 8 {
		return nil, errors.New("on this architecture system calls for users and limits have other formats")
	}
	if len(s.Args) == 0 || s.Args[0] == "" {
		return nil, errNotFound
	}
	env, err := files.environment(s.Env, s.UID)
	if err != nil {
		return nil, err
	}
	path, err := programAt(s.Args[0], env)
	if err != nil {
		return nil, err
	}
	c := &child{
		clone: cloneArgs{exitSignal: uint64(unix.SIGCHLD)},
		tasks: places.tasks, rlimits: s.Rlimits, later: s.Namespaces & later,
		umask: -1, bounding: s.Capabilities.Bounding, ambient: s.Capabilities.Ambient,
		uid: uintptr(s.UID), gid: uintptr(s.GID), groups: s.Groups, nnp: s.NoNewPrivileges,
		filterFlags: s.SeccompFlags,
		capHeader:   unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3},
	}
	for i := range c.all {
		c.all[i] = ^uint64(0)
	}
	if places.dir >= 0 {
		c.clone.flags |= unix.CLONE_INTO_CGROUP
		c.clone.cgroup = uint64(places.dir)
	}
	if s.Umask != nil {
		c.umask = int(*s.Umask)
	}
	for i := range c.caps {
		shift := 32 * i
		c.caps[i] = unix.CapUserData{
			Effective:   uint32(s.Capabilities.Effective >> shift),
			Permitted:   uint32(s.Capabilities.Permitted >> shift),
			Inheritable: uint32(s.Capabilities.Inheritable >> shift),
		}
	}
	if err := c.setFilter(s.Seccomp); err != nil {
		return nil, err
	}
	return c, c.setStrings(s, path, env)
}

func (c *child) setFilter(program []byte) error {
	const size = int(unsafe.Sizeof(unix.SockFilter{}))
	if len(program)%size != 0 || len(program)/size > maxFilter {
		return fmt.Errorf("a filter of %d bytes is none", len(program))
	}
	if len(program) == 0 {
		return nil
	}
	instructions := make([]unix.SockFilter, len(program)/size)
	copy(unsafe.Slice((*byte)(unsafe.Pointer(&instructions[0])), len(program)), program)
	c.filter = unix.SockFprog{Len: uint16(len(instructions)), Filter: &instructions[0]}
	return nil
}

func (c *child) setStrings(s Spec, path string, env []string) (err error) {
	for _, t := range []struct {
		to   **byte
		text string
	}{{&c.keyring, s.Keyring}, {&c.cwd, s.Cwd}, {&c.path, path}} {
		if *t.to, err = unix.BytePtrFromString(t.text); err != nil {
			return fmt.Errorf("%q: %w", t.text, err)
		}
	}
	if c.argv, err = pointers(s.Args); err != nil {
		return fmt.Errorf("arguments: %w", err)
	}
	if c.env, err = pointers(env); err != nil {
		return fmt.Errorf("environment: %w", err)
	}
	return nil
}

// pointers ends with a nil, as argv and envp do.
func pointers(texts []string) ([]*byte, error) {
	all := make([]*byte, len(texts)+1)
	for i, text := range texts {
		p, err := unix.BytePtrFromString(text)
		if err != nil {
			return nil, err
		}
		all[i] = p
	}
	return all, nil
}
