// Package vm runs the scenarios about cgroups on a host with systemd and
// cgroup v2 only, in a virtual machine, with both cgroup drivers, and has such a
// machine become a node of a cluster.
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

	"github.com/berth-io/berth/tests/cluster"
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
	script, bin := prepare(t)
	t.Parallel() // a machine has one processor
	payload := t.TempDir()
	for _, suite := range suites {
		build(t, payload, suite.pkg)
	}
	// How commands are started without the runtime differs between the two versions.
	buildIn(t, payload, "shim", "../../cri/shim")
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
			if driver == "cgroupfs" { // the shim's tests know no other
				lines = append(lines, "BERTH_SHIM=/payload/berth-shim BERTH_RUNC=/payload/runc ./shim.test -test.v -test.timeout=5m -test.run='Entered|Entering' || failed=1")
			}
			runScript := strings.Join(append(lines, "exit $failed", ""), "\n")
			boot(t, script, payload, runScript, 28*time.Minute)
		})
	}
}

// nodeScript runs twice, since the machine is booted again. What was copied need
// not be copied a second time.
const nodeScript = `#!/bin/sh
export BERTH_TEST_HOST=1 BERTH_TEST_BIN=/payload
stat -f -c 'cgroups are %T' /sys/fs/cgroup
if [ ! -e /var/lib/berth-test-host.json ]; then
	rm -rf /host/peers /host/tests /host/berth* /host/runc
	./host.test -test.v -test.run='^TestNode$' || exit 1
	systemctl reboot
	sleep 120; exit 1
fi
exec ./host.test -test.v -test.run='^TestNodeAfterReboot$'
`

// TestAMachineIsANode runs tests/host, with a control plane beside the node.
func TestAMachineIsANode(t *testing.T) {
	cluster.Need(t)
	script, bin := prepare(t)
	t.Parallel()
	payload := t.TempDir()
	build(t, payload, "host")
	for _, name := range []string{"berth", "berth-shim", "runc", "tests"} {
		run(t, time.Minute, "cp", "-a", filepath.Join(bin, name), payload+"/")
	}
	run(t, time.Minute, "cp", "-a", "../../systemd/units", payload+"/")
	peers := filepath.Join(payload, "peers")
	if err := os.Mkdir(peers, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{cluster.Etcd, cluster.APIServer, cluster.ControllerManager, cluster.Scheduler, "kubeadm"} {
		run(t, time.Minute, "cp", "-a", filepath.Join(bin, "peers", name), peers+"/")
	}
	out := boot(t, script, payload, nodeScript, 9*time.Minute)
	if !strings.Contains(out, "--- PASS: TestNodeAfterReboot ") {
		t.Errorf("the machine was not booted again:\n%s", out)
	}
}

// prepare returns the machine's script and the directory of the binaries.
func prepare(t *testing.T) (script, bin string) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root, to make the virtual machine's disk")
	}
	script = findScript(t)
	if bin = os.Getenv("BERTH_TEST_BIN"); bin == "" {
		t.Fatal("BERTH_TEST_BIN is not set: run make test")
	}
	if err := os.MkdirAll(work, 0o755); err != nil {
		t.Fatal(err)
	}
	run(t, 15*time.Minute, script, "prepare", work, packages)
	return script, bin
}

// build makes the test binary of a package beside this one.
func build(t *testing.T, payload, pkg string) {
	t.Helper()
	buildIn(t, payload, pkg, "../"+pkg)
}

func buildIn(t *testing.T, payload, name, dir string) {
	t.Helper()
	cmd := exec.Command("go", "test", "-c", "-o", filepath.Join(payload, name+".test"), dir)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the tests in %s: %v\n%s", dir, err, out)
	}
}

// boot runs a script in the machine and returns what the console said.
func boot(t *testing.T, script, payload, runScript string, patience time.Duration) string {
	t.Helper()
	if err := os.WriteFile(filepath.Join(payload, "run.sh"), []byte(runScript), 0o755); err != nil {
		t.Fatal(err)
	}
	out := run(t, patience+time.Minute, script, "run", work, payload, fmt.Sprint(patience.Seconds()))
	// A machine without the right cgroups would pass for the wrong reason.
	if !strings.Contains(out, "cgroups are cgroup2fs") {
		t.Errorf("the machine has no pure cgroup v2:\n%s", out)
	}
	for line := range strings.Lines(out) {
		if strings.Contains(line, "--- ") {
			t.Log(strings.TrimRight(line, "\r\n"))
		}
	}
	return out
}

func findScript(t *testing.T) string {
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
