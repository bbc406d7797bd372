package config

import (
	"os"
	"path/filepath"
	"testing"
)

func TestMistakesAreNamedByTheirKey(t *testing.T) {
	for _, c := range []struct{ content, want string }{
		{"nodename: x\n", `unknown field "nodename"`},
		{"kubeletDir: run\n", `kubeletDir: "run" must be an absolute path`},
		{"cgroupDriver: cgroup\n", `cgroupDriver: "cgroup" must be cgroupfs or systemd`},
		{"roles: [agent, cry]\n", `roles[1]: "cry" must be one of agent, cri, network`},
		{"roles: []\n", `roles: must name at least one of agent, cri, network`},
		{"network: {podCIDRs: [10.0.0.0/33]}\n", `network.podCIDRs[0]: "10.0.0.0/33" is not a subnet such as 10.85.0.0/16`},
		{"clusterDNS: [dns]\n", `clusterDNS[0]: "dns" is not an IP address`},
		{"logLevel: loud\n", `logLevel: "loud" must be debug, info, warn or error`},
		{"runtimes: {crun: {path: crun}}\n", `runtimes.crun.path: "crun" must be an absolute path`},
		{"runtimes: {crun: {}}\n", `runtimes.crun.path: "" must be an absolute path`},
		{"runtimes: {crun: {path: /usr/bin/crun, rot: /run/crun}}\n", `unknown field "runtimes.crun.rot"`},
		{"runtimes: {Crun_1: {path: /usr/bin/crun}}\n", `runtimes: "Crun_1" must be a name as a RuntimeClass has it: lower case letters, digits and -, at most 63`},
		{"runtimes: {crun: {path: /usr/bin/crun, timeout: 1ms}}\n", `runtimes.crun.timeout: 1ms must be at least 1s`},
		{"runtimes: {a: {path: /a, root: /run/x}, b: {path: /b, root: /run/x}}\n", `runtimes.b.root: /run/x is also that of a: a runtime takes what is there for its own`},
		{"defaultRuntime: gvisor\n", `defaultRuntime: "gvisor" must be runc or one of runtimes`},
		{"nri: {socketPath: nri.sock}\n", `nri.socketPath: "nri.sock" must be an absolute path`},
		{"nri: {requestTimeout: 1us}\n", `nri.requestTimeout: 1µs must be at least 1ms`},
		{"nri: {disable: true}\n", `unknown field "nri.disable"`},
		{"selinux: {enabled: true}\n", `unknown field "selinux.enabled"`},
		{"selinux: {categoryRange: 1}\n", `selinux.categoryRange: 1 must be between 2 and 1024`},
		{"defaultUlimits: [nofile]\n", `defaultUlimits[0]: "nofile" must be NAME=SOFT or NAME=SOFT:HARD, such as nofile=1024:524288: invalid ulimit argument: nofile`},
		{"defaultUlimits: [core=0, files=1]\n", `defaultUlimits[1]: "files=1" must be NAME=SOFT or NAME=SOFT:HARD, such as nofile=1024:524288: invalid ulimit type: files`},
		{"defaultUlimits: [\"nofile=20:10\"]\n", `defaultUlimits[0]: "nofile=20:10" must be NAME=SOFT or NAME=SOFT:HARD, such as nofile=1024:524288: ulimit soft limit must be less than or equal to hard limit: 20 > 10`},
		{"defaultUlimits: [nofile=-2]\n", `defaultUlimits[0]: "nofile=-2": a limit is a number, or -1 for none`},
		{"defaultUlimits: [core=0, core=1]\n", `defaultUlimits[1]: "core=1": core has a limit already`},
		{"rescan: 1ms\n", `rescan: 1ms must be at least 1s`},
		{"network: {bridge: averyveryverylongname}\n", `network.bridge: "averyveryverylongname" is longer than the 15 characters of an interface name`},
	} {
		path := filepath.Join(t.TempDir(), "berth.yaml")
		if err := os.WriteFile(path, []byte(c.content), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := Load(path)
		if err == nil {
			t.Errorf("%q was accepted", c.content)
			continue
		}
		if got, want := err.Error(), path+": "+c.want; got != want {
			t.Errorf("%q:\n got %s\nwant %s", c.content, got, want)
		}
	}
}

func TestSocketsFollowTheRunDirectory(t *testing.T) {
	path := filepath.Join(t.TempDir(), "berth.yaml")
	if err := os.WriteFile(path, []byte("runDir: /run/other\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	if c.CRISocket != "/run/other/cri.sock" || c.APISocket != "/run/other/berth.sock" {
		t.Errorf("sockets %s, %s", c.CRISocket, c.APISocket)
	}
}

func TestAFileThatWasAskedForMustExist(t *testing.T) {
	if _, err := Load(filepath.Join(t.TempDir(), "none.yaml")); err == nil {
		t.Error("a missing file was accepted")
	}
}
