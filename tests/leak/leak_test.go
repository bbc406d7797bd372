package leak

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestWhatAppearsIsReportedOnce(t *testing.T) {
	before := Snapshot{{Kind: "link", Key: "node lo"}, {Kind: "rule", Key: "a"}}
	after := Snapshot{
		{Kind: "link", Key: "node lo"},
		{Kind: "link", Key: "node berth0"},
		{Kind: "rule", Key: "a"},
		{Kind: "rule", Key: "a"},
		{Kind: "file", Key: "/x/images/blob"},
		{Kind: "file", Key: "/x/images"},
	}
	allowed := []Allowed{{"link", "node berth0", "the bridge stays"}, {"file", "/x/images/.*", "images stay"}}
	got := Format(Diff(before, after, allowed))
	want := "  rule     a\n  file     /x/images\n"
	if got != want {
		t.Errorf("got:\n%swant:\n%s", got, want)
	}
}

func TestEveryKindIsFoundOnThisMachine(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to make mounts, namespaces and cgroups")
	}
	dir := t.TempDir()
	const ns, group = "bh-leaktest", "/berth-leaktest"
	scope := Scope{Dirs: []string{dir}, Tag: "BERTH_LEAK_TEST=1", NetNS: "/run/netns/" + ns, CgroupRoot: group}
	run(t, "ip", "netns", "add", ns)
	t.Cleanup(func() { run(t, "ip", "netns", "del", ns) })
	before, err := Take(scope)
	if err != nil {
		t.Fatal(err)
	}

	if err := os.WriteFile(filepath.Join(dir, "lease"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	mnt := filepath.Join(dir, "mnt")
	if err := os.Mkdir(mnt, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", mnt, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(mnt, unix.MNT_DETACH) })
	if err := os.WriteFile(filepath.Join(mnt, "below-the-mount"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, "ip", "-n", ns, "link", "add", "leak0", "type", "bridge")
	run(t, "nsenter", "--net=/run/netns/"+ns, "nft", "add table ip leaked; add chain ip leaked c; add rule ip leaked c counter accept")
	tops, err := cgroupMounts()
	if err != nil || len(tops) == 0 {
		t.Fatalf("cgroup mounts: %v %v", tops, err)
	}
	for _, d := range []string{tops[0] + group, tops[0] + group + "/pod"} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Rmdir(d) })
	}
	tagged := exec.Command("sleep", "60")
	tagged.Env = []string{"X=y", scope.Tag}
	if err := tagged.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tagged.Process.Kill(); tagged.Wait() })

	after, err := Take(scope)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, i := range Diff(before, after, nil) {
		got = append(got, i.Kind+" "+i.Key)
	}
	want := []string{
		"cgroup " + group,
		"cgroup " + group + "/pod",
		"file " + filepath.Join(dir, "lease"),
		"link node leak0",
		"mount " + mnt,
		"process sleep 60",
		"rule table ip leaked",
		"rule table ip leaked chain c",
		"rule table ip leaked chain c: counter accept",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func run(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
}
