package host

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

const cgroups = "/sys/fs/cgroup"

// slice is the kubelet's name for a pod's cgroup, below the mount point.
func slice(pod *corev1.Pod) string {
	uid := strings.ReplaceAll(string(pod.UID), "-", "_")
	if pod.Status.QOSClass == corev1.PodQOSGuaranteed {
		return "kubepods.slice/kubepods-pod" + uid + ".slice"
	}
	class := "kubepods-" + strings.ToLower(string(pod.Status.QOSClass))
	return fmt.Sprintf("kubepods.slice/%s.slice/%s-pod%s.slice", class, class, uid)
}

// scope is a container's cgroup.
func scope(pod *corev1.Pod, container string) string {
	return slice(pod) + "/berth-" + containerID(pod, container) + ".scope"
}

func containerID(pod *corev1.Pod, container string) string {
	for _, s := range pod.Status.ContainerStatuses {
		if s.Name == container {
			return strings.TrimPrefix(s.ContainerID, "berth://")
		}
	}
	return ""
}

// values are the settings of a cgroup, by file.
type values map[string]string

// differs says which settings of a cgroup are others.
func (want values) differs(group string) string {
	var wrong []string
	for _, file := range slices.Sorted(maps.Keys(want)) {
		data, err := os.ReadFile(filepath.Join(cgroups, group, file))
		if err != nil {
			wrong = append(wrong, err.Error())
		} else if got := strings.TrimSpace(string(data)); got != want[file] {
			wrong = append(wrong, fmt.Sprintf("%s is %s, want %s", file, got, want[file]))
		}
	}
	if len(wrong) == 0 {
		return ""
	}
	return group + ": " + strings.Join(wrong, "; ")
}

// settings are files that somebody sets, of all cgroups of pods and of those
// that the node reserves for others.
func settings(t *testing.T) map[string]string {
	t.Helper()
	all := map[string]string{}
	files := []string{"cpu.weight", "cpu.max", "cpuset.cpus", "memory.min", "memory.low", "memory.high", "memory.max", "memory.swap.max", "memory.oom.group", "pids.max"}
	for _, top := range []string{"kubepods.slice", "system.slice", "kube.slice"} {
		err := filepath.WalkDir(filepath.Join(cgroups, top), func(path string, d os.DirEntry, err error) error {
			if err != nil || !d.IsDir() {
				return err
			}
			for _, f := range files {
				if data, err := os.ReadFile(filepath.Join(path, f)); err == nil {
					all[filepath.Join(path, f)] = strings.TrimSpace(string(data))
				}
			}
			if top != "kubepods.slice" {
				return filepath.SkipDir // units of the system
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return all
}

// pids are a container's processes.
func pids(t *testing.T, group string) []string {
	t.Helper()
	return strings.Fields(read(t, filepath.Join(cgroups, group, "cgroup.procs")))
}

// meminfo is a line of /proc/meminfo in bytes.
func meminfo(t *testing.T, name string) int64 {
	t.Helper()
	for line := range strings.Lines(read(t, "/proc/meminfo")) {
		if rest, ok := strings.CutPrefix(line, name+":"); ok {
			n, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return n << 10
		}
	}
	t.Fatalf("/proc/meminfo has no %s", name)
	return 0
}

func number(t *testing.T, file string) int64 {
	t.Helper()
	n, err := strconv.ParseInt(read(t, file), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}
