package stats

import (
	"encoding/json"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "write the golden files")

// golden compares a value, as JSON, with a file.
func golden(t *testing.T, file string, value any) {
	t.Helper()
	got, err := json.MarshalIndent(value, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	got = append(got, '\n')
	path := filepath.Join("testdata", file)
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != string(want) {
		t.Errorf("%s differs (-update writes it):\n%s", file, got)
	}
}

// hugePageSizes: of those of 1 GB, the files are as before Linux 5.7.
var hugePageSizes = []string{"2MB", "1GB"}

// The directories hold the files of real cgroups: v1 of Linux 6.18, v2 of 7.2.
// Those of huge pages are made up: neither host had the controller.
func testReader(t *testing.T, version string) *Reader {
	t.Helper()
	root, err := filepath.Abs(filepath.Join("testdata", version))
	if err != nil {
		t.Fatal(err)
	}
	if version == "v2" {
		return NewReader(Hierarchies{Unified: true, HugePageSizes: hugePageSizes, Mount: func(string) string { return root }})
	}
	return NewReader(Hierarchies{HugePageSizes: hugePageSizes, Mount: func(controller string) string {
		if controller == "" {
			return ""
		}
		return filepath.Join(root, controller)
	}})
}

func TestEveryNumberOfACgroupIsFoundInEitherVersion(t *testing.T) {
	for _, version := range []string{"v1", "v2"} {
		d, err := testReader(t, version).Detail("/pod")
		if err != nil {
			t.Fatal(err)
		}
		if time.Since(d.At) > time.Minute {
			t.Errorf("read at %v", d.At)
		}
		d.At = time.Time{}
		golden(t, version+".json", d)
	}
}

func TestUsageIsTheFirstPartOfDetail(t *testing.T) {
	for _, version := range []string{"v1", "v2"} {
		r := testReader(t, version)
		d, err := r.Detail("/pod")
		if err != nil {
			t.Fatal(err)
		}
		u, err := r.Usage("/pod")
		if err != nil {
			t.Fatal(err)
		}
		if u.CPU.Total != d.CPU.Total || u.Memory.WorkingSet != d.Memory.WorkingSet || u.Memory.RSS != d.Memory.RSS || *u.Swap != *d.Swap {
			t.Errorf("%s: usage %+v, detail %+v", version, u, d)
		}
	}
}

func TestACgroupThatIsNotThereIsGone(t *testing.T) {
	for _, version := range []string{"v1", "v2"} {
		r := testReader(t, version)
		if u, err := r.Usage("/nothing"); !errors.Is(err, ErrGone) {
			t.Errorf("%s: %+v, %v", version, u, err)
		}
		if pids, err := r.Processes("/nothing"); err != nil || len(pids) > 0 {
			t.Errorf("%s: %v, %v", version, pids, err)
		}
	}
}

func TestProcessesAreThoseOfTheCgroupAndBelow(t *testing.T) {
	root := t.TempDir()
	for path, procs := range map[string]string{"pod": "", "pod/a": "3\n4\n", "pod/a/nested": "0\n", "pod/b": "5\n"} {
		dir := filepath.Join(root, path)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(procs), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	r := NewReader(Hierarchies{Unified: true, Mount: func(string) string { return root }})
	pids, err := r.Processes("pod")
	slices.Sort(pids)
	if err != nil || !slices.Equal(pids, []int{0, 3, 4, 5}) {
		t.Errorf("%v, %v", pids, err)
	}
}

func TestAFileThatMakesNoSenseIsAnErrorThatNamesIt(t *testing.T) {
	root := t.TempDir()
	for name, content := range map[string]string{"cpu.stat": "usage_usec 1\n", "memory.current": "lots\n"} {
		if err := os.WriteFile(filepath.Join(root, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	r := NewReader(Hierarchies{Unified: true, Mount: func(string) string { return root }})
	_, err := r.Usage("/")
	if want := "read " + root + "/memory.current: strconv.ParseUint: parsing \"lots\": invalid syntax"; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

func TestWhatTheKernelDoesNotAccountIsAbsent(t *testing.T) {
	root := t.TempDir()
	if err := os.WriteFile(filepath.Join(root, "cpu.stat"), []byte("usage_usec 1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	r := NewReader(Hierarchies{Unified: true, Mount: func(string) string { return root }})
	d, err := r.Detail("/")
	if err != nil || d.CPU == nil || d.CPU.Total != time.Microsecond || d.Memory != nil || d.Swap != nil || d.CPUPressure != nil || d.Tasks != nil {
		t.Errorf("%+v, %v", d, err)
	}
}

// On a hybrid host PSI is in version 2, and it is the pod's only when the
// pod's processes are there as well.
func TestPressureOnAHybridHost(t *testing.T) {
	for events, want := range map[string]bool{"populated 1\nfrozen 0\n": true, "populated 0\nfrozen 0\n": false} {
		root := t.TempDir()
		for name, content := range map[string]string{
			"cpuacct/cpuacct.usage": "5\n", "unified/cgroup.events": events,
			"unified/cpu.pressure": "some avg10=1.00 avg60=0.00 avg300=0.00 total=1\n",
		} {
			path := filepath.Join(root, name)
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		r := NewReader(Hierarchies{Mount: func(controller string) string {
			return map[string]string{"": root + "/unified", "cpuacct": root + "/cpuacct"}[controller]
		}})
		u, err := r.Usage("/")
		if err != nil || (u.CPUPressure != nil) != want {
			t.Errorf("%q: %+v, %v", events, u, err)
		}
	}
}

func TestCPUUseIsThatOfTheWindow(t *testing.T) {
	start := time.Now()
	var r Rate
	for i, step := range []struct {
		after, total time.Duration
		want         uint64
		known        bool
	}{
		{0, 10 * time.Second, 0, false},
		{500 * time.Millisecond, 11 * time.Second, 0, false},            // too early: the first reading stays
		{10 * time.Second, 15 * time.Second, 500_000_000, true},         // half a core
		{10200 * time.Millisecond, 16 * time.Second, 500_000_000, true}, // too early: the same answer
		{12 * time.Second, 19 * time.Second, 2_000_000_000, true},
		{22 * time.Second, 19 * time.Second, 0, true},
		{32 * time.Second, time.Second, 0, false}, // another cgroup
		{42 * time.Second, 2 * time.Second, 100_000_000, true},
	} {
		got, known := r.Update(start.Add(step.after), step.total)
		if got != step.want || known != step.known {
			t.Errorf("step %d: %d, %v; want %d, %v", i, got, known, step.want, step.known)
		}
	}
}
