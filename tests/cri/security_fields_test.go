package cri

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-io/berth/tests/harness"
	"github.com/berth-io/berth/tests/images/report"
)

// field is one thing that a security context can say, and what comes of it.
type field struct {
	name string // a sentence
	// ask says it; pod and container are otherwise ordinary.
	ask func(pod *runtimeapi.PodSandboxConfig, c *runtimeapi.ContainerConfig, sc *runtimeapi.LinuxContainerSecurityContext)
	// see looks from inside the container, whose id is there for execs.
	see func(t *testing.T, r *runtime, id string, rep report.Report)
	// refused is the answer to CreateContainer, instead of see.
	refused     codes.Code
	refusedText string
}

// TestSecurityFields goes through the fields of LinuxContainerSecurityContext
// in the order of the CRI. User namespaces have a test of their own.
func TestSecurityFields(t *testing.T) {
	r := startRuntime(t, harness.Options{})
	for _, f := range slices.Concat(capabilityFields(), privilegedFields(), userFields(), confinementFields(t), deviceFields(t)) {
		t.Run(f.name, func(t *testing.T) { r.on(t).check(f) })
	}
	r.CheckNothingLeft()
}

func (r *runtime) check(f field) {
	r.t.Helper()
	pod, c := r.podConfig("fields"), r.containerConfig("main", "testbox", "report")
	f.ask(pod, c, c.Linux.SecurityContext)
	sandbox := r.runPod(pod)
	if f.see == nil {
		_, err := r.CreateContainer(r.ctx(), &runtimeapi.CreateContainerRequest{PodSandboxId: sandbox, Config: c, SandboxConfig: pod})
		r.refused(err, f.refused, f.refusedText)
	} else {
		id := r.run(sandbox, pod, c)
		r.waitLog(pod, c, "}\n")
		_, line, _ := strings.Cut(strings.TrimSpace(r.log(pod, c)), " F ")
		rep, err := report.Parse([]byte(line))
		must(r.t, err)
		f.see(r.t.(*testing.T), r, id, rep)
	}
	r.removePod(sandbox, pod)
}

func (r *runtime) refused(err error, code codes.Code, text string) {
	r.t.Helper()
	if status.Code(err) != code || !strings.Contains(fmt.Sprint(err), text) {
		r.t.Errorf("got %v, want %v: %s", err, code, text)
	}
}

// fails runs a command that must fail, and returns what it printed.
func (r *runtime) fails(id string, command ...string) string {
	r.t.Helper()
	resp, err := r.ExecSync(r.ctx(), &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: command, Timeout: 30})
	must(r.t, err)
	if resp.ExitCode == 0 {
		r.t.Errorf("%q worked: %s", command, resp.Stdout)
	}
	return string(resp.Stdout) + string(resp.Stderr)
}

// The usual capabilities: chown, dac_override, fowner, fsetid, kill, setgid,
// setuid, setpcap, net_bind_service, net_raw, sys_chroot, mknod, audit_write,
// setfcap.
const usual = 1<<0 | 1<<1 | 1<<3 | 1<<4 | 1<<5 | 1<<6 | 1<<7 | 1<<8 | 1<<10 | 1<<13 | 1<<18 | 1<<27 | 1<<29 | 1<<31

const (
	capChown     = 1 << 0
	capNetBind   = 1 << 10
	capNetAdmin  = 1 << 12
	capSysPtrace = 1 << 19
)

// sets asserts the effective, bounding and ambient sets.
func sets(effective, bounding, ambient uint64) func(*testing.T, *runtime, string, report.Report) {
	return func(t *testing.T, _ *runtime, _ string, rep report.Report) {
		for name, want := range map[string]uint64{"CapEff": effective, "CapBnd": bounding, "CapAmb": ambient, "CapInh": ambient} {
			got, err := strconv.ParseUint(rep.Status[name], 16, 64)
			must(t, err)
			if got != want {
				t.Errorf("%s is %#x, want %#x", name, got, want)
			}
		}
	}
}

// allCapabilities are those of this process, which the daemon's are.
func allCapabilities() uint64 {
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0
	}
	_, after, _ := strings.Cut(string(text), "CapBnd:\t")
	mask, _ := strconv.ParseUint(strings.Fields(after)[0], 16, 64) // the kernel's own number
	return mask
}

func capabilityFields() []field {
	caps := func(add, drop, ambient []string) func(*runtimeapi.PodSandboxConfig, *runtimeapi.ContainerConfig, *runtimeapi.LinuxContainerSecurityContext) {
		return func(_ *runtimeapi.PodSandboxConfig, _ *runtimeapi.ContainerConfig, sc *runtimeapi.LinuxContainerSecurityContext) {
			sc.Capabilities = &runtimeapi.Capability{AddCapabilities: add, DropCapabilities: drop, AddAmbientCapabilities: ambient}
			if ambient != nil {
				sc.RunAsUser = &runtimeapi.Int64Value{Value: 1000}
			}
		}
	}
	return []field{
		{name: "capabilities: none named", ask: caps(nil, nil, nil), see: sets(usual, usual, 0)},
		{name: "capabilities: added and dropped, with and without CAP_",
			ask: caps([]string{"NET_ADMIN", "CAP_SYS_PTRACE"}, []string{"chown"}, nil),
			see: sets(usual&^capChown|capNetAdmin|capSysPtrace, usual&^capChown|capNetAdmin|capSysPtrace, 0)},
		{name: "capabilities: all added", ask: caps([]string{"ALL"}, nil, nil), see: sets(allCapabilities(), allCapabilities(), 0)},
		{name: "capabilities: all added but one", ask: caps([]string{"ALL"}, []string{"CHOWN"}, nil), see: sets(allCapabilities()&^capChown, allCapabilities()&^capChown, 0)},
		{name: "capabilities: all dropped but one", ask: caps([]string{"NET_BIND_SERVICE"}, []string{"ALL"}, nil), see: sets(capNetBind, capNetBind, 0)},
		{name: "capabilities: ambient ones reach a user", ask: caps(nil, []string{"ALL"}, []string{"NET_BIND_SERVICE"}), see: sets(capNetBind, capNetBind, capNetBind)},
	}
}

func privilegedFields() []field {
	return []field{
		{name: "privileged", ask: func(pod *runtimeapi.PodSandboxConfig, c *runtimeapi.ContainerConfig, sc *runtimeapi.LinuxContainerSecurityContext) {
			pod.Linux.SecurityContext.Privileged, sc.Privileged = true, true
			c.Devices = []*runtimeapi.Device{{HostPath: "/dev/null", ContainerPath: "/dev/another-name", Permissions: "rwm"}}
		}, see: func(t *testing.T, r *runtime, id string, rep report.Report) {
			sets(allCapabilities(), allCapabilities(), 0)(t, r, id, rep)
			equal(t, "Seccomp", rep.Status["Seccomp"], "0")
			for _, path := range []string{"/proc/version", "/proc/sys"} {
				if m, ok := rep.Mount(path); ok {
					t.Errorf("%s is mounted over: %+v", path, m)
				}
			}
			sys, _ := rep.Mount("/sys")
			equal(t, "/sys is read-only", sys.Has("ro"), false)
			equal(t, "/dev/kmsg is there", slices.Contains(rep.Devices, "kmsg"), exists("/dev/kmsg"))
			equal(t, "the device of the request is there", slices.Contains(rep.Devices, "another-name"), true)
			r.exec(id, "sh", "-c", "mknod /dev/made b 7 0 && test -b /dev/made")
		}},
		{name: "privileged: not in a pod that is not", ask: func(_ *runtimeapi.PodSandboxConfig, _ *runtimeapi.ContainerConfig, sc *runtimeapi.LinuxContainerSecurityContext) {
			sc.Privileged = true
		}, refused: codes.InvalidArgument, refusedText: "config.linux.security_context.privileged: the pod was not created privileged"},
	}
}

func userFields() []field {
	type context = runtimeapi.LinuxContainerSecurityContext
	number := func(v int64) *runtimeapi.Int64Value { return &runtimeapi.Int64Value{Value: v} }
	ask := func(change func(*context)) func(*runtimeapi.PodSandboxConfig, *runtimeapi.ContainerConfig, *context) {
		return func(_ *runtimeapi.PodSandboxConfig, _ *runtimeapi.ContainerConfig, sc *context) { change(sc) }
	}
	is := func(uid, gid int, groups ...int) func(*testing.T, *runtime, string, report.Report) {
		return func(t *testing.T, r *runtime, id string, rep report.Report) {
			equal(t, "user and groups", fmt.Sprint(rep.UID, rep.GID, rep.Groups), fmt.Sprint(uid, gid, groups))
			u := r.status(id).GetUser().GetLinux()
			equal(t, "user and groups in the status", fmt.Sprint(u.GetUid(), u.GetGid(), u.GetSupplementalGroups()), fmt.Sprint(uid, gid, groups))
			equal(t, "groups of an exec", fmt.Sprint(strings.Fields(r.exec(id, "id", "-G"))), fmt.Sprint(uniqueFirst(gid, groups)))
		}
	}
	const strict = runtimeapi.SupplementalGroupsPolicy_Strict
	return []field{
		{name: "run_as_user: none is the image's", ask: ask(func(*context) {}), see: is(0, 0, 0)},
		{name: "run_as_user: one of the image has its groups", ask: ask(func(sc *context) { sc.RunAsUser = number(1000) }), see: is(1000, 1000, 1000, 2000)},
		{name: "run_as_user: one that the image does not know", ask: ask(func(sc *context) { sc.RunAsUser = number(4242) }), see: is(4242, 0, 0)},
		{name: "run_as_group", ask: ask(func(sc *context) { sc.RunAsUser, sc.RunAsGroup = number(1000), number(3000) }), see: is(1000, 3000, 2000, 3000)},
		{name: "run_as_group: not without a user", ask: ask(func(sc *context) { sc.RunAsGroup = number(3000) }),
			refused: codes.InvalidArgument, refusedText: "linux.security_context.run_as_group: it needs run_as_user or run_as_username"},
		{name: "run_as_username", ask: ask(func(sc *context) { sc.RunAsUsername = "tester" }), see: is(1000, 1000, 1000, 2000)},
		{name: "run_as_username: with a group", ask: ask(func(sc *context) { sc.RunAsUsername, sc.RunAsGroup = "tester", number(7) }), see: is(1000, 7, 7, 2000)},
		{name: "run_as_username: not one that the image does not know", ask: ask(func(sc *context) { sc.RunAsUsername = "stranger" }),
			refused: codes.InvalidArgument, refusedText: `user "stranger" is not in /etc/passwd of the image`},
		{name: "supplemental_groups: merged with the image's", ask: ask(func(sc *context) { sc.RunAsUser, sc.SupplementalGroups = number(1000), []int64{4000} }), see: is(1000, 1000, 1000, 2000, 4000)},
		{name: "supplemental_groups_policy: strict", ask: ask(func(sc *context) {
			sc.RunAsUser, sc.SupplementalGroups, sc.SupplementalGroupsPolicy = number(1000), []int64{4000}, strict
		}), see: is(1000, 1000, 1000, 4000)},
		{name: "supplemental_groups_policy: an unknown one", ask: ask(func(sc *context) { sc.SupplementalGroupsPolicy = 7 }),
			refused: codes.InvalidArgument, refusedText: "supplemental_groups_policy: 7 is not known"},
	}
}

// uniqueFirst is how id prints groups: the primary one first, none twice.
func uniqueFirst(first int, groups []int) []int {
	out := []int{first}
	for _, g := range groups {
		if g != first {
			out = append(out, g)
		}
	}
	return out
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

func confinementFields(t *testing.T) []field {
	type (
		context   = runtimeapi.LinuxContainerSecurityContext
		pod       = runtimeapi.PodSandboxConfig
		container = runtimeapi.ContainerConfig
	)
	ask := func(change func(*context)) func(*pod, *container, *context) {
		return func(_ *pod, _ *container, sc *context) { change(sc) }
	}
	profile := func(kind runtimeapi.SecurityProfile_ProfileType, ref string) *runtimeapi.SecurityProfile {
		return &runtimeapi.SecurityProfile{ProfileType: kind, LocalhostRef: ref}
	}
	const (
		runtimeDefault = runtimeapi.SecurityProfile_RuntimeDefault
		unconfined     = runtimeapi.SecurityProfile_Unconfined
		localhost      = runtimeapi.SecurityProfile_Localhost
	)
	noMkdir := filepath.Join(t.TempDir(), "no-mkdir.json")
	must(t, os.WriteFile(noMkdir, []byte(`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO","errnoRet":5}]}`), 0o644))
	seccomp := func(mode string) func(*testing.T, *runtime, string, report.Report) {
		return func(t *testing.T, r *runtime, id string, rep report.Report) {
			equal(t, "Seccomp", rep.Status["Seccomp"], mode)
			if !strings.Contains(r.exec(id, "cat", "/proc/self/status"), "Seccomp:\t"+mode) {
				t.Error("an exec has another mode")
			}
		}
	}
	cannotMkdir := func(t *testing.T, r *runtime, id string, rep report.Report) {
		equal(t, "Seccomp", rep.Status["Seccomp"], "2")
		if out := r.fails(id, "mkdir", "/made"); !strings.Contains(out, "Input/output error") {
			t.Errorf("mkdir: %s", out)
		}
	}
	masks := func(kcore, sys bool) func(*testing.T, *runtime, string, report.Report) {
		return func(t *testing.T, r *runtime, id string, rep report.Report) {
			_, masked := rep.Mount("/proc/version")
			equal(t, "/proc/version is masked", masked, kcore)
			m, covered := rep.Mount("/proc/sys")
			equal(t, "/proc/sys is read-only", covered && m.Has("ro"), sys)
		}
	}
	fields := []field{
		{name: "readonly_rootfs", ask: ask(func(sc *context) { sc.ReadonlyRootfs = true }), see: func(t *testing.T, r *runtime, id string, rep report.Report) {
			if !strings.Contains(rep.RootWrites, "read-only file system") {
				t.Errorf("writing to /: %q", rep.RootWrites)
			}
			r.exec(id, "touch", "/dev/shm/x")
			r.fails(id, "sh", "-c", "echo x >> /etc/hosts")
		}},
		{name: "no_new_privs: not unless asked", ask: ask(func(*context) {}), see: func(t *testing.T, _ *runtime, _ string, rep report.Report) {
			equal(t, "NoNewPrivs", rep.Status["NoNewPrivs"], "0")
		}},
		{name: "no_new_privs", ask: ask(func(sc *context) { sc.NoNewPrivs = true }), see: func(t *testing.T, r *runtime, id string, rep report.Report) {
			equal(t, "NoNewPrivs", rep.Status["NoNewPrivs"], "1")
			if !strings.Contains(r.exec(id, "cat", "/proc/self/status"), "NoNewPrivs:\t1") {
				t.Error("an exec may gain privileges")
			}
		}},
		{name: "masked_paths and readonly_paths", ask: ask(func(sc *context) {
			sc.MaskedPaths, sc.ReadonlyPaths = []string{"/proc/version", "/nonexistent"}, []string{"/proc/sys", "/nonexistent"}
		}), see: masks(true, true)},
		{name: "masked_paths and readonly_paths: none", ask: ask(func(sc *context) { sc.MaskedPaths, sc.ReadonlyPaths = nil, nil }), see: masks(false, false)},
		{name: "masked_paths and readonly_paths: empty", ask: ask(func(sc *context) { sc.MaskedPaths, sc.ReadonlyPaths = []string{}, []string{} }), see: masks(false, false)},
		{name: "seccomp: none", ask: ask(func(sc *context) { sc.Seccomp = nil }), see: seccomp("0")},
		{name: "seccomp: unconfined", ask: ask(func(sc *context) { sc.Seccomp = profile(unconfined, "") }), see: seccomp("0")},
		{name: "seccomp: the runtime's default", ask: ask(func(sc *context) { sc.Seccomp = profile(runtimeDefault, "") }), see: func(t *testing.T, r *runtime, id string, rep report.Report) {
			seccomp("2")(t, r, id, rep)
			if out := r.exec(id, "testbox", "syscall", "keyctl"); !strings.Contains(out, "EPERM") && !strings.Contains(out, "not permitted") {
				t.Errorf("keyctl: %s", out)
			}
		}},
		{name: "seccomp: a file", ask: ask(func(sc *context) { sc.Seccomp = profile(localhost, noMkdir) }), see: cannotMkdir},
		{name: "seccomp: a file with the old prefix", ask: ask(func(sc *context) { sc.Seccomp = profile(localhost, "localhost/"+noMkdir) }), see: cannotMkdir},
		{name: "seccomp: a file that is not there", ask: ask(func(sc *context) { sc.Seccomp = profile(localhost, noMkdir+".none") }),
			refused: codes.InvalidArgument, refusedText: "read the seccomp profile: open " + noMkdir + ".none"},
		{name: "seccomp: a relative path", ask: ask(func(sc *context) { sc.Seccomp = profile(localhost, "no-mkdir.json") }),
			refused: codes.InvalidArgument, refusedText: `seccomp.localhost_ref: "no-mkdir.json" is not an absolute path`},
		{name: "seccomp_profile_path, the deprecated field", ask: ask(func(sc *context) {
			//lint:ignore SA1019 old clients set nothing else
			sc.Seccomp, sc.SeccompProfilePath = nil, "localhost/"+noMkdir
		}), see: cannotMkdir},
		{name: "seccomp_profile_path: the typed field goes before it", ask: ask(func(sc *context) {
			//lint:ignore SA1019 old clients set nothing else
			sc.Seccomp, sc.SeccompProfilePath = profile(unconfined, ""), "runtime/default"
		}), see: seccomp("0")},
		{name: "namespace_options: a process namespace of its own", ask: ask(func(*context) {}), see: func(t *testing.T, _ *runtime, _ string, rep report.Report) {
			equal(t, "process ID", rep.Pid, 1)
		}},
		{name: "namespace_options: the pod's process namespace, which it does not have", ask: ask(func(sc *context) {
			sc.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
		}), refused: codes.InvalidArgument, refusedText: "namespace_options.pid: the pod was not created with a shared pid namespace"},
		{name: "namespace_options: a target that is not there", ask: ask(func(sc *context) {
			sc.NamespaceOptions.Pid, sc.NamespaceOptions.TargetId = runtimeapi.NamespaceMode_TARGET, "nobody"
		}), refused: codes.NotFound, refusedText: `target container "nobody" does not exist`},
		{name: "namespace_options: the node's", ask: func(p *pod, _ *container, sc *context) {
			o := &runtimeapi.NamespaceOption{Network: runtimeapi.NamespaceMode_NODE, Pid: runtimeapi.NamespaceMode_NODE, Ipc: runtimeapi.NamespaceMode_NODE}
			p.Linux.SecurityContext.NamespaceOptions, sc.NamespaceOptions = o, o
		}, see: func(t *testing.T, r *runtime, _ string, rep report.Report) {
			for _, kind := range []string{"pid", "ipc", "uts"} {
				own, err := os.Readlink("/proc/self/ns/" + kind)
				must(t, err)
				equal(t, kind, rep.Namespaces[kind], own)
			}
			daemon, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", r.Pid()))
			must(t, err)
			equal(t, "net", rep.Namespaces["net"], daemon)
		}},
	}
	if exists("/sys/kernel/security/apparmor") {
		return fields
	}
	const code, text = codes.InvalidArgument, "linux.security_context.apparmor: this host has no AppArmor"
	return append(fields,
		field{name: "apparmor: unconfined where there is none", ask: ask(func(sc *context) { sc.Apparmor = profile(unconfined, "") }),
			see: func(*testing.T, *runtime, string, report.Report) {}},
		field{name: "apparmor: a profile where there is none", ask: ask(func(sc *context) { sc.Apparmor = profile(localhost, "mine") }), refused: code, refusedText: text},
		field{name: "apparmor: the default where there is none", ask: ask(func(sc *context) { sc.Apparmor = profile(runtimeDefault, "") }), refused: code, refusedText: text},
		field{name: "apparmor_profile, the deprecated field, where there is none", ask: ask(func(sc *context) {
			//lint:ignore SA1019 old clients set nothing else
			sc.ApparmorProfile = "localhost/mine"
		}), refused: code, refusedText: text},
	)
}

// deviceFields are no part of the security context, but decide with it what a
// container may touch.
func deviceFields(t *testing.T) []field {
	device := ""
	for _, path := range []string{"/dev/fuse", "/dev/loop-control", "/dev/autofs", "/dev/kmsg"} {
		if device == "" && exists(path) {
			device = path
		}
	}
	if device == "" {
		t.Skip("this host has no device that can be opened without harm")
	}
	dir := t.TempDir()
	must(t, os.Symlink(device, filepath.Join(dir, "link")))
	asks := func(devices ...*runtimeapi.Device) func(*runtimeapi.PodSandboxConfig, *runtimeapi.ContainerConfig, *runtimeapi.LinuxContainerSecurityContext) {
		return func(_ *runtimeapi.PodSandboxConfig, c *runtimeapi.ContainerConfig, _ *runtimeapi.LinuxContainerSecurityContext) {
			c.Devices = devices
		}
	}
	return []field{
		{name: "devices: none but the usual ones can be opened", ask: asks(), see: func(t *testing.T, r *runtime, id string, rep report.Report) {
			equal(t, "few devices", len(rep.Devices) < 20, true)
			major, minor := numbers(t, device)
			out := r.fails(id, "sh", "-c", fmt.Sprintf("mknod /made c %d %d && : < /made", major, minor))
			if !strings.Contains(out, "not permitted") {
				t.Errorf("opening a device that was not asked for: %s", out)
			}
		}},
		{name: "devices: one by another name, through a symbolic link", ask: asks(&runtimeapi.Device{HostPath: filepath.Join(dir, "link"), ContainerPath: "/dev/mine/x", Permissions: "rwm"}),
			see: func(t *testing.T, r *runtime, id string, _ report.Report) {
				r.exec(id, "sh", "-c", ": < /dev/mine/x && : >> /dev/mine/x")
			}},
		{name: "devices: the permissions are kept", ask: asks(&runtimeapi.Device{HostPath: device, ContainerPath: "/dev/x", Permissions: "r"}),
			see: func(t *testing.T, r *runtime, id string, _ report.Report) {
				r.exec(id, "sh", "-c", ": < /dev/x")
				if out := r.fails(id, "sh", "-c", ": >> /dev/x"); !strings.Contains(out, "not permitted") {
					t.Errorf("writing to a device that may be read: %s", out)
				}
			}},
		{name: "devices: those of a directory", ask: asks(&runtimeapi.Device{HostPath: "/dev/net", ContainerPath: "/dev/mine", Permissions: "rw"}),
			see: func(t *testing.T, r *runtime, id string, _ report.Report) {
				r.exec(id, "sh", "-c", ": < /dev/mine/tun")
			}},
		{name: "devices: not one that is not there", ask: asks(&runtimeapi.Device{HostPath: "/dev/nonexistent", ContainerPath: "/dev/x"}),
			refused: codes.InvalidArgument, refusedText: "config.devices: resolve /dev/nonexistent"},
		{name: "devices: not what is none", ask: asks(&runtimeapi.Device{HostPath: "/etc/hosts", ContainerPath: "/dev/x"}),
			refused: codes.InvalidArgument, refusedText: "config.devices: /etc/hosts is neither a device nor a directory of devices"},
	}
}
