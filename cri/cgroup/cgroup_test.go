package cgroup

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
)

func TestPathsThatNameNoCgroupBelowTheRootAreRefused(t *testing.T) {
	tree := &Tree{roots: []string{t.TempDir()}}
	for _, path := range []string{"", "/", ".", "/./", "/a/../.."} {
		if err := tree.Remove(path); err == nil {
			t.Errorf("%q is accepted", path)
		}
	}
}

func TestACgroupIsMadeKilledAndRemovedInEveryHierarchy(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: it makes cgroups")
	}
	tree, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	path := "/berth-test-" + strconv.Itoa(os.Getpid())
	created, err := tree.Ensure(path + "/pod")
	if err != nil || !created {
		t.Fatalf("created: %v, %v", created, err)
	}
	t.Cleanup(func() { _ = tree.Remove(path) })
	if created, err = tree.Ensure(path + "/pod"); err != nil || created {
		t.Errorf("made again: %v, %v", created, err)
	}
	sleep := exec.Command("sleep", "60")
	if err := sleep.Start(); err != nil {
		t.Fatal(err)
	}
	for _, dir := range tree.Dirs(path + "/pod") {
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(sleep.Process.Pid)), 0); err != nil {
			t.Error(err)
		}
	}
	if err := tree.Kill(path); err != nil {
		t.Error(err)
	}
	if err := sleep.Wait(); err == nil {
		t.Error("the process ended by itself")
	}
	for range 2 {
		if err := tree.Remove(path); err != nil {
			t.Error(err)
		}
	}
	for _, root := range tree.roots {
		if _, err := os.Stat(filepath.Join(root, path)); !os.IsNotExist(err) {
			t.Errorf("%s is left below %s: %v", path, root, err)
		}
	}
}
