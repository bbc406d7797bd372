package ns

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// ipcSysctls are the files of /proc/sys that belong to an IPC namespace; those
// below fs/mqueue do as well (ipc_namespaces(7)).
var ipcSysctls = map[string]bool{
	"kernel/msgmax":          true,
	"kernel/msgmnb":          true,
	"kernel/msgmni":          true,
	"kernel/sem":             true,
	"kernel/shmall":          true,
	"kernel/shmmax":          true,
	"kernel/shmmni":          true,
	"kernel/shm_rmid_forced": true,
}

// SysctlKind tells which kind of namespace a sysctl belongs to; ok is false
// for one that would change the whole node. The name may have its parts
// separated by dots or by slashes.
func SysctlKind(name string) (kind Kind, ok bool) {
	path := slashed(name)
	switch {
	case ipcSysctls[path], strings.HasPrefix(path, "fs/mqueue/"):
		return IPC, true
	case strings.HasPrefix(path, "net/"):
		return Net, true
	case path == "kernel/domainname":
		return UTS, true
	}
	return "", false
}

// Check refuses, before anything is made, a sysctl that the new namespaces do
// not contain: writing it would change the node.
func Check(spec Spec) error {
	for _, name := range slices.Sorted(maps.Keys(spec.Sysctls)) {
		kind, ok := SysctlKind(name)
		if !ok {
			return fmt.Errorf("sysctl %s is not namespaced: it cannot be set for a pod", name)
		}
		if !slices.Contains(spec.Kinds, kind) {
			return fmt.Errorf("sysctl %s cannot be set: the pod uses the %s namespace of the node", name, kind)
		}
		for _, part := range strings.Split(slashed(name), "/") {
			if part == "" || part == "." || part == ".." {
				return fmt.Errorf("sysctl %q is not a valid name", name)
			}
		}
	}
	return nil
}

// writeSysctls must run inside the namespaces: /proc/sys shows a thread the
// settings of the namespaces it is in.
func writeSysctls(sysctls map[string]string) error {
	for _, name := range slices.Sorted(maps.Keys(sysctls)) {
		path := filepath.Join("/proc/sys", slashed(name))
		if err := os.WriteFile(path, []byte(sysctls[name]), 0); err != nil {
			return fmt.Errorf("set sysctl %s to %q: %w", name, sysctls[name], err)
		}
	}
	return nil
}

// slashed is the name as a path. As sysctl(8) has it, the first separator
// decides: net.ipv4.conf.eth0/100.x has dots for separators and a slash for
// the dot in an interface's name, and the other way round.
func slashed(name string) string {
	i := strings.IndexAny(name, "./")
	if i < 0 || name[i] == '/' {
		return name
	}
	return strings.Map(func(r rune) rune {
		switch r {
		case '.':
			return '/'
		case '/':
			return '.'
		}
		return r
	}, name)
}
