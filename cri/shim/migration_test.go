package shim

import "testing"

func TestTheDaemonMovesItselfWhereItIs(t *testing.T) {
	for name, test := range map[string]struct {
		text    string
		procs   string
		unified bool
	}{
		"version 2": {
			text:  "0::/system.slice/berth.service\n",
			procs: "/sys/fs/cgroup/system.slice/berth.service/cgroup.procs", unified: true,
		},
		"version 2, the root": {text: "0::/\n", procs: "/sys/fs/cgroup/cgroup.procs", unified: true},
		"version 1": {
			text:  "12:pids:/a\n5:memory:/system.slice/berth.service\n1:name=systemd:/x\n",
			procs: "/sys/fs/cgroup/memory/system.slice/berth.service/cgroup.procs",
		},
		"hybrid":                          {text: "5:memory:/\n1:name=systemd:/\n0::/x\n", procs: "/sys/fs/cgroup/memory/cgroup.procs"},
		"version 1 without memory":        {text: "2:pids:/a\n1:name=systemd:/\n0::/\n"},
		"several controllers in one tree": {text: "2:cpu,memory:/a\n"},
		"a name with a colon":             {text: "3:memory:/a:/b\n", procs: "/sys/fs/cgroup/memory/a:/b/cgroup.procs"},
		"nothing":                         {},
		"not a list of cgroups":           {text: "memory\n"},
	} {
		t.Run(name, func(t *testing.T) {
			procs, unified := ownProcs(test.text)
			if procs != test.procs || unified != test.unified {
				t.Errorf("ownProcs = %q, %v, not %q, %v", procs, unified, test.procs, test.unified)
			}
		})
	}
}
