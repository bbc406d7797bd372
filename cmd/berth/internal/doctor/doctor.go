// Package doctor checks whether a host can run pods, and says what to do where
// it cannot. It changes nothing.
package doctor

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/cgroups"
	"golang.org/x/sys/unix"

	"github.com/berth-io/berth/cmd/berth/internal/config"
)

// Verdict is the outcome of a check.
type Verdict string

const (
	OK   Verdict = "ok"
	Warn Verdict = "warn" // pods run, something is missing
	Fail Verdict = "fail" // pods do not run
)

// Finding is what one check found.
type Finding struct {
	Check   string
	Verdict Verdict
	Detail  string
	Advice  string // what to do; empty when nothing is to be done
}

// Examine runs all checks.
func Examine(c config.Config) []Finding {
	checks := []struct {
		name string
		run  func(config.Config) (Verdict, string, string)
	}{
		{"root", root},
		{"kernel", kernel},
		{"file systems", fileSystems},
		{"namespaces", namespaces},
		{"cgroups", cgroupTree},
		{"capabilities", capabilities},
		{"runtime", runtimeBinary},
		{"shim", shimBinary},
		{"packet filter", packetFilter},
		{"network", network},
		{"disk", disk},
		{"inotify", inotify},
		{"other agents", others},
		{"daemon", daemon},
	}
	var out []Finding
	for _, check := range checks {
		verdict, detail, advice := check.run(c)
		out = append(out, Finding{Check: check.name, Verdict: verdict, Detail: detail, Advice: advice})
	}
	return out
}

func root(config.Config) (Verdict, string, string) {
	if os.Geteuid() != 0 {
		return Fail, fmt.Sprintf("this is user %d", os.Geteuid()), "run it with sudo: what follows may be wrong without"
	}
	return OK, "yes", ""
}

// kernel: 5.8 has what volumes need (openat2 with RESOLVE_IN_ROOT, statx's
// mount attributes) and pidfds that can be waited for.
func kernel(config.Config) (Verdict, string, string) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return Fail, err.Error(), ""
	}
	release := unix.ByteSliceToString(u.Release[:])
	var major, minor int
	if _, err := fmt.Sscanf(release, "%d.%d", &major, &minor); err != nil {
		return Warn, release, "the version cannot be read; 5.8 or newer is needed"
	}
	if major < 5 || major == 5 && minor < 8 {
		return Fail, release, "Linux 5.8 or newer is needed"
	}
	return OK, release, ""
}

func fileSystems(config.Config) (Verdict, string, string) {
	data, err := os.ReadFile("/proc/filesystems")
	if err != nil {
		return Fail, err.Error(), ""
	}
	var missing []string
	for _, fs := range []string{"overlay", "tmpfs", "mqueue"} {
		if !strings.Contains(string(data), "\t"+fs+"\n") {
			missing = append(missing, fs)
		}
	}
	if len(missing) > 0 {
		return Fail, "no " + strings.Join(missing, ", "), "modprobe " + strings.Join(missing, " ") + ", or a kernel that has them"
	}
	return OK, "overlay, tmpfs, mqueue", ""
}

func namespaces(config.Config) (Verdict, string, string) {
	var missing []string
	for _, ns := range []string{"mnt", "pid", "net", "ipc", "uts", "cgroup"} {
		if _, err := os.Stat("/proc/self/ns/" + ns); err != nil {
			missing = append(missing, ns)
		}
	}
	if len(missing) > 0 {
		return Fail, "no " + strings.Join(missing, ", "), "a kernel with these namespaces is needed"
	}
	return OK, "mnt, pid, net, ipc, uts, cgroup", ""
}

func cgroupTree(c config.Config) (Verdict, string, string) {
	kind := "v1"
	controllers := "/proc/cgroups"
	if cgroups.IsCgroup2UnifiedMode() {
		kind, controllers = "v2", "/sys/fs/cgroup/cgroup.controllers"
	} else if cgroups.IsCgroup2HybridMode() {
		kind = "v1 (hybrid)"
	}
	data, err := os.ReadFile(controllers)
	if err != nil {
		return Fail, err.Error(), "mount the cgroup file system"
	}
	var missing []string
	for _, name := range []string{"cpu", "memory", "pids", "cpuset"} {
		if !strings.Contains(string(data), name) {
			missing = append(missing, name)
		}
	}
	if len(missing) > 0 {
		return Fail, kind + " without " + strings.Join(missing, ", "), "enable the controllers on the kernel's command line (cgroup_enable=memory, ...)"
	}
	if c.CgroupDriver == "systemd" {
		if _, err := os.Stat("/run/systemd/system"); err != nil {
			return Fail, kind + ", driver systemd", "this host was not booted with systemd: set cgroupDriver: cgroupfs"
		}
	}
	return OK, kind + ", driver " + c.CgroupDriver, ""
}

func capabilities(config.Config) (Verdict, string, string) {
	const sysResource = 24
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return Warn, err.Error(), ""
	}
	if data[0].Effective&(1<<sysResource) == 0 {
		return Warn, "no CAP_SYS_RESOURCE", "containers cannot be protected from the OOM killer (oom_score_adj is clamped) nor get higher limits"
	}
	return OK, "all that are needed", ""
}

func runtimeBinary(c config.Config) (Verdict, string, string) {
	out, err := exec.Command(c.RuntimeBinary, "--version").Output()
	if err != nil {
		return Fail, fmt.Sprintf("%s: %v", c.RuntimeBinary, err), "install runc, or set runtimeBinary"
	}
	first, rest, _ := strings.Cut(string(out), "\n")
	if strings.HasPrefix(first, "runc") && !strings.Contains(rest, "libseccomp") {
		return Warn, first, "this runc was built without seccomp: containers with a seccomp profile do not start"
	}
	return OK, first + " (" + c.RuntimeBinary + ")", ""
}

func shimBinary(c config.Config) (Verdict, string, string) {
	if err := unix.Access(c.ShimBinary, unix.X_OK); err != nil {
		return Fail, fmt.Sprintf("%s: %v", c.ShimBinary, err), "install berth-shim beside berth, or set shimBinary"
	}
	return OK, c.ShimBinary, ""
}

func packetFilter(config.Config) (Verdict, string, string) {
	for _, tool := range []string{"nft", "iptables"} {
		if path, err := exec.LookPath(tool); err == nil {
			return OK, path, ""
		}
	}
	return Warn, "neither nft nor iptables", "install nftables: without it pods reach only this host and each other, and have no host ports"
}

func network(c config.Config) (Verdict, string, string) {
	lists, err := filepath.Glob(filepath.Join(c.CNIConfDir, "*.conf*"))
	if err != nil {
		return Fail, err.Error(), ""
	}
	if len(lists) > 0 {
		return OK, "CNI configuration " + lists[0], ""
	}
	cidrs := c.Network.PodCIDRs
	if len(cidrs) == 0 {
		cidrs = []string{config.DefaultPodCIDR}
	}
	return OK, fmt.Sprintf("Berth's own: %s on %s", strings.Join(cidrs, ", "), c.Network.Bridge), ""
}

// disk: below 10 % free nothing good will happen; the kubelet evicts there.
func disk(c config.Config) (Verdict, string, string) {
	dir := c.RootDir
	for !reachable(dir) {
		dir = filepath.Dir(dir)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return Warn, err.Error(), ""
	}
	free := 100 * st.Bavail / max(st.Blocks, 1)
	detail := fmt.Sprintf("%d%% free at %s", free, dir)
	if free < 10 {
		return Warn, detail, "make room: images and logs need it"
	}
	return OK, detail, ""
}

func reachable(dir string) bool {
	_, err := os.Stat(dir)
	return err == nil || dir == "/"
}

func inotify(config.Config) (Verdict, string, string) {
	data, err := os.ReadFile("/proc/sys/fs/inotify/max_user_instances")
	if err != nil {
		return Warn, err.Error(), ""
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil {
		return Warn, err.Error(), ""
	}
	if n < 128 {
		return Warn, fmt.Sprintf("%d instances", n), "sysctl fs.inotify.max_user_instances=8192"
	}
	return OK, fmt.Sprintf("%d instances", n), ""
}

// others looks for programs that want the same cgroups, ports and directories.
func others(config.Config) (Verdict, string, string) {
	comms, err := filepath.Glob("/proc/[0-9]*/comm")
	if err != nil {
		return Warn, err.Error(), ""
	}
	var found []string
	for _, path := range comms {
		data, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended meanwhile
		}
		switch name := string(bytes.TrimSpace(data)); name {
		case "kubelet", "kube-proxy":
			found = append(found, name)
		}
	}
	if len(found) > 0 {
		return Warn, strings.Join(found, ", ") + " running", "two agents on one host fight over pods: stop one, or give Berth roles: [cri]"
	}
	return OK, "none", ""
}

func daemon(c config.Config) (Verdict, string, string) {
	conn, err := net.DialTimeout("unix", c.APISocket, time.Second)
	if err != nil {
		if errors.Is(err, os.ErrPermission) {
			return Warn, "its socket is for root", "run this with sudo"
		}
		return Warn, "not running", "start it: berth node, or systemctl start berth"
	}
	defer conn.Close()
	if _, err := fmt.Fprintf(conn, "GET /healthz HTTP/1.0\r\nHost: berth\r\n\r\n"); err != nil {
		return Fail, err.Error(), "look at its log: journalctl -u berth"
	}
	if err := conn.SetReadDeadline(time.Now().Add(2 * time.Second)); err != nil {
		return Fail, err.Error(), ""
	}
	status, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil || !strings.Contains(status, " 200 ") {
		return Fail, fmt.Sprintf("it does not answer on %s", c.APISocket), "look at its log: journalctl -u berth"
	}
	return OK, "answers on " + c.APISocket, ""
}
