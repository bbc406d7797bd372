// Package host looks up, once, what the kernel and the daemon's own process
// allow containers to have.
package host

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/moby/sys/capability"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/berth-io/berth/cri/spec"
)

// Probe reads the facts that specifications depend on. The caller knows how
// cgroups are mounted and who makes them.
func Probe(unified, systemdCgroup bool) (spec.Host, error) {
	h := spec.Host{Unified: unified, SystemdCgroup: systemdCgroup}
	caps, err := capabilities()
	if err != nil {
		return h, err
	}
	h.Capabilities = caps
	if h.MinOOMScoreAdj, err = minOOMScoreAdj(); err != nil {
		return h, err
	}
	if unified {
		h.Swap = true // memory.swap.max is there since Linux 4.5 with any memory controller
		h.Hugetlb = hasController("hugetlb")
		h.CgroupOptions = cgroupOptions()
	} else {
		h.Swap = exists("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes")
		h.Hugetlb = exists("/sys/fs/cgroup/hugetlb/cgroup.procs")
	}
	h.RecursiveReadOnly = mountSetattr()
	h.NoX32 = noX32()
	h.SELinux = HasSELinux()
	if on, err := os.ReadFile("/sys/module/apparmor/parameters/enabled"); err == nil && bytes.HasPrefix(on, []byte("Y")) {
		h.AppArmor = AppArmorProfile
	}
	return h, nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func hasController(name string) bool {
	list, err := os.ReadFile("/sys/fs/cgroup/cgroup.controllers")
	if err != nil {
		return false
	}
	for _, c := range strings.Fields(string(list)) {
		if c == name {
			return true
		}
	}
	return false
}

// capabilities lists what the daemon has: it can pass on nothing else.
func capabilities() ([]string, error) {
	self, err := capability.NewPid2(0)
	if err != nil {
		return nil, fmt.Errorf("read the daemon's capabilities: %w", err)
	}
	if err := self.Load(); err != nil {
		return nil, fmt.Errorf("read the daemon's capabilities: %w", err)
	}
	var names []string
	for _, c := range capability.ListKnown() {
		if self.Get(capability.PERMITTED, c) && self.Get(capability.BOUNDING, c) {
			names = append(names, "CAP_"+strings.ToUpper(c.String()))
		}
	}
	return names, nil
}

// minOOMScoreAdj: without CAP_SYS_RESOURCE a process can lower the score of a
// child only to the lowest its own was set to with that capability.
func minOOMScoreAdj() (int, error) {
	const lowest = -1000
	self, err := capability.NewPid2(0)
	if err != nil {
		return 0, fmt.Errorf("read the daemon's capabilities: %w", err)
	}
	if err := self.Load(); err != nil {
		return 0, fmt.Errorf("read the daemon's capabilities: %w", err)
	}
	if self.Get(capability.EFFECTIVE, capability.CAP_SYS_RESOURCE) {
		return lowest, nil
	}
	data, err := os.ReadFile("/proc/self/oom_score_adj")
	if err != nil {
		return 0, fmt.Errorf("read the daemon's OOM score: %w", err)
	}
	adj, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil {
		return 0, fmt.Errorf("read the daemon's OOM score: %w", err)
	}
	return adj, nil
}

// cgroupOptions are the options of the host's cgroup mount that a mount in a
// container would otherwise turn off for all.
func cgroupOptions() []string {
	mounts, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter("/sys/fs/cgroup"))
	if err != nil || len(mounts) == 0 {
		return nil
	}
	var keep []string
	for _, o := range strings.Split(mounts[0].VFSOptions, ",") {
		if o == "nsdelegate" || o == "memory_recursiveprot" {
			keep = append(keep, o)
		}
	}
	return keep
}

// mountSetattr asks for nothing, which a kernel before 5.12 does not know.
func mountSetattr() bool {
	err := unix.MountSetattr(-1, "/", unix.AT_RECURSIVE, &unix.MountAttr{})
	return !errors.Is(err, unix.ENOSYS)
}

// BootID tells one boot from the next.
func BootID() (string, error) {
	data, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read the boot ID: %w", err)
	}
	return strings.TrimSpace(string(data)), nil
}

// maxAccounts bounds /etc/passwd and /etc/group of an image.
const maxAccounts = 4 << 20

// Accounts reads an image's accounts inside its root file system: a symbolic
// link in the image, absolute or not, leads nowhere else.
func Accounts(rootfs string) (spec.Accounts, error) {
	var a spec.Accounts
	root, err := unix.Open(rootfs, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return a, fmt.Errorf("open the root file system %s: %w", rootfs, err)
	}
	defer unix.Close(root)
	if a.Passwd, err = readInside(root, "etc/passwd"); err != nil {
		return a, err
	}
	a.Group, err = readInside(root, "etc/group")
	return a, err
}

func readInside(root int, name string) ([]byte, error) {
	fd, err := unix.Openat2(root, name, &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_CLOEXEC | unix.O_NONBLOCK | unix.O_NOCTTY,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open /%s of the image: %w", name, err)
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("look at /%s of the image: %w", name, err)
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("/%s of the image is not a regular file", name)
	}
	if info.Size() > maxAccounts {
		return nil, fmt.Errorf("/%s of the image has %d bytes: at most %d are read", name, info.Size(), maxAccounts)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxAccounts))
	if err != nil {
		return nil, fmt.Errorf("read /%s of the image: %w", name, err)
	}
	return data, nil
}

// Propagation tells how the mount that holds path propagates.
func Propagation(path string) (shared, slave bool, err error) {
	mounts, err := mountinfo.GetMounts(mountinfo.ParentsFilter(path))
	if err != nil {
		return false, false, fmt.Errorf("find the mount of %s: %w", path, err)
	}
	var holder *mountinfo.Info
	for _, m := range mounts {
		if holder == nil || len(m.Mountpoint) >= len(holder.Mountpoint) {
			holder = m
		}
	}
	if holder == nil {
		return false, false, fmt.Errorf("find the mount of %s: %w", path, fs.ErrNotExist)
	}
	for _, o := range strings.Fields(holder.Optional) {
		shared = shared || strings.HasPrefix(o, "shared:")
		slave = slave || strings.HasPrefix(o, "master:")
	}
	return shared, slave, nil
}

// Resolve follows the symbolic links of a path on the host.
func Resolve(path string) (string, error) {
	resolved, err := filepath.EvalSymlinks(path)
	if err != nil {
		return "", fmt.Errorf("resolve %s: %w", path, err)
	}
	return resolved, nil
}
