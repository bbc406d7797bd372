package pods

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/berth-io/berth/tests/harness"
)

// The capabilities of a container that asks for none, by number: chown,
// dac_override, fowner, fsetid, kill, setgid, setuid, setpcap,
// net_bind_service, net_raw, sys_chroot, mknod, audit_write, setfcap.
var defaultCapabilities = mask(0, 1, 3, 4, 5, 6, 7, 8, 10, 13, 18, 27, 29, 31)

func mask(numbers ...uint) uint64 {
	var m uint64
	for _, n := range numbers {
		m |= 1 << n
	}
	return m
}

func capabilities(t *testing.T, hex string) uint64 {
	t.Helper()
	m, err := strconv.ParseUint(hex, 16, 64)
	if err != nil {
		t.Fatalf("capabilities %q: %v", hex, err)
	}
	return m
}

func TestSecurity(t *testing.T) {
	run(t, []scenario{
		{"a container without wishes has the usual capabilities, masks and no more", "plain", `
spec:
  containers:
  - {name: main, image: $BOX, command: [testbox, report]}
`, func(t *testing.T, p *harness.Pod) {
			r := p.Report("main")
			equal(t, "CapEff", capabilities(t, r.Status["CapEff"]), defaultCapabilities)
			equal(t, "CapBnd", capabilities(t, r.Status["CapBnd"]), defaultCapabilities)
			equal(t, "CapAmb", capabilities(t, r.Status["CapAmb"]), 0)
			equal(t, "NoNewPrivs", r.Status["NoNewPrivs"], "0")
			equal(t, "Seccomp", r.Status["Seccomp"], "0")
			equal(t, "uid", r.UID, 0)
			equal(t, "writing to /", r.RootWrites, "")
			for _, path := range []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger", "/sys"} {
				if !exists(path) {
					continue // not on this kernel
				}
				m, ok := r.Mount(path)
				if !ok || !m.Has("ro") {
					t.Errorf("%s is not read-only: %+v", path, m)
				}
			}
			for _, path := range []string{"/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"} {
				if !exists(path) {
					continue
				}
				if _, ok := r.Mount(path); !ok {
					t.Errorf("%s is not masked", path)
				}
			}
			for _, m := range r.Mounts {
				if strings.HasPrefix(m.Type, "cgroup") && !m.Has("ro") {
					t.Errorf("%s is not read-only: %+v", m.Point, m)
				}
			}
			for _, dev := range []string{"null", "zero", "full", "random", "urandom", "tty", "ptmx", "pts", "shm", "mqueue"} {
				if !slices.Contains(r.Devices, dev) {
					t.Errorf("no /dev/%s", dev)
				}
			}
			equal(t, "number of devices", len(r.Devices) < 20, true)
		}},
		{"capabilities are added and dropped", "caps", `
spec:
  containers:
  - name: few
    image: $BOX
    command: [testbox, report]
    securityContext: {capabilities: {drop: [ALL], add: [NET_BIND_SERVICE]}}
  - name: more
    image: $BOX
    command: [testbox, report]
    securityContext: {capabilities: {add: [SYS_TIME, NET_ADMIN], drop: [MKNOD]}}
`, func(t *testing.T, p *harness.Pod) {
			equal(t, "few", capabilities(t, p.Report("few").Status["CapEff"]), mask(10))
			equal(t, "more", capabilities(t, p.Report("more").Status["CapEff"]), defaultCapabilities&^mask(27)|mask(12, 25))
		}},
		{"user and groups are the pod's, or the container's own", "user", `
spec:
  securityContext: {runAsUser: 1000, runAsGroup: 3000, supplementalGroups: [4000, 5000]}
  containers:
  - {name: pods, image: $BOX, command: [testbox, report]}
  - name: own
    image: $BOX
    command: [testbox, report]
    securityContext: {runAsUser: 65534, runAsGroup: 7}
`, func(t *testing.T, p *harness.Pod) {
			r := p.Report("pods")
			equal(t, "ids", fmt.Sprint(r.UID, r.GID), "1000 3000")
			for _, g := range []string{"4000", "5000", "2000"} { // 2000: of the user in the image
				contains(t, "groups", " "+r.Status["Groups"]+" ", " "+g+" ")
			}
			equal(t, "effective capabilities of a user", r.Status["CapEff"], "0000000000000000")
			r = p.Report("own")
			equal(t, "ids", fmt.Sprint(r.UID, r.GID), "65534 7")
		}},
		{"groups of the image stay out when the pod says Strict", "strict", `
spec:
  securityContext: {runAsUser: 1000, supplementalGroups: [4000], supplementalGroupsPolicy: Strict}
  containers:
  - {name: main, image: $BOX, command: [testbox, report]}
`, func(t *testing.T, p *harness.Pod) {
			equal(t, "groups", strings.Contains(p.Report("main").Status["Groups"], "2000"), false)
		}},
		{"a container that must not be root is not started as root", "nonroot", `
spec:
  containers:
  - name: main
    image: $BOX
    securityContext: {runAsNonRoot: true}
`, func(t *testing.T, p *harness.Pod) {
			contains(t, "message", p.WaitWaiting("main", "CreateContainerConfigError"), "container has runAsNonRoot and image will run as root")
		}},
		{"a user by name cannot be shown not to be root", "namednonroot", `
spec:
  containers:
  - name: main
    image: $CONFIGURED
    securityContext: {runAsNonRoot: true}
`, func(t *testing.T, p *harness.Pod) {
			contains(t, "message", p.WaitWaiting("main", "CreateContainerConfigError"), "non-numeric user (tester)")
		}},
		{"a read-only root can be written to only where volumes are", "readonly", `
spec:
  containers:
  - name: main
    image: $BOX
    command: [testbox, report]
    securityContext: {readOnlyRootFilesystem: true}
    volumeMounts: [{name: v, mountPath: /v}]
  volumes: [{name: v, emptyDir: {}}]
`, func(t *testing.T, p *harness.Pod) {
			r := p.Report("main")
			contains(t, "writing to /", r.RootWrites, "read-only file system")
			m, _ := r.Mount("/")
			equal(t, "/ is read-only", m.Has("ro"), true)
			p.Exec("main", "touch", "/v/f", "/dev/shm/f")
		}},
		{"no new privileges when escalation is not allowed", "noescalate", `
spec:
  containers:
  - name: main
    image: $BOX
    command: [testbox, report]
    securityContext: {allowPrivilegeEscalation: false}
`, func(t *testing.T, p *harness.Pod) {
			equal(t, "NoNewPrivs", p.Report("main").Status["NoNewPrivs"], "1")
			contains(t, "exec has it too", p.Exec("main", "cat", "/proc/self/status"), "NoNewPrivs:\t1")
		}},
		{"a privileged container has all there is", "privileged", `
spec:
  containers:
  - name: main
    image: $BOX
    command: [testbox, report]
    securityContext: {privileged: true}
`, func(t *testing.T, p *harness.Pod) {
			r := p.Report("main")
			equal(t, "CapEff", r.Status["CapEff"], hostStatus(t, "CapBnd"))
			equal(t, "Seccomp", r.Status["Seccomp"], "0")
			_, masked := r.Mount("/proc/kcore")
			equal(t, "/proc/kcore is masked", masked, false)
			sys, _ := r.Mount("/sys")
			equal(t, "/sys is read-only", sys.Has("ro"), false)
			// The devices are the host's.
			equal(t, "/dev/kmsg", slices.Contains(r.Devices, "kmsg"), exists("/dev/kmsg"))
			equal(t, "/dev/loop-control", slices.Contains(r.Devices, "loop-control"), exists("/dev/loop-control"))
		}},
		{"seccomp RuntimeDefault refuses what the profile does not list", "seccomp", `
spec:
  securityContext: {seccompProfile: {type: RuntimeDefault}}
  containers:
  - name: main
    image: $BOX
    command: [testbox, report]
  - name: free
    image: $BOX
    command: [testbox, report]
    securityContext: {seccompProfile: {type: Unconfined}}
`, func(t *testing.T, p *harness.Pod) {
			equal(t, "Seccomp", p.Report("main").Status["Seccomp"], "2")
			equal(t, "Seccomp of the unconfined one", p.Report("free").Status["Seccomp"], "0")
			trimmed(t, "calls", p.Exec("main", "testbox", "syscall", "keyctl", "unshare-user", "mkdir"), "keyctl EPERM\nunshare-user EPERM\nmkdir ok")
		}},
		{"a Localhost profile is read from the node", "localhost", `
spec:
  containers:
  - name: main
    image: $BOX
    command: [sh, -c, 'testbox report --once; exec testbox pause']
    securityContext: {seccompProfile: {type: Localhost, localhostProfile: profiles/no-mkdir.json}}
`, func(t *testing.T, p *harness.Pod) {
			dir := filepath.Join(p.Node().Config.KubeletDir, "seccomp/profiles")
			if err := os.MkdirAll(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { os.RemoveAll(filepath.Dir(dir)) })
			profile := `{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO","errnoRet":95}]}`
			if err := os.WriteFile(dir+"/no-mkdir.json", []byte(profile), 0o644); err != nil {
				t.Fatal(err)
			}
			p.WaitReady()
			trimmed(t, "calls", p.Exec("main", "testbox", "syscall", "mkdir", "chroot"), "mkdir ENOTSUP\nchroot ok")
		}},
		{"a missing Localhost profile is named", "noprofile", `
spec:
  containers:
  - name: main
    image: $BOX
    securityContext: {seccompProfile: {type: Localhost, localhostProfile: profiles/none.json}}
`, func(t *testing.T, p *harness.Pod) {
			var message string
			harness.Eventually(t, harness.PodTimeout, "an error that names the profile", func() string {
				pod, _, err := p.Get()
				if err != nil {
					return err.Error()
				}
				s, _ := harness.Container(pod, "main")
				if w := s.State.Waiting; w != nil && strings.HasPrefix(w.Reason, "CreateContainer") {
					message = w.Message
					return ""
				}
				return harness.Summary(pod)
			})
			contains(t, "message", message, "profiles/none.json")
		}},
		{"capabilities and their lack show in system calls", "calls", `
spec:
  containers:
  - {name: main, image: $BOX}
  - name: bare
    image: $BOX
    securityContext: {capabilities: {drop: [ALL]}}
`, func(t *testing.T, p *harness.Pod) {
			p.WaitReady()
			trimmed(t, "by default", p.Exec("main", "testbox", "syscall", "mount", "settime", "sethostname", "chroot", "mknod", "chown", "raw-socket"),
				"mount EPERM\nsettime EPERM\nsethostname EPERM\nchroot ok\nmknod ok\nchown ok\nraw-socket ok")
			trimmed(t, "with none", p.Exec("bare", "testbox", "syscall", "chroot", "mknod", "raw-socket"), "chroot EPERM\nmknod EPERM\nraw-socket EPERM")
		}},
		{"sysctls are the pod's", "sysctl", `
spec:
  securityContext:
    sysctls:
    - {name: kernel.shm_rmid_forced, value: "1"}
    - {name: net.ipv4.ip_local_port_range, value: "40000 40100"}
    - {name: net.ipv4.ip_unprivileged_port_start, value: "80"}
  containers:
  - {name: main, image: $BOX}
`, func(t *testing.T, p *harness.Pod) {
			p.WaitReady()
			out := p.Exec("main", "cat", "/proc/sys/kernel/shm_rmid_forced", "/proc/sys/net/ipv4/ip_local_port_range", "/proc/sys/net/ipv4/ip_unprivileged_port_start")
			equal(t, "values", strings.Join(strings.Fields(out), " "), "1 40000 40100 80")
		}},
		{"the containers of a pod share IPC and UTS, not mounts", "namespaces", `
spec:
  containers:
  - {name: a, image: $BOX, command: [testbox, report]}
  - {name: b, image: $BOX, command: [testbox, report]}
`, func(t *testing.T, p *harness.Pod) {
			a, b := p.Report("a").Namespaces, p.Report("b").Namespaces
			for _, ns := range []string{"net", "ipc", "uts"} {
				equal(t, ns+" of a and b", a[ns], b[ns])
				equal(t, ns+" is the host's", a[ns] == hostNamespace(t, ns), false)
			}
			for _, ns := range []string{"mnt", "pid"} {
				equal(t, ns+" is shared", a[ns] == b[ns], false)
			}
			equal(t, "user", a["user"], hostNamespace(t, "user"))
			p.Exec("a", "touch", "/dev/shm/shared")
			p.Exec("b", "test", "-e", "/dev/shm/shared")
		}},
		{"pods with user namespaces have IDs of their own and see their volumes' owners", "userns", `
spec:
  hostUsers: false
  securityContext: {fsGroup: 5000}
  initContainers:
  - {name: init, image: $BOX, command: [sh, -c, 'echo from init > /disk/f && chown 1000:1000 /disk/f && echo done > /dev/termination-log'], volumeMounts: [{name: disk, mountPath: /disk}]}
  containers:
  - name: main
    image: $BOX
    command: [testbox, report]
    volumeMounts: [{name: disk, mountPath: /disk}, {name: memory, mountPath: /memory}, {name: names, mountPath: /names}, {name: disk, mountPath: /sub, subPath: a}]
    securityContext: {procMount: Unmasked, capabilities: {add: [SYS_ADMIN]}}
    readinessProbe: {exec: {command: [test, -O, /memory]}, timeoutSeconds: 10}
  - {name: other, image: $BOX, command: [testbox, report], volumeMounts: [{name: disk, mountPath: /disk}], securityContext: {runAsUser: 1000}}
  volumes:
  - {name: disk, emptyDir: {}}
  - {name: memory, emptyDir: {medium: Memory}}
  - {name: names, downwardAPI: {items: [{path: name, fieldRef: {fieldPath: metadata.name}}]}}
---
apiVersion: v1
kind: Pod
metadata: {name: userns-2}
spec:
  hostUsers: false
  containers: [{name: main, image: $BOX, command: [testbox, report]}]
`, func(t *testing.T, p *harness.Pod) {
			p.WaitReady()
			r := p.Report("main")
			equal(t, "user is the host's", r.Namespaces["user"] == hostNamespace(t, "user"), false)
			equal(t, "user of the other container", p.Report("other").Namespaces["user"], r.Namespaces["user"])
			_, masked := r.Mount("/proc/kcore")
			equal(t, "/proc/kcore is masked", masked, false)
			equal(t, "owner of what the init container made", strings.TrimSpace(p.Exec("main", "stat", "-c", "%u:%g", "/disk/f")), "1000:1000")
			equal(t, "owner of the downward API's file", strings.TrimSpace(p.Exec("main", "stat", "-L", "-c", "%u", "/names/name")), "0")
			p.Exec("main", "touch", "/memory/f", "/sub/f")
			p.Exec("other", "sh", "-c", "echo more >> /disk/f")
			p.Exec("main", "sh", "-c", "mount -t proc proc /mnt")
			first := strings.Fields(p.Exec("main", "cat", "/proc/self/uid_map"))
			other := p.Node().Pod(t, "default", "userns-2")
			other.WaitReady()
			second := strings.Fields(other.Exec("main", "cat", "/proc/self/uid_map"))
			equal(t, "length of the mapping", first[2], "65536")
			equal(t, "both pods have the same IDs", first[1] == second[1], false)
		}},
		{"host namespaces are the host's", "hostns", `
spec:
  hostPID: true
  hostIPC: true
  containers:
  - {name: main, image: $BOX, command: [testbox, report]}
`, func(t *testing.T, p *harness.Pod) {
			r := p.Report("main")
			equal(t, "pid", r.Namespaces["pid"], hostNamespace(t, "pid"))
			equal(t, "ipc", r.Namespaces["ipc"], hostNamespace(t, "ipc"))
			equal(t, "net is the host's", r.Namespaces["net"] == hostNamespace(t, "net"), false)
			_, sees := r.Processes[strconv.Itoa(os.Getpid())]
			equal(t, "the test is seen", sees, true)
		}},
	})
}

func hostNamespace(t *testing.T, ns string) string {
	t.Helper()
	link, err := os.Readlink("/proc/self/ns/" + ns)
	if err != nil {
		t.Fatal(err)
	}
	return link
}

func hostStatus(t *testing.T, key string) string {
	t.Helper()
	for line := range strings.Lines(hostFile(t, "/proc/self/status")) {
		if k, v, _ := strings.Cut(line, ":"); k == key {
			return strings.TrimSpace(v)
		}
	}
	t.Fatalf("no %s in /proc/self/status", key)
	return ""
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
