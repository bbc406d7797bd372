package pods

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berth-io/berth/tests/harness"
)

// group reads the cgroup of one process, on cgroup v1 and v2, through the
// host's mounts.
type group struct {
	v2   bool
	path map[string]string // by controller; "" is v2's
}

func groupOf(t *testing.T, pid int) group {
	t.Helper()
	g := group{path: map[string]string{}}
	for line := range strings.Lines(hostFile(t, fmt.Sprintf("/proc/%d/cgroup", pid))) {
		if f := strings.SplitN(strings.TrimSpace(line), ":", 3); len(f) == 3 {
			for _, c := range strings.Split(f[1], ",") {
				g.path[c] = f[2]
			}
		}
	}
	g.v2 = cgroup2(t)
	return g
}

func cgroup2(t *testing.T) bool {
	t.Helper()
	var fs unix.Statfs_t
	if err := unix.Statfs("/sys/fs/cgroup", &fs); err != nil {
		t.Fatal(err)
	}
	return fs.Type == unix.CGROUP2_SUPER_MAGIC
}

// dir of the group, or of its n-th parent.
func (g group) dir(controller string, parents int) string {
	path := g.path[controller]
	if g.v2 {
		path = g.path[""]
	}
	for range parents {
		path = filepath.Dir(path)
	}
	if g.v2 {
		return "/sys/fs/cgroup" + path
	}
	return "/sys/fs/cgroup/" + controller + path
}

// limits are the settings of one level in the words of cgroup v1, which can be
// computed from both.
type limits struct {
	memory int64 // bytes, -1 without
	quota  int64 // µs per 100 ms, -1 without
	shares int64 // cpu.shares; on v2 the weight they become
}

func (g group) limits(t *testing.T, parents int) limits {
	t.Helper()
	if !g.v2 {
		l := limits{
			memory: number(t, g.dir("memory", parents)+"/memory.limit_in_bytes"),
			quota:  number(t, g.dir("cpu", parents)+"/cpu.cfs_quota_us"),
			shares: number(t, g.dir("cpu", parents)+"/cpu.shares"),
		}
		if l.memory > 1<<60 {
			l.memory = -1
		}
		return l
	}
	l := limits{memory: number(t, g.dir("", parents)+"/memory.max"), shares: number(t, g.dir("", parents)+"/cpu.weight")}
	quota, _, _ := strings.Cut(hostFile(t, g.dir("", parents)+"/cpu.max"), " ")
	if quota == "max" {
		l.quota = -1
		return l
	}
	n, err := strconv.ParseInt(quota, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	l.quota = n
	return l
}

// shares as this host's hierarchy shows them.
func (g group) shares(v1 int64, v2 int64) int64 {
	if g.v2 {
		return v2
	}
	return v1
}

func number(t *testing.T, file string) int64 {
	t.Helper()
	s := strings.TrimSpace(hostFile(t, file))
	if s == "max" {
		return -1
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	return n
}

// hostPid finds the process of a container by an argument that no other has.
func hostPid(t *testing.T, n *harness.Node, argument string) int {
	t.Helper()
	pid := 0
	harness.Eventually(t, harness.PodTimeout, "a process with argument "+argument, func() string {
		files, err := filepath.Glob("/proc/[0-9]*/cmdline")
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			data, err := os.ReadFile(file)
			if err != nil || !strings.HasSuffix(string(data), "\x00"+argument+"\x00") {
				continue
			}
			// runc init has the arguments too for a moment.
			if exe, _ := os.Readlink(filepath.Dir(file) + "/exe"); strings.HasPrefix(filepath.Base(exe), "runc") {
				continue
			}
			pid, err = strconv.Atoi(filepath.Base(filepath.Dir(file)))
			if err == nil {
				return ""
			}
		}
		return "there is none"
	})
	return pid
}
