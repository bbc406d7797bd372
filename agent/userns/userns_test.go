package userns

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func allocator(t *testing.T, r Range, pods ...string) *Allocator {
	t.Helper()
	a := New(t.TempDir(), 0, func(context.Context) (Range, error) { return r, nil })
	for _, uid := range pods {
		if err := os.MkdirAll(filepath.Join(a.pods, uid), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return a
}

func first(t *testing.T, a *Allocator, uid string) uint32 {
	t.Helper()
	u, err := a.Of(t.Context(), uid)
	if err != nil {
		t.Fatal(err)
	}
	if len(u.Uids) != 1 || u.Uids[0].ContainerId != 0 || u.Uids[0].Length != Block || u.Uids[0].HostId != u.Gids[0].HostId {
		t.Fatalf("pod %s has %v", uid, u)
	}
	return u.Uids[0].HostId
}

func TestPodsHaveDifferentIDsAndKeepThem(t *testing.T) {
	a := allocator(t, Default, "a", "b", "c")
	for i, uid := range []string{"a", "b", "c"} {
		if got, want := first(t, a, uid), uint32((i+1)*Block); got != want {
			t.Errorf("pod %s starts at %d, want %d", uid, got, want)
		}
	}
	another := New(a.pods, 0, a.find) // as after a restart
	if got := first(t, another, "b"); got != 2*Block {
		t.Errorf("pod b starts at %d after a restart", got)
	}
	if err := os.RemoveAll(filepath.Join(a.pods, "b")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(a.pods, "d"), 0o755); err != nil {
		t.Fatal(err)
	}
	if got := first(t, a, "d"); got != 2*Block {
		t.Errorf("the next pod starts at %d, where pod b's IDs are free", got)
	}
}

func TestPodsHaveAsManyIDsAsConfiguredAndOldOnesKeepTheirs(t *testing.T) {
	a := allocator(t, Default, "old", "new", "newer")
	if got := first(t, a, "old"); got != Block {
		t.Fatalf("the first pod starts at %d", got)
	}
	wide := New(a.pods, 3*Block, a.find) // as after a restart with another configuration
	for uid, want := range map[string]uint32{"old": Block, "new": 3 * Block} {
		u, err := wide.Of(t.Context(), uid)
		if err != nil || u.Uids[0].HostId != want || u.Gids[0].HostId != want {
			t.Errorf("pod %s has %v, %v", uid, u, err)
		}
		if length := u.Uids[0].Length; length != map[string]uint32{"old": Block, "new": 3 * Block}[uid] {
			t.Errorf("pod %s has %d IDs", uid, length)
		}
	}
	narrow := New(a.pods, 2*Block, a.find)
	if u, err := narrow.Of(t.Context(), "newer"); err != nil || u.Uids[0].HostId != 6*Block || u.Uids[0].Length != 2*Block {
		t.Errorf("beside pods with other lengths: %v, %v", u, err)
	}
}

func TestAFileOfTheKubeletIsUnderstood(t *testing.T) {
	a := allocator(t, Default, "a", "b")
	const kubelet = `{"uidMappings":[{"hostId":65536,"containerId":0,"length":65536}],"gidMappings":[{"hostId":65536,"containerId":0,"length":65536}]}`
	if err := os.WriteFile(a.path("a"), []byte(kubelet), 0o644); err != nil {
		t.Fatal(err)
	}
	if got := first(t, a, "b"); got != 2*Block {
		t.Errorf("pod b starts at %d", got)
	}
	first(t, a, "b")
	data, err := os.ReadFile(a.path("b"))
	if err != nil || string(data) != strings.ReplaceAll(kubelet, "hostId\":65536", "hostId\":131072") {
		t.Errorf("pod b's file has %s (%v)", data, err)
	}
}

func TestNoIDsAreGivenOutThatAnotherPodMayHave(t *testing.T) {
	for name, content := range map[string]string{
		"not JSON": `{`, "no mapping": `{}`, "two": `{"uidMappings":[{},{}],"gidMappings":[{},{}]}`,
		"other groups": `{"uidMappings":[{"hostId":65536,"length":65536}],"gidMappings":[{"hostId":131072,"length":65536}]}`,
		"the host's":   `{"uidMappings":[{"hostId":0,"length":65536}],"gidMappings":[{"hostId":0,"length":65536}]}`,
		"askew":        `{"uidMappings":[{"hostId":65537,"length":65536}],"gidMappings":[{"hostId":65537,"length":65536}]}`,
	} {
		a := allocator(t, Default, "bad", "good")
		if err := os.WriteFile(a.path("bad"), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		for _, uid := range []string{"bad", "good"} {
			if u, err := a.Of(t.Context(), uid); err == nil || !strings.Contains(err.Error(), a.path("bad")) {
				t.Errorf("%s: pod %s got %v, %v", name, uid, u, err)
			}
		}
	}
	a := allocator(t, Range{First: Block, Last: 3*Block - 1}, "a", "b", "c")
	first(t, a, "a")
	first(t, a, "b")
	if u, err := a.Of(t.Context(), "c"); err == nil || !strings.Contains(err.Error(), "are taken by 2 pods") {
		t.Errorf("a third of two: %v, %v", u, err)
	}
}

func TestRangesOfGetsubids(t *testing.T) {
	for _, c := range []struct {
		output string
		want   Range
		err    string
	}{
		{"0: kubelet 65536 7208960\n", Range{65536, 7274495}, ""},
		{"0: kubelet 65536 4294901760\n", Default, ""},
		{"", Range{}, "must be one range"},
		{"0: kubelet 65536 65536\n1: kubelet 200000 65536\n", Range{}, "must be one range"},
		{"0: kubelet 100000 65536\n", Range{}, "must be multiples"},
		{"0: kubelet 0 65536\n", Range{}, "must be multiples"},
		{"0: kubelet 65536 1000\n", Range{}, "must be multiples"},
		{"0: kubelet 65536 4294967296\n", Range{}, "out of range"},
		{"0: kubelet x 65536\n", Range{}, "invalid syntax"},
	} {
		got, err := parseRange(c.output)
		if got != c.want || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%q: got %v, %v; want %v, %q", c.output, got, err, c.want, c.err)
		}
	}
	if got := fmt.Sprint(Default); got != "{65536 4294901759}" {
		t.Errorf("the default range is %s", got)
	}
}
