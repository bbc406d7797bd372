// Package vm runs the scenarios about cgroups on a host with systemd and
// cgroup v2 only, in a virtual machine, with both cgroup drivers.
//
// The machine comes from a script, $BERTH_VM or ../shared/vm/vm.sh beside the
// repository, that knows two commands:
//
//	prepare WORK PACKAGES      once: makes what run needs; the machine has these
//	                           Debian packages, with commas between
//	run WORK PAYLOAD SECONDS   boots, copies PAYLOAD to /payload, runs its
//	                           run.sh there as root, prints the console, and
//	                           exits with run.sh's status
package vm

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// work keeps the machine's kernel and disk from one run to the next.
const work = "/var/tmp/berth-vm-crun"

// packages are those that tests look for: another OCI runtime.
const packages = "crun"

// suites are the tests that look at cgroups, and those of what cgroup v2 and an
// older kernel do otherwise: device rules, user namespaces.
var suites = []struct{ pkg, tests string }{
	{"pods", "^(TestResources|TestClaimOutlivesItsPod)$"},
	{"cri", "^(TestStatistics|TestMetricStatistics|TestUpdates|TestRuntimeHandlers|TestSecurityFields|TestUserNamespaces)$"},
}

func TestCgroupScenariosOnCgroup2WithSystemd(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root, to make the virtual machine's disk")
	}
	script := script(t)
	bin := os.Getenv("BERTH_TEST_BIN")
	if bin == "" {
		t.Fatal("BERTH_TEST_BIN is not set: run make test")
	}
	if err := os.MkdirAll(work, 0o755); err != nil {
		t.Fatal(err)
	}
	run(t, 15*time.Minute, script, "prepare", work, packages)
	payload := t.TempDir()
	for _, suite := range suites {
		build := exec.Command("go", "test", "-c", "-o", filepath.Join(payload, suite.pkg+".test"), "../"+suite.pkg)
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			t.Fatalf("build tests/%s: %v\n%s", suite.pkg, err, out)
		}
	}
	for _, name := range []string{"berth", "berth-shim", "berth-cni", "runc", "tests"} {
		run(t, 5*time.Minute, "cp", "-a", filepath.Join(bin, name), payload+"/")
	}
	for _, driver := range []string{"cgroupfs", "systemd"} {
		t.Run(driver, func(t *testing.T) {
			lines := []string{
				"#!/bin/sh",
				"export BERTH_TEST_BIN=/payload BERTH_TEST_CGROUP_DRIVER=" + driver,
				"stat -f -c 'cgroups are %T' /sys/fs/cgroup",
				"failed=0",
			}
			for _, suite := range suites {
				lines = append(lines, fmt.Sprintf("./%s.test -test.v -test.parallel=4 -test.timeout=25m -test.run='%s' || failed=1", suite.pkg, suite.tests))
			}
			runScript := strings.Join(append(lines, "exit $failed", ""), "\n")
			if err := os.WriteFile(filepath.Join(payload, "run.sh"), []byte(runScript), 0o755); err != nil {
				t.Fatal(err)
			}
			out := run(t, 30*time.Minute, script, "run", work, payload, "1700")
			// A machine without the right cgroups would pass for the wrong reason.
			if !strings.Contains(out, "cgroups are cgroup2fs") {
				t.Errorf("the machine has no pure cgroup v2:\n%s", out)
			}
			for line := range strings.Lines(out) {
				if strings.Contains(line, "--- ") {
					t.Log(strings.TrimRight(line, "\r\n"))
				}
			}
		})
	}
}

func script(t *testing.T) string {
	t.Helper()
	if path := os.Getenv("BERTH_VM"); path != "" {
		if _, err := os.Stat(path); err != nil {
			t.Fatalf("BERTH_VM: %v", err)
		}
		return path
	}
	path, err := filepath.Abs("../../../shared/vm/vm.sh")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Skipf("no virtual machine to test cgroup v2 on: set BERTH_VM to a script that boots one (%v)", err)
	}
	return path
}

func run(t *testing.T, timeout time.Duration, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.WaitDelay = 10 * time.Second
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}
