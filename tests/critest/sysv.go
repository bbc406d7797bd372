package main

import (
	"os"
	"os/exec"
	"strings"

	"github.com/berth-io/berth/tests/harness"
)

// The specs of the host's IPC namespace make shared memory segments there and
// leave them. They are removed here: made while critest ran, of the size that
// it asks for, used by nobody.

const segmentSize = "1048576"

// sharedMemory lists the segments of this IPC namespace by identifier, those of
// that size which no process has attached.
func sharedMemory(t harness.TB) map[string]bool {
	t.Helper()
	data, err := os.ReadFile("/proc/sysvipc/shm")
	if err != nil {
		t.Fatalf("list shared memory: %v", err)
	}
	ids := map[string]bool{}
	for line := range strings.Lines(string(data)) {
		// key shmid perms size cpid lpid nattch ...
		if f := strings.Fields(line); len(f) > 6 && f[3] == segmentSize && f[6] == "0" {
			ids[f[1]] = true
		}
	}
	return ids
}

func removeSharedMemory(t harness.TB, before map[string]bool) {
	t.Helper()
	for id := range sharedMemory(t) {
		if before[id] {
			continue
		}
		if out, err := exec.Command("ipcrm", "-m", id).CombinedOutput(); err != nil {
			t.Errorf("remove shared memory segment %s that critest left: %v: %s", id, err, out)
		}
	}
}
