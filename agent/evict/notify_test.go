package evict

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/berth-io/berth/agent/usage"
)

func TestAThresholdIsCrossedAtTheUsageThatLeavesIt(t *testing.T) {
	page := int64(os.Getpagesize())
	for name, test := range map[string]struct {
		t    Threshold
		m    usage.Memory
		want int64
	}{
		"an amount":              {Threshold{Value: Value{Amount: 100 * mi}}, usage.Memory{Capacity: gi, Usage: 500 * mi, WorkingSet: 300 * mi}, 924*mi + 200*mi},
		"a part":                 {Threshold{Value: Value{Fraction: 0.5}}, usage.Memory{Capacity: gi, Usage: 0, WorkingSet: 0}, gi / 2},
		"whole pages":            {Threshold{Value: Value{Amount: 100*mi + 1}}, usage.Memory{Capacity: gi}, 924*mi - page},
		"more than the capacity": {Threshold{Value: Value{Amount: 2 * gi}}, usage.Memory{Capacity: gi}, 0},
	} {
		if got := usageAt(test.t, test.m); got != test.want {
			t.Errorf("%s: %d, want %d", name, got, test.want)
		}
	}
}

func TestPressureOnMemoryIsListenedForUntilTheEnd(t *testing.T) {
	if _, err := os.Stat("/proc/pressure/memory"); err != nil {
		t.Skip("this kernel does not tell of pressure")
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- (&stalls{path: "/proc/pressure/memory"}).Run(ctx, func() {}) }()
	cancel()
	if err := <-done; err != nil && !strings.Contains(err.Error(), "trigger") {
		t.Error(err)
	}
}

func TestAFileWithoutTriggersIsAnError(t *testing.T) {
	n := NewNotifier(NotifyConfig{Cgroups: usage.Hierarchy{Unified: true}}).(*stalls)
	n.path = filepath.Join(t.TempDir(), "none")
	if err := n.Run(t.Context(), func() {}); err == nil || !strings.Contains(err.Error(), "none") {
		t.Errorf("error %v, want one that names the file", err)
	}
}

// A process takes memory in a cgroup of its own, and the kernel calls.
func TestTheKernelTellsWhenAThresholdIsCrossed(t *testing.T) {
	h, err := usage.FindHierarchy()
	if err != nil || h.Unified {
		t.Skip("needs the memory controller of cgroup v1")
	}
	name := fmt.Sprintf("/berth-test-evict-%d", os.Getpid())
	dir := filepath.Join(h.Mount, name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Skip("needs to make a cgroup: ", err)
	}
	t.Cleanup(func() { removeCgroup(t, dir) })
	n := NewNotifier(NotifyConfig{Cgroups: h, PodsCgroup: name, Thresholds: []Threshold{{Signal: AllocatableMemoryAvailable, Value: Value{Amount: 90 * mi}}}})
	ctx, cancel := context.WithCancel(t.Context())
	poked := make(chan struct{}, 1)
	done := make(chan error, 1)
	go func() {
		done <- n.Run(ctx, func() {
			select {
			case poked <- struct{}{}:
			default:
			}
		})
	}()
	// Above 10 Mi used, less than 90 of 100 are available.
	if err := n.Arm(usage.Node{Pods: usage.Memory{Capacity: 100 * mi}}); err != nil {
		t.Fatal(err)
	}
	eat := exec.CommandContext(ctx, "sh", "-c", "read go; head -c 40000000 /dev/zero | tail >/dev/null")
	in, err := eat.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := eat.Start(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(eat.Process.Pid)), 0); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(in)
	select {
	case <-poked:
	case <-time.After(30 * time.Second):
		t.Error("the kernel did not call")
	}
	if err := eat.Wait(); err != nil {
		t.Error(err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if err := n.Arm(usage.Node{Pods: usage.Memory{Capacity: gi}}); err != nil {
		t.Errorf("armed after the end: %v", err)
	}
}

// removeCgroup tries until the kernel has let go of the last process.
func removeCgroup(t *testing.T, dir string) {
	t.Helper()
	var err error
	for range 100 {
		if err = os.Remove(dir); err == nil {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Errorf("the cgroup of the test stays: %v", err)
}
