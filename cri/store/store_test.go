package store

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func container(id string) Container {
	return Container{
		ID: id, SandboxID: "s", Name: "name-" + id, StopSignal: "SIGTERM",
		Config:    &runtimeapi.ContainerConfig{Metadata: &runtimeapi.ContainerMetadata{Name: "c"}},
		CreatedAt: time.Unix(1, 0).UTC(),
		Status:    Status{State: ContainerCreating},
	}
}

func open(t *testing.T, dir string) (*Table[Container], []Bad) {
	t.Helper()
	table, bad, err := Open[Container](dir, ContainerFile)
	if err != nil {
		t.Fatal(err)
	}
	return table, bad
}

func TestRecordsAreAsTheyWereAfterReopening(t *testing.T) {
	dir := t.TempDir()
	table, _ := open(t, dir)
	if err := table.Add(container("a1")); err != nil {
		t.Fatal(err)
	}
	_, err := table.Update("a1", func(c *Container) error {
		c.Pid = 7
		return c.Move(ContainerCreated)
	})
	if err != nil {
		t.Fatal(err)
	}
	again, bad := open(t, dir)
	if len(bad) != 0 {
		t.Fatalf("bad records: %v", bad)
	}
	c, ok := again.Get("a1")
	if !ok || c.Pid != 7 || c.State != ContainerCreated || c.Config.GetMetadata().GetName() != "c" {
		t.Errorf("loaded %+v", c)
	}
	if byName, ok := again.Named("name-a1"); !ok || byName.ID != "a1" {
		t.Error("the name is lost")
	}
	if err := again.Delete("a1"); err != nil {
		t.Fatal(err)
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 0 {
		t.Errorf("left: %v", entries)
	}
	if err := again.Add(Container(container("a1"))); err != nil {
		t.Errorf("the name was not freed: %v", err)
	}
}

func TestARefusedUpdateChangesNothing(t *testing.T) {
	table, _ := open(t, t.TempDir())
	if err := table.Add(container("a1")); err != nil {
		t.Fatal(err)
	}
	before, _ := table.Get("a1")
	_, err := table.Update("a1", func(c *Container) error {
		c.Pid = 99
		return c.Move(ContainerRunning)
	})
	if err == nil || err.Error() != "container a1 is creating: it cannot become running" {
		t.Errorf("error is %v", err)
	}
	if after, _ := table.Get("a1"); after.Pid != before.Pid || after.State != before.State {
		t.Errorf("record is %+v", after)
	}
	if _, err := table.Update("zz", nil); !errors.Is(err, ErrNotFound) {
		t.Errorf("unknown record: %v", err)
	}
}

func TestNamesAndIDsAreTakenOnce(t *testing.T) {
	table, _ := open(t, t.TempDir())
	if err := table.Add(container("a1")); err != nil {
		t.Fatal(err)
	}
	other := container("b1")
	other.Name = "name-a1"
	if err := table.Add(other); err == nil || err.Error() != "name name-a1 is reserved for a1" {
		t.Errorf("error is %v", err)
	}
	other = container("a1")
	other.Name = "free"
	if err := table.Add(other); err == nil {
		t.Error("the ID was taken twice")
	}
}

func TestFindTakesAnUnambiguousPrefix(t *testing.T) {
	table, _ := open(t, t.TempDir())
	for _, id := range []string{"abc1", "abd2", "abc"} {
		if err := table.Add(container(id)); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		prefix, id string
		err        error
	}{
		{"abc1", "abc1", nil}, {"abc", "abc", nil}, {"abd", "abd2", nil},
		{"ab", "", ErrAmbiguous}, {"x", "", ErrNotFound}, {"", "", ErrNotFound},
	} {
		got, err := table.Find(c.prefix)
		if !errors.Is(err, c.err) || got.ID != c.id {
			t.Errorf("%q finds %q, %v", c.prefix, got.ID, err)
		}
	}
}

func TestListsAreOrderedAndWhereLeavesTheOthersOut(t *testing.T) {
	table, _ := open(t, t.TempDir())
	for i, id := range []string{"c", "a", "d", "b"} {
		c := container(id)
		c.SandboxID = []string{"odd", "even"}[i%2]
		if err := table.Add(c); err != nil {
			t.Fatal(err)
		}
	}
	ids := func(list []Container) (s string) {
		for _, c := range list {
			s += c.ID
		}
		return s
	}
	if got := ids(table.List()); got != "abcd" {
		t.Errorf("all are %s", got)
	}
	if got := ids(table.Where(func(c Container) bool { return c.SandboxID == "even" })); got != "ab" {
		t.Errorf("of the sandbox are %s", got)
	}
	if got := table.Where(func(Container) bool { return false }); len(got) != 0 {
		t.Errorf("none is wanted, got %s", ids(got))
	}
}

func TestABadRecordIsMovedAsideAndTheOthersAreLoaded(t *testing.T) {
	for name, content := range map[string]string{
		"cut off":       `{"id":"bad","sandbox":"s"`,
		"empty":         ``,
		"of another ID": `{"id":"other","sandbox":"s","name":"n","config":{"metadata":{}},"state":"created"}`,
		"unknown state": `{"id":"bad","sandbox":"s","name":"n","config":{"metadata":{}},"state":"dancing"}`,
		"no config":     `{"id":"bad","sandbox":"s","name":"n","state":"created"}`,
		"stolen name":   `{"id":"bad","sandbox":"s","name":"name-a1","config":{"metadata":{}},"state":"created"}`,
	} {
		t.Run(name, func(t *testing.T) {
			base := t.TempDir()
			dir := filepath.Join(base, "containers")
			table, _ := open(t, dir)
			if err := table.Add(container("a1")); err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(dir, "bad", ContainerFile)
			if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
			again, bad := open(t, dir)
			if len(bad) != 1 || bad[0].ID != "bad" || bad[0].Moved != filepath.Join(base, "corrupt", "bad-"+ContainerFile) || bad[0].Err == nil {
				t.Errorf("bad records: %+v", bad)
			}
			if _, ok := again.Get("a1"); !ok {
				t.Error("the good record is lost")
			}
			if orphans, err := again.Orphans(); err != nil || len(orphans) != 1 || orphans[0] != "bad" {
				t.Errorf("orphans are %v, %v", orphans, err)
			}
			if _, bad := open(t, dir); len(bad) != 0 {
				t.Errorf("reported twice: %v", bad)
			}
		})
	}
}

func TestADirectoryWithAnUnfinishedWriteCanBeDeleted(t *testing.T) {
	table, _ := open(t, t.TempDir())
	if err := table.Add(container("a1")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(table.Dir("a1"), ".tmp-"+ContainerFile+"123"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := table.Delete("a1"); err != nil {
		t.Fatal(err)
	}
}

func TestTheFirstExitIsKept(t *testing.T) {
	c := container("a")
	c.State, c.Pid = ContainerRunning, 5
	if !c.Exit(Status{ExitCode: 3, Reason: "Error"}) || c.State != ContainerExited || c.Pid != 0 {
		t.Errorf("after the exit: %+v", c.Status)
	}
	if c.Exit(Status{ExitCode: 137}) || c.ExitCode != 3 {
		t.Errorf("after another: %+v", c.Status)
	}
}

func TestEveryStateCanReachItsRemovalAndNoneLeavesIt(t *testing.T) {
	reach := func(from ContainerState) bool {
		seen := map[ContainerState]bool{}
		todo := []ContainerState{from}
		for len(todo) > 0 {
			s := todo[0]
			todo = todo[1:]
			if s == ContainerRemoving {
				return true
			}
			if !seen[s] {
				seen[s] = true
				todo = append(todo, containerNext[s]...)
			}
		}
		return false
	}
	for s := range containerNext {
		if !reach(s) {
			t.Errorf("a container that is %s can never be removed", s)
		}
		c := Container{Status: Status{State: ContainerRemoving}}
		if err := c.Move(s); s != ContainerRemoving && err == nil {
			t.Errorf("a container goes from removing to %s", s)
		}
	}
	for s := range sandboxNext {
		sb := Sandbox{ID: "s", State: SandboxRemoving}
		if err := sb.Move(s); s != SandboxRemoving && (err == nil || !strings.Contains(err.Error(), "cannot become")) {
			t.Errorf("a sandbox goes from removing to %s", s)
		}
	}
}

func FuzzAnyFileIsLoadedOrRefused(f *testing.F) {
	f.Add(`{"id":"bad","sandbox":"s","name":"n","config":{"metadata":{}},"state":"created"}`)
	f.Add(`{"id":1}`)
	f.Fuzz(func(t *testing.T, content string) {
		path := filepath.Join(t.TempDir(), "x")
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		c, err := load[Container](path, "bad")
		if err == nil && c.Key() != "bad" {
			t.Errorf("loaded %+v", c)
		}
	})
}
