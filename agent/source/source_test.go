package source

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/berth-io/berth/agent/manifest"
)

// node is a running source over real directories.
type node struct {
	*Dir
	t          *testing.T
	dir, cache string
	stop       func()
}

func newNode(t *testing.T) *node {
	base := t.TempDir()
	n := &node{t: t, dir: filepath.Join(base, "manifests"), cache: filepath.Join(base, "cache")}
	if err := os.Mkdir(n.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return n
}

// start runs the source, with a rescan that does not come unless asked for.
func (n *node) start(rescan time.Duration) {
	n.t.Helper()
	n.Dir = NewDir(Config{
		Dir: n.dir, CacheDir: n.cache, Rescan: rescan,
		Options: manifest.Options{NodeName: "node-a", ClaimsDir: "/claims"},
		Logger:  slog.New(slog.DiscardHandler),
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx) }()
	stopped := false
	n.stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			n.t.Errorf("run: %v", err)
		}
	}
	n.t.Cleanup(n.stop)
	n.await("the first snapshot", func(s Snapshot) bool { return s.Complete || len(s.Rejected) > 0 })
}

const never = time.Hour

func (n *node) await(what string, ok func(Snapshot) bool) Snapshot {
	n.t.Helper()
	deadline := time.After(10 * time.Second)
	for {
		if s := n.Snapshot(); ok(s) {
			return s
		}
		select {
		case <-n.Changed():
		case <-deadline:
			n.t.Fatalf("no %s; now %s", what, summary(n.Snapshot()))
		}
	}
}

// awaitIs waits for a snapshot with exactly these pods and rejections.
func (n *node) awaitIs(want string) Snapshot {
	n.t.Helper()
	return n.await(want, func(s Snapshot) bool { return summary(s) == want })
}

// summary is "pod:image ... | rejection; ...".
func summary(s Snapshot) string {
	var b strings.Builder
	for i, pod := range s.Set.Pods {
		if i > 0 {
			b.WriteString(" ")
		}
		fmt.Fprintf(&b, "%s:%s", pod.Name, pod.Spec.Containers[0].Image)
	}
	for i, r := range s.Rejected {
		b.WriteString([]string{" | ", "; "}[min(i, 1)] + r.Error())
	}
	return b.String()
}

func pod(name, image string) string {
	return fmt.Sprintf("apiVersion: v1\nkind: Pod\nmetadata: {name: %s}\nspec: {containers: [{name: main, image: %s}]}\n", name, image)
}

func (n *node) path(name string) string { return filepath.Join(n.dir, name) }

func (n *node) write(name, data string) {
	n.t.Helper()
	n.must(os.WriteFile(n.path(name), []byte(data), 0o644))
}

func (n *node) must(err error) {
	n.t.Helper()
	if err != nil {
		n.t.Fatal(err)
	}
}

func TestFilesComeChangeAndGo(t *testing.T) {
	n := newNode(t)
	n.write("a.yaml", pod("a", "one"))
	n.start(never)
	first := n.awaitIs("a:one")

	n.write("b.yaml", pod("b", "one"))
	second := n.awaitIs("a:one b:one")
	if first.Set.Pods[0] != second.Set.Pods[0] {
		t.Error("a pod that did not change is another pointer")
	}
	n.must(os.WriteFile(n.path(".c.tmp"), []byte(pod("c", "one")), 0o644))
	n.must(os.Rename(n.path(".c.tmp"), n.path("c.yaml")))
	n.awaitIs("a:one b:one c:one")

	n.write("b.yaml", pod("b", "two"))
	n.awaitIs("a:one b:two c:one")
	n.must(os.Remove(n.path("a.yaml")))
	n.awaitIs("b:two c:one")
	n.must(os.Rename(n.path("c.yaml"), n.path("d.yaml")))
	moved := n.awaitIs("b:two c:one")
	for len(moved.Set.Pods) != 2 || moved.Set.Pods[1].Annotations[manifest.AnnotationManifest] != "d.yaml" {
		moved = n.await("c from d.yaml", func(s Snapshot) bool {
			return len(s.Set.Pods) == 2 && s.Set.Pods[1].Annotations[manifest.AnnotationManifest] == "d.yaml"
		})
	}
}

func TestAFileIsReadOnceItsWriterIsDone(t *testing.T) {
	n := newNode(t)
	half, err := os.Create(n.path("half.yaml"))
	n.must(err)
	_, err = half.WriteString(pod("a", "one"))
	n.must(err)
	n.start(never)
	s := n.awaitIs(" | half.yaml: cannot be read: open for writing; it is read once it is closed")
	if s.Complete {
		t.Error("complete while a file could not be read")
	}
	slow, err := os.Create(n.path("slow.yaml"))
	n.must(err)
	for _, part := range strings.SplitAfter(pod("b", "one"), "\n") {
		_, err = slow.WriteString(part)
		n.must(err)
		time.Sleep(10 * time.Millisecond)
	}
	if got := summary(n.Snapshot()); strings.Contains(got, "slow.yaml") || strings.Contains(got, "b:one") {
		t.Errorf("read while it was written: %s", got)
	}
	n.must(slow.Close())
	n.await("pod b", func(s Snapshot) bool { return strings.HasPrefix(summary(s), "b:one") })
	_, err = half.WriteString("---\n" + pod("a2", "one"))
	n.must(err)
	n.must(half.Close())
	if s := n.awaitIs("a:one a2:one b:one"); !s.Complete {
		t.Error("not complete")
	}
}

func TestABurstOfFilesIsDeliveredWhole(t *testing.T) {
	n := newNode(t)
	n.start(never)
	for i := range 100 {
		n.write(fmt.Sprintf("p%03d.yaml", i), pod(fmt.Sprintf("p%03d", i), "one"))
	}
	n.await("100 pods", func(s Snapshot) bool { return len(s.Set.Pods) == 100 && len(s.Rejected) == 0 })
	n.must(os.RemoveAll(n.dir))
	n.await("no pods", func(s Snapshot) bool { return len(s.Set.Pods) == 0 })
}

func TestAnInvalidFileKeepsItsLastGoodVersion(t *testing.T) {
	n := newNode(t)
	n.write("a.yaml", pod("a", "one"))
	n.start(never)
	n.awaitIs("a:one")
	n.write("a.yaml", strings.Replace(pod("a", "two"), "image", "imagee", 1))
	bad := "a:one | a.yaml:4: spec.containers[0].imagee: unknown field (did you mean image?)"
	before := n.awaitIs(bad)

	n.stop() // over a restart too
	n.start(never)
	after := n.awaitIs(bad)
	if !after.Complete {
		t.Error("not complete after the restart")
	}
	if b, a := before.Set.Pods[0], after.Set.Pods[0]; b.UID != a.UID || !b.CreationTimestamp.Equal(&a.CreationTimestamp) {
		t.Errorf("UID %s, created %s became %s, %s", b.UID, b.CreationTimestamp, a.UID, a.CreationTimestamp)
	}
	n.write("a.yaml", pod("a", "three"))
	n.awaitIs("a:three")
	n.stop()

	n.must(os.Remove(n.path("a.yaml"))) // gone while nobody looked: gone
	n.start(never)
	n.awaitIs("")
	n.stop()
	n.write("a.yaml", "nonsense")
	n.start(never)
	n.awaitIs(" | a.yaml:1: must be a Kubernetes object with apiVersion and kind")
}

func TestAnUnreadableFileIsReportedAndNotARemoval(t *testing.T) {
	n := newNode(t)
	target := filepath.Join(t.TempDir(), "target")
	n.must(os.WriteFile(target, []byte(pod("a", "one")), 0o644))
	n.must(os.Symlink(target, n.path("a.yaml")))
	n.start(20 * time.Millisecond)
	n.awaitIs("a:one")
	n.must(os.Remove(target))
	gone := "a:one | a.yaml: cannot be read, its last good version stays in force: no such file or directory"
	n.awaitIs(gone)
	n.stop()
	n.start(20 * time.Millisecond)
	n.awaitIs(gone)
	n.must(os.WriteFile(target, []byte(pod("a", "two")), 0o644))
	n.awaitIs("a:two")
	n.must(os.Remove(n.path("a.yaml")))
	n.awaitIs("")
}

func TestWhatIsNoRegularFileIsReported(t *testing.T) {
	n := newNode(t)
	n.must(os.Symlink(t.TempDir(), n.path("link")))
	n.must(os.Mkdir(n.path("sub"), 0o755))
	n.start(never)
	if s := n.awaitIs(" | link: cannot be read: not a regular file"); !s.Complete {
		t.Error("not complete")
	}
}

func TestEditorsSaveWithoutARemoval(t *testing.T) {
	n := newNode(t)
	n.write("a.yaml", pod("a", "one"))
	n.start(never)
	n.awaitIs("a:one")
	var seen []string
	watch := func(want string) {
		n.await(want, func(s Snapshot) bool { seen = append(seen, summary(s)); return summary(s) == want })
	}
	// vim: the old file aside, the new one in its place.
	n.must(os.Rename(n.path("a.yaml"), n.path("a.yaml~")))
	time.Sleep(removalDelay / 4)
	n.write("a.yaml", pod("a", "two"))
	watch("a:two")
	n.must(os.Remove(n.path("a.yaml~")))
	// sed -i: a copy under another name, then a rename.
	n.write("sedXYZ", pod("a", "three"))
	n.must(os.Rename(n.path("sedXYZ"), n.path("a.yaml")))
	watch("a:three")
	n.await("no trace of the copy", func(s Snapshot) bool { return len(s.Rejected) == 0 })
	for _, s := range seen {
		if !strings.HasPrefix(s, "a:") || strings.Contains(s, "a:three |") && !strings.Contains(s, "sedXYZ") {
			t.Errorf("on the way: %q", s)
		}
	}
}

func TestTheFirstFileToDefineAnObjectKeepsIt(t *testing.T) {
	n := newNode(t)
	n.write("b.yaml", pod("a", "one"))
	n.start(never)
	n.awaitIs("a:one")
	n.write("a.yaml", pod("a", "two"))
	n.awaitIs("a:one | a.yaml: metadata.name: Pod default/a is already defined in b.yaml")
	n.must(os.Remove(n.path("b.yaml")))
	n.awaitIs("a:two")
}

func TestRescanFindsWhatTheWatchMissed(t *testing.T) {
	n := newNode(t)
	n.write("a.yaml", pod("a", "one"))
	n.start(20 * time.Millisecond)
	n.awaitIs("a:one")
	// A change through a link is one that no event tells of.
	other := filepath.Join(t.TempDir(), "other")
	n.must(os.WriteFile(other, []byte(pod("b", "one")), 0o644))
	n.must(os.Symlink(other, n.path("b.yaml")))
	n.awaitIs("a:one b:one")
	n.must(os.WriteFile(other, []byte(pod("b", "two")), 0o644))
	n.awaitIs("a:one b:two")
}

func TestAnOverflowOfTheEventQueueCausesARescan(t *testing.T) {
	n := newNode(t)
	n.write("a.yaml", pod("a", "one"))
	d := NewDir(Config{Dir: n.dir, CacheDir: n.cache, Logger: slog.New(slog.DiscardHandler)})
	w, err := newWatcher(n.dir)
	n.must(err)
	defer w.file.Close()
	if !d.handle(w, []event{{wd: -1, mask: 0x4000}}) { // IN_Q_OVERFLOW
		t.Fatal("nothing found")
	}
	d.publish()
	if got := summary(d.Snapshot()); got != "a:one" {
		t.Errorf("got %q", got)
	}
}

func TestTheDirectoryIsReplaced(t *testing.T) {
	n := newNode(t)
	n.write("a.yaml", pod("a", "one"))
	n.start(never)
	n.awaitIs("a:one")
	n.must(os.Rename(n.dir, n.dir+".old"))
	n.await("a report, and pod a still there", func(s Snapshot) bool {
		return len(s.Set.Pods) == 1 && len(s.Rejected) == 1 && strings.Contains(s.Rejected[0].Error(), "what is known stays in force")
	})
	fresh := n.dir + ".new"
	n.must(os.Mkdir(fresh, 0o755))
	n.must(os.WriteFile(filepath.Join(fresh, "b.yaml"), []byte(pod("b", "one")), 0o644))
	n.must(os.Rename(fresh, n.dir))
	n.awaitIs("b:one")
	n.write("c.yaml", pod("c", "one"))
	n.awaitIs("b:one c:one")
}

func TestAMountedConfigMapIsUpdated(t *testing.T) {
	n := newNode(t)
	version := func(v, image string) {
		n.must(os.Mkdir(n.path(v), 0o755))
		n.must(os.WriteFile(filepath.Join(n.path(v), "a.yaml"), []byte(pod("a", image)), 0o644))
		n.must(os.Symlink(v, n.path("..data_tmp")))
		n.must(os.Rename(n.path("..data_tmp"), n.path("..data")))
	}
	version("..v1", "one")
	n.must(os.Symlink("..data/a.yaml", n.path("a.yaml")))
	n.start(never)
	n.awaitIs("a:one")
	version("..v2", "two")
	n.awaitIs("a:two")
}

func TestAMissingDirectoryIsMade(t *testing.T) {
	n := newNode(t)
	n.must(os.Remove(n.dir))
	n.start(never)
	if !n.Snapshot().Complete {
		t.Error("not complete")
	}
	n.write("a.yaml", pod("a", "one"))
	n.awaitIs("a:one")
}

func TestObjectsComeFromTheCurrentSnapshot(t *testing.T) {
	n := newNode(t)
	n.start(never)
	if cm, err := n.ConfigMap("default", "c"); cm != nil || err != nil {
		t.Errorf("got %v, %v", cm, err)
	}
	n.write("objects.yaml", `apiVersion: v1
kind: ConfigMap
metadata: {name: c}
data: {a: b}
---
apiVersion: v1
kind: Secret
metadata: {name: s}
stringData: {a: b}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: d}
spec: {accessModes: [ReadOnlyMany], resources: {requests: {storage: 1Gi}}}
`)
	n.await("a ConfigMap", func(s Snapshot) bool { return len(s.Set.ConfigMaps) == 1 })
	if cm, _ := n.ConfigMap("default", "c"); cm == nil || cm.Data["a"] != "b" {
		t.Errorf("got %v", cm)
	}
	if s, _ := n.Secret("default", "s"); s == nil || string(s.Data["a"]) != "b" {
		t.Errorf("got %v", s)
	}
	if dir, ro, _ := n.Claim("default", "d"); dir != "/claims/default/d" || !ro {
		t.Errorf("got %s %v", dir, ro)
	}
}

func TestIgnoredNames(t *testing.T) {
	for name, want := range map[string]bool{
		"web.yaml": false, "web": false, "web.json": false,
		".web.yaml": true, ".web.yaml.swp": true, "web.yaml~": true, "#web.yaml#": true, "..data": true, "web.yaml.dpkg-new": true,
	} {
		if ignored(name) != want {
			t.Errorf("%s ignored: %v", name, !want)
		}
	}
}

func FuzzParseEvents(f *testing.F) {
	f.Add([]byte{1, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 'a', 0, 0, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, e := range parseEvents(data) {
			if strings.Contains(e.name, "\x00") {
				t.Fatalf("name %q", e.name)
			}
		}
	})
}
