package spec

import (
	"encoding/json"
	"flag"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-io/berth/cri/selinux"
)

var update = flag.Bool("update", false, "write the golden files")

var accounts = Accounts{
	Passwd: []byte("root:x:0:0:root:/root:/bin/sh\nredis:x:100:101:redis:/:/bin/false\nbad line\n"),
	Group:  []byte("root:x:0:root\nredis:x:101:\nlogs:x:200:redis,other\ntape:x:201:redis\n"),
}

func testHost() Host {
	return Host{
		Unified: true, Swap: true, Hugetlb: true, RecursiveReadOnly: true, MinOOMScoreAdj: -1000,
		Capabilities:  []string{"CAP_CHOWN", "CAP_KILL", "CAP_SYS_ADMIN"},
		CgroupOptions: []string{"nsdelegate"},
	}
}

func testInput() Input {
	return Input{
		ID: "c1", SandboxID: "s1",
		Sandbox: &runtimeapi.PodSandboxConfig{Metadata: &runtimeapi.PodSandboxMetadata{Name: "web", Namespace: "default", Uid: "u1"}},
		Container: &runtimeapi.ContainerConfig{
			Metadata: &runtimeapi.ContainerMetadata{Name: "redis"},
			Image:    &runtimeapi.ImageSpec{Image: "redis:7"},
			Linux: &runtimeapi.LinuxContainerConfig{
				Resources: &runtimeapi.LinuxContainerResources{
					CpuShares: 512, CpuQuota: 50000, CpuPeriod: 100000, MemoryLimitInBytes: 64 << 20, OomScoreAdj: 900,
					HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB", Limit: 4 << 20}},
					Unified:        map[string]string{"memory.high": "60000000"},
				},
				SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
					NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER},
					MaskedPaths:      []string{"/proc/kcore"}, ReadonlyPaths: []string{"/proc/sys"},
					NoNewPrivs: true,
				},
			},
		},
		Image: ocispec.ImageConfig{
			User: "redis", Entrypoint: []string{"/entry"}, Cmd: []string{"redis-server"},
			Env: []string{"PATH=/usr/bin:/bin", "REDIS_VERSION=7"}, WorkingDir: "/data",
		},
		Hostname: "web", Rootfs: "/run/berth/containers/c1/rootfs", Accounts: accounts,
		Namespaces: map[specs.LinuxNamespaceType]string{
			specs.NetworkNamespace: "/run/berth/ns/s1/net", specs.IPCNamespace: "/run/berth/ns/s1/ipc", specs.UTSNamespace: "/run/berth/ns/s1/uts",
		},
		OwnPID: true,
		PodMounts: []Mount{
			{Source: "/run/berth/sandboxes/s1/hosts", Destination: "/etc/hosts"},
			{Source: "/run/berth/sandboxes/s1/shm", Destination: "/dev/shm"},
		},
		CgroupsPath: "/kubepods/podu1/c1",
	}
}

func security(in Input) *runtimeapi.LinuxContainerSecurityContext {
	return in.Container.Linux.SecurityContext
}

func TestWholeSpecificationsAreAsWritten(t *testing.T) {
	for name, change := range map[string]func(*Input, *Host){
		"plain": func(*Input, *Host) {},
		"labelled-by-selinux-with-rlimits": func(in *Input, h *Host) {
			h.SELinux = true
			in.SELinux = selinux.Label{Process: "system_u:system_r:container_t:s0:c1,c2", File: "system_u:object_r:container_file_t:s0:c1,c2"}
			security(*in).SelinuxOptions = &runtimeapi.SELinuxOption{Level: "s0:c1,c2"}
			h.Rlimits = []specs.POSIXRlimit{
				{Type: "RLIMIT_NOFILE", Soft: 1024, Hard: 524288}, {Type: "RLIMIT_CORE", Soft: math.MaxUint64, Hard: math.MaxUint64},
			}
		},
		"privileged-on-cgroup-v1": func(in *Input, h *Host) {
			h.Unified, h.Swap, h.MinOOMScoreAdj = false, false, 950
			security(*in).Privileged = true
			kvm := specs.LinuxDevice{Path: "/dev/kvm", Type: "c", Major: 10, Minor: 232}
			in.Devices = []specs.LinuxDevice{kvm}
		},
		"host-everything-with-mounts": func(in *Input, h *Host) {
			in.Namespaces, in.OwnPID = nil, false
			in.Container.Tty = true
			in.Container.Command, in.Container.Args = []string{"sh"}, []string{"-c", "true"}
			in.Container.Envs = []*runtimeapi.KeyValue{{Key: "A", Value: []byte("1")}, {Key: "REDIS_VERSION", Value: []byte("8")}}
			in.Mounts = []Mount{
				{Source: "/srv/sub", Destination: "/data/sub/deep", Propagation: runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER, Slave: true},
				{Source: "/srv", Destination: "/data", ReadOnly: true, RecursiveReadOnly: true},
				{Source: "/tmp/hosts", Destination: "/etc/hosts", Propagation: runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL, Shared: true},
			}
			sc := security(*in)
			sc.RunAsUser, sc.RunAsGroup = &runtimeapi.Int64Value{Value: 1000}, &runtimeapi.Int64Value{Value: 3000}
			sc.SupplementalGroups = []int64{4000, 2000}
			sc.ReadonlyRootfs = true
			sc.Capabilities = &runtimeapi.Capability{DropCapabilities: []string{"ALL"}, AddCapabilities: []string{"NET_BIND_SERVICE"}}
		},
	} {
		t.Run(name, func(t *testing.T) {
			in, host := testInput(), testHost()
			change(&in, &host)
			got, _, err := Build(in, host)
			if err != nil {
				t.Fatal(err)
			}
			text, err := json.MarshalIndent(got, "", "  ")
			if err != nil {
				t.Fatal(err)
			}
			golden := filepath.Join("testdata", name+".json")
			if *update {
				if err := os.MkdirAll("testdata", 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(golden, append(text, '\n'), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if strings.TrimSpace(string(want)) != string(text) {
				t.Errorf("differs from %s; run with -update and look at the difference:\n%s", golden, text)
			}
		})
	}
}

func TestCommandAndArgumentsFollowTheRulesOfTheCRI(t *testing.T) {
	for _, c := range []struct {
		name                              string
		command, args, entrypoint, cmd, w []string
	}{
		{"the image's alone", nil, nil, []string{"/e"}, []string{"c"}, []string{"/e", "c"}},
		{"args replace the image's cmd", nil, []string{"a"}, []string{"/e"}, []string{"c"}, []string{"/e", "a"}},
		{"a command drops entrypoint and cmd", []string{"/x"}, nil, []string{"/e"}, []string{"c"}, []string{"/x"}},
		{"command and args", []string{"/x"}, []string{"a"}, []string{"/e"}, []string{"c"}, []string{"/x", "a"}},
		{"cmd without entrypoint", nil, nil, nil, []string{"c"}, []string{"c"}},
		{"nothing to run", nil, nil, nil, nil, nil},
		{"an empty command", []string{""}, nil, nil, nil, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := processArgs(&runtimeapi.ContainerConfig{Command: c.command, Args: c.args}, ocispec.ImageConfig{Entrypoint: c.entrypoint, Cmd: c.cmd})
			if (err != nil) != (c.w == nil) || !slices.Equal(got, c.w) {
				t.Errorf("got %q, %v; want %q", got, err, c.w)
			}
		})
	}
}

func TestUsersAndGroups(t *testing.T) {
	id := func(n int64) *runtimeapi.Int64Value { return &runtimeapi.Int64Value{Value: n} }
	type sc = runtimeapi.LinuxContainerSecurityContext
	for _, c := range []struct {
		name, image string
		sc          *sc
		uid, gid    int64
		groups      []int64
		err         string
	}{
		{"nobody says anything: root, with root's groups", "", &sc{}, 0, 0, []int64{0}, ""},
		{"the image's user by name", "redis", &sc{}, 100, 101, []int64{101, 200, 201}, ""},
		{"the image's user by number has the same groups", "100", &sc{}, 100, 101, []int64{101, 200, 201}, ""},
		{"the image's user and group", "redis:logs", &sc{}, 100, 200, []int64{200, 201}, ""},
		{"numbers that the image does not know", "5000:6000", &sc{}, 5000, 6000, []int64{6000}, ""},
		{"the request's user drops the image's group", "redis:logs", &sc{RunAsUser: id(5000)}, 5000, 0, []int64{0}, ""},
		{"the request's user by name", "", &sc{RunAsUsername: "redis"}, 100, 101, []int64{101, 200, 201}, ""},
		{"the request's user and group", "redis", &sc{RunAsUser: id(100), RunAsGroup: id(7)}, 100, 7, []int64{7, 200, 201}, ""},
		{"supplemental groups are merged", "redis", &sc{SupplementalGroups: []int64{9, 200}}, 100, 101, []int64{9, 101, 200, 201}, ""},
		{"strict leaves the image's memberships out", "redis", &sc{SupplementalGroups: []int64{9}, SupplementalGroupsPolicy: runtimeapi.SupplementalGroupsPolicy_Strict}, 100, 101, []int64{9, 101}, ""},
		{"a name that is not there", "ghost", &sc{}, 0, 0, nil, `user "ghost" is not in /etc/passwd of the image`},
		{"a group that is not there", "redis:ghosts", &sc{}, 0, 0, nil, `group "ghosts" is not in /etc/group of the image`},
		{"a group without a user", "redis", &sc{RunAsGroup: id(7)}, 0, 0, nil, "linux.security_context.run_as_group: it needs run_as_user or run_as_username beside it"},
		{"a negative number", "", &sc{RunAsUser: id(-1)}, 0, 0, nil, "user or group ID -1 is out of range"},
		{"a number that means do not change", "", &sc{RunAsUser: id(1<<32 - 1)}, 0, 0, nil, "user or group ID 4294967295 is out of range"},
		{"an unknown policy", "", &sc{SupplementalGroupsPolicy: 7}, 0, 0, nil, "linux.security_context.supplemental_groups_policy: 7 is not known"},
	} {
		t.Run(c.name, func(t *testing.T) {
			u, err := ResolveUser(c.sc, c.image, accounts)
			if c.err != "" {
				if err == nil || err.Error() != c.err {
					t.Errorf("error is %v, want %s", err, c.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if u.Uid != c.uid || u.Gid != c.gid || !slices.Equal(u.SupplementalGroups, c.groups) {
				t.Errorf("got %v", u)
			}
		})
	}
}

func TestCapabilities(t *testing.T) {
	all := []string{"CAP_CHOWN", "CAP_KILL", "CAP_SYS_ADMIN"}
	type caps = runtimeapi.Capability
	for _, c := range []struct {
		name            string
		asked           *caps
		privileged      bool
		has, hasNot     []string
		ambient, number int
	}{
		{"the default", nil, false, []string{"CAP_NET_RAW", "CAP_CHOWN"}, []string{"CAP_SYS_ADMIN"}, 0, 14},
		{"one more, in any spelling", &caps{AddCapabilities: []string{"sys_admin", "CAP_SYS_TIME"}}, false, []string{"CAP_SYS_ADMIN", "CAP_SYS_TIME"}, nil, 0, 16},
		{"one less", &caps{DropCapabilities: []string{"KILL"}}, false, nil, []string{"CAP_KILL"}, 0, 13},
		{"all", &caps{AddCapabilities: []string{"ALL"}}, false, all, nil, 0, 3},
		{"all but one", &caps{AddCapabilities: []string{"ALL"}, DropCapabilities: []string{"KILL"}}, false, nil, []string{"CAP_KILL"}, 0, 2},
		{"none", &caps{DropCapabilities: []string{"ALL"}}, false, nil, []string{"CAP_CHOWN"}, 0, 0},
		{"only one", &caps{DropCapabilities: []string{"ALL"}, AddCapabilities: []string{"KILL"}}, false, []string{"CAP_KILL"}, nil, 0, 1},
		{"an ambient one", &caps{AddAmbientCapabilities: []string{"NET_BIND_SERVICE"}}, false, nil, nil, 1, 14},
		{"privileged", &caps{DropCapabilities: []string{"ALL"}}, true, all, nil, 0, 3},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := capabilities(&runtimeapi.LinuxContainerSecurityContext{Capabilities: c.asked, Privileged: c.privileged}, all)
			if len(got.Bounding) != c.number || len(got.Effective) != c.number || len(got.Permitted) != c.number {
				t.Errorf("has %v", got.Bounding)
			}
			if len(got.Ambient) != c.ambient || len(got.Inheritable) != c.ambient {
				t.Errorf("ambient %v, inheritable %v", got.Ambient, got.Inheritable)
			}
			for _, want := range c.has {
				if !slices.Contains(got.Effective, want) {
					t.Errorf("%s is missing", want)
				}
			}
			for _, not := range c.hasNot {
				if slices.Contains(got.Bounding, not) {
					t.Errorf("%s is there", not)
				}
			}
		})
	}
}

func TestALabelIsRefusedWhereNothingIsLabelled(t *testing.T) {
	in, host := testInput(), testHost()
	security(in).SelinuxOptions = &runtimeapi.SELinuxOption{Level: "s0:c1"}
	if _, _, err := Build(in, host); err != nil {
		t.Errorf("without SELinux in the kernel: %v", err)
	}
	host.SELinux = true
	_, _, err := Build(in, host)
	if err == nil || err.Error() != "linux.security_context.selinux_options: this node does not label containers: set selinux.enable in berth.yaml" {
		t.Errorf("error is %v", err)
	}
	security(in).Privileged = true
	if _, _, err := Build(in, host); err != nil {
		t.Errorf("privileged: %v", err)
	}
}

func TestSeccompAndAppArmorProfiles(t *testing.T) {
	profile := func(kind runtimeapi.SecurityProfile_ProfileType, ref string) *runtimeapi.SecurityProfile {
		return &runtimeapi.SecurityProfile{ProfileType: kind, LocalhostRef: ref}
	}
	build := func(change func(sc *runtimeapi.LinuxContainerSecurityContext, in *Input, h *Host)) (*specs.Spec, error) {
		in, host := testInput(), testHost()
		change(security(in), &in, &host)
		s, _, err := Build(in, host)
		return s, err
	}
	s, err := build(func(sc *runtimeapi.LinuxContainerSecurityContext, in *Input, h *Host) {
		sc.Seccomp = profile(runtimeapi.SecurityProfile_RuntimeDefault, "")
		sc.Apparmor = profile(runtimeapi.SecurityProfile_Unconfined, "")
	})
	if err != nil || s.Linux.Seccomp == nil || s.Linux.Seccomp.DefaultAction != specs.ActErrno || s.Process.ApparmorProfile != "" {
		t.Errorf("runtime default without AppArmor: %v", err)
	}
	all := s.Linux.Seccomp
	s, err = build(func(sc *runtimeapi.LinuxContainerSecurityContext, _ *Input, h *Host) { h.AppArmor = "berth-default" })
	if err != nil || s.Process.ApparmorProfile != "berth-default" {
		t.Errorf("nothing asked for where there is AppArmor: %v", err)
	}
	s, err = build(func(sc *runtimeapi.LinuxContainerSecurityContext, in *Input, h *Host) {
		h.NoX32 = true
		sc.Seccomp = profile(runtimeapi.SecurityProfile_RuntimeDefault, "")
	})
	if err != nil || slices.Contains(s.Linux.Seccomp.Architectures, specs.ArchX32) ||
		len(s.Linux.Seccomp.Architectures) != len(slices.DeleteFunc(slices.Clone(all.Architectures), func(a specs.Arch) bool { return a == specs.ArchX32 })) ||
		len(s.Linux.Seccomp.Syscalls) != len(all.Syscalls) {
		t.Errorf("runtime default without x32: %v, architectures %v", err, s.Linux.Seccomp.Architectures)
	}
	s, err = build(func(sc *runtimeapi.LinuxContainerSecurityContext, in *Input, h *Host) {
		h.AppArmor = "berth-default"
		sc.Seccomp = profile(runtimeapi.SecurityProfile_Localhost, "localhost//etc/p.json")
		in.SeccompProfile = []byte(`{"defaultAction":"SCMP_ACT_LOG"}`)
		sc.Apparmor = profile(runtimeapi.SecurityProfile_Localhost, "mine")
	})
	if err != nil || s.Linux.Seccomp.DefaultAction != specs.ActLog || s.Process.ApparmorProfile != "mine" {
		t.Errorf("localhost profiles: %v", err)
	}
	s, err = build(func(sc *runtimeapi.LinuxContainerSecurityContext, in *Input, h *Host) {
		h.AppArmor = "berth-default"
		sc.Privileged = true
		sc.Seccomp = profile(runtimeapi.SecurityProfile_RuntimeDefault, "")
		sc.Apparmor = profile(runtimeapi.SecurityProfile_RuntimeDefault, "")
	})
	if err != nil || s.Linux.Seccomp != nil || s.Process.ApparmorProfile != "" {
		t.Errorf("privileged is confined: %v", err)
	}
	for want, change := range map[string]func(sc *runtimeapi.LinuxContainerSecurityContext, in *Input, h *Host){
		"linux.security_context.apparmor: this host has no AppArmor": func(sc *runtimeapi.LinuxContainerSecurityContext, _ *Input, _ *Host) {
			sc.Apparmor = profile(runtimeapi.SecurityProfile_Localhost, "mine")
		},
		"linux.security_context.apparmor: this host has no AppArmor, and": func(sc *runtimeapi.LinuxContainerSecurityContext, _ *Input, _ *Host) {
			//lint:ignore SA1019 old clients set nothing else
			sc.ApparmorProfile = "runtime/default"
		},
		"parse the seccomp profile /p.json": func(sc *runtimeapi.LinuxContainerSecurityContext, in *Input, _ *Host) {
			sc.Seccomp = profile(runtimeapi.SecurityProfile_Localhost, "/p.json")
			in.SeccompProfile = []byte("{")
		},
		"linux.security_context.seccomp: profile type 9 is not known": func(sc *runtimeapi.LinuxContainerSecurityContext, _ *Input, _ *Host) {
			sc.Seccomp = profile(9, "")
		},
	} {
		if _, err := build(change); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("error is %v, want %s", err, want)
		}
	}
}

func TestMountsThatCannotBeMadeAreRefused(t *testing.T) {
	for want, m := range map[string]Mount{
		"mounts[/d].propagation: bidirectional needs a shared mount, and /s is not on one":              {Propagation: runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL},
		"mounts[/d].propagation: host-to-container needs a shared or slave mount, and /s is not on one": {Propagation: runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER},
		"mounts[/d].propagation: 9 is not known":                                                        {Propagation: 9},
		"mounts[/d].recursive_read_only: it needs readonly beside it":                                   {RecursiveReadOnly: true},
		"mounts[/d].recursive_read_only: it needs private propagation":                                  {RecursiveReadOnly: true, ReadOnly: true, Shared: true, Propagation: runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL},
		"mounts[/d].recursive_read_only: this kernel or runtime cannot do it (Linux 5.12)":              {RecursiveReadOnly: true, ReadOnly: true},
	} {
		in, host := testInput(), testHost()
		host.RecursiveReadOnly = false
		m.Source, m.Destination = "/s", "/d"
		in.Mounts = []Mount{m}
		if _, _, err := Build(in, host); err == nil || err.Error() != want {
			t.Errorf("error is %v, want %s", err, want)
		}
	}
}

func TestAMountOnDevTakesThePlaceOfWhatIsBelow(t *testing.T) {
	in := testInput()
	in.Mounts = []Mount{{Source: "/dev", Destination: "/dev"}}
	s, _, err := Build(in, testHost())
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range s.Mounts {
		if strings.HasPrefix(m.Destination, "/dev/") || m.Destination == "/dev" && m.Type != "bind" {
			t.Errorf("there is still a mount on %s", m.Destination)
		}
	}
}

func TestCgroupsAreWhereTheDriverPutsThem(t *testing.T) {
	for _, c := range []struct {
		parent, oci, path, err string
		systemd                bool
	}{
		{"/kubepods/podu", "/kubepods/podu/id", "/kubepods/podu/id", "", false},
		{"/kubepods.slice/kubepods-podu.slice", "kubepods-podu.slice:berth:id", "/kubepods.slice/kubepods-podu.slice/berth-id.scope", "", true},
		{"system.slice", "system.slice:berth:id", "/system.slice/berth-id.scope", "", true},
		{"kubepods.slice", "", "", "linux.cgroup_parent: kubepods.slice is a systemd slice, but the cgroup driver is cgroupfs", false},
		{"/kubepods", "", "", "linux.cgroup_parent: /kubepods is not a systemd slice, but the cgroup driver is systemd", true},
	} {
		got, err := ContainerCgroup(c.parent, "id", Host{SystemdCgroup: c.systemd})
		if c.err != "" {
			if err == nil || err.Error() != c.err {
				t.Errorf("%s: %v", c.parent, err)
			}
			continue
		}
		if err != nil || got.OCI != c.oci || got.Path != c.path {
			t.Errorf("%s: %+v, %v", c.parent, got, err)
		}
	}
}
