package ns

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

func needRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: it creates namespaces")
	}
}

func hostname(t *testing.T) string {
	t.Helper()
	h, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func TestCreatedNamespacesArePinnedSetUpAndRemovedWithoutTrace(t *testing.T) {
	needRoot(t)
	before := hostname(t)
	dir := filepath.Join(t.TempDir(), "ns")
	err := Create(dir, Spec{
		Kinds:    []Kind{Net, IPC, UTS},
		Hostname: "web-0",
		Sysctls: map[string]string{
			"net.ipv4.ip_unprivileged_port_start": "7",
			"kernel.shm_rmid_forced":              "1",
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = Remove(dir) })
	for _, k := range []Kind{Net, IPC, UTS} {
		if !Pinned(Path(dir, k)) {
			t.Errorf("%s is not pinned", k)
		}
	}
	err = Do(Path(dir, Net), func() error {
		lo, err := net.InterfaceByName("lo")
		if err != nil {
			return err
		}
		if lo.Flags&net.FlagUp == 0 {
			t.Error("lo is down")
		}
		start, err := os.ReadFile("/proc/sys/net/ipv4/ip_unprivileged_port_start")
		if err != nil {
			return err
		}
		if strings.TrimSpace(string(start)) != "7" {
			t.Errorf("ip_unprivileged_port_start is %s", start)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	err = onOwnThread(func() error {
		fd, err := unix.Open(Path(dir, UTS), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if err := unix.Setns(fd, unix.CLONE_NEWUTS); err != nil {
			return err
		}
		var u unix.Utsname
		if err := unix.Uname(&u); err != nil {
			return err
		}
		if got := unix.ByteSliceToString(u.Nodename[:]); got != "web-0" {
			t.Errorf("hostname inside is %q", got)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if after := hostname(t); after != before {
		t.Errorf("the node's hostname changed from %q to %q", before, after)
	}
	for range 2 {
		if err := Remove(dir); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("the directory is still there: %v", err)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(mounts), dir) {
		t.Error("a mount is left")
	}
}

func TestTheMainThreadNeverLeavesItsNamespaces(t *testing.T) {
	needRoot(t)
	before, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	for range 50 {
		all.Go(func() {
			err := onOwnThread(func() error {
				if unix.Gettid() == unix.Getpid() {
					t.Error("on the main thread")
				}
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if after, err := os.Readlink("/proc/self/ns/net"); err != nil || after != before {
		t.Errorf("the process went from %s to %s, %v", before, after, err)
	}
}

func TestFailedCreateLeavesNothing(t *testing.T) {
	needRoot(t)
	dir := filepath.Join(t.TempDir(), "ns")
	err := Create(dir, Spec{Kinds: []Kind{Net}, Sysctls: map[string]string{"net.no.such.setting": "1"}})
	if err == nil || !strings.Contains(err.Error(), `set sysctl net.no.such.setting to "1"`) {
		t.Fatalf("error is %v", err)
	}
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("the directory is still there: %v", err)
	}
}

func TestPinKeepsANamespaceOfAProcess(t *testing.T) {
	needRoot(t)
	dir := filepath.Join(t.TempDir(), "ns")
	if err := Pin(dir, PID, os.Getpid()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = Remove(dir) })
	if !Pinned(Path(dir, PID)) {
		t.Error("not pinned")
	}
	if Pinned(dir) {
		t.Error("the directory counts as pinned")
	}
}

func TestSysctlsThatWouldChangeTheNodeAreRefused(t *testing.T) {
	all := []Kind{Net, IPC, UTS}
	for _, c := range []struct {
		name, sysctl string
		kinds        []Kind
		want         string // empty: accepted
	}{
		{"a network setting of a pod with its own network", "net.core.somaxconn", all, ""},
		{"slashes for dots", "net/core/somaxconn", all, ""},
		{"an interface name with a dot", "net.ipv4.conf.eth0/100.arp_filter", all, ""},
		{"a shared memory setting", "kernel.shmmax", all, ""},
		{"a message queue setting", "fs.mqueue.msg_max", all, ""},
		{"a network setting on the node's network", "net.core.somaxconn", []Kind{IPC, UTS},
			"sysctl net.core.somaxconn cannot be set: the pod uses the net namespace of the node"},
		{"a setting of the node", "kernel.panic", all, "sysctl kernel.panic is not namespaced: it cannot be set for a pod"},
		{"a setting of the node's memory", "vm.swappiness", all, "sysctl vm.swappiness is not namespaced: it cannot be set for a pod"},
		{"a way out of /proc/sys", "net/../kernel/panic", all, `sysctl "net/../kernel/panic" is not a valid name`},
		{"an empty part", "net..core", all, `sysctl "net..core" is not a valid name`},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := Check(Spec{Kinds: c.kinds, Sysctls: map[string]string{c.sysctl: "1"}})
			switch {
			case c.want == "" && err != nil:
				t.Errorf("refused: %v", err)
			case c.want != "" && (err == nil || err.Error() != c.want):
				t.Errorf("got %v, want %s", err, c.want)
			}
		})
	}
}

func FuzzSysctlNamesNeverLeaveProcSys(f *testing.F) {
	for _, s := range []string{"net.ipv4.conf.eth0/100.x", "net/../kernel/panic", "net./.", "fs.mqueue.//"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, name string) {
		if Check(Spec{Kinds: []Kind{Net, IPC, UTS}, Sysctls: map[string]string{name: "1"}}) != nil {
			return
		}
		path := filepath.Join("/proc/sys", slashed(name))
		for _, ok := range []string{"/proc/sys/net/", "/proc/sys/kernel/", "/proc/sys/fs/mqueue/"} {
			if strings.HasPrefix(path, ok) {
				return
			}
		}
		t.Errorf("%q is written to %s", name, path)
	})
}
