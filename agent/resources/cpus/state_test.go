package cpus

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"k8s.io/utils/cpuset"
)

func stateFile(t testing.TB, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "cpu_manager_state")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// The files and checksums are the kubelet's own.
func TestStateFilesOfTheKubeletAreRead(t *testing.T) {
	s, err := Load(stateFile(t, `{"policyName":"none","defaultCpuSet":"4-6","entries":{},"checksum":354655845}`), "none")
	if err != nil || !s.Default.Equals(cpuset.New(4, 5, 6)) {
		t.Errorf("got %v, %v", s, err)
	}
	s, err = Load(stateFile(t, `{"policyName":"none","defaultCpuSet":"1-3","entries":{"pod":{"container1":"4-6","container2":"1-3"}},"checksum":3610638499}`), "none")
	want := State{Default: cpuset.New(1, 2, 3), Assigned: map[string]map[string]cpuset.CPUSet{"pod": {"container1": cpuset.New(4, 5, 6), "container2": cpuset.New(1, 2, 3)}}}
	if err != nil || !s.Equal(want) {
		t.Errorf("got %v, %v", s, err)
	}
	if s, err = Load(filepath.Join(t.TempDir(), "none"), "static"); err != nil || !s.Default.IsEmpty() {
		t.Errorf("no file: got %v, %v", s, err)
	}
}

func TestStateFilesThatCannotBeTrustedAreRefused(t *testing.T) {
	for content, want := range map[string]string{
		`{`: "unexpected end of JSON input",
		`{"policyName":"none","defaultCpuSet":"4-6","entries":{},"checksum":1337}`:                               "checkpoint is corrupted",
		`{"policyName":"other","defaultCpuSet":"1-3","entries":{},"checksum":1394507217}`:                        `configured policy "none" differs from state checkpoint policy "other"`,
		`{"policyName":"none","defaultCpuSet":"1.3","entries":{},"checksum":3021697696}`:                         `could not parse default cpu set "1.3"`,
		`{"policyName":"none","defaultCpuSet":"1-3","entries":{"pod":{"container1":"asd"}},"checksum":0}`:        `could not parse cpuset "asd" for container "container1" in pod "pod"`,
		`{"policyName":"none","defaultCpuSet":"1-3","entries":{"pod":{"container1":"4"}},"checksum":3610638499}`: "checkpoint is corrupted",
	} {
		path := stateFile(t, content)
		if _, err := Load(path, "none"); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v, want %q", content, err, want)
		}
	}
}

func FuzzStateFile(f *testing.F) {
	f.Add(`{"policyName":"static","defaultCpuSet":"0-3","entries":{"a":{"b":"4-5"}},"checksum":0}`)
	f.Add(`{"policyName":"static","defaultCpuSet":"","entries":null}`)
	f.Add(`[]`)
	f.Fuzz(func(t *testing.T, content string) {
		s, err := decode([]byte(content), "static")
		if err != nil {
			return
		}
		file, err := json.Marshal(encode("static", s))
		if err != nil {
			t.Fatal(err)
		}
		again, err := decode(file, "static")
		if err != nil || !again.Equal(s) {
			t.Errorf("saved %v, loaded %v, %v", s, again, err)
		}
	})
}

func TestAStateThatIsSavedIsLoaded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "cpu_manager_state")
	s := State{Default: cpuset.New(0, 3), Assigned: map[string]map[string]cpuset.CPUSet{"a": {"b": cpuset.New(1, 2)}, "c": {"d": cpuset.New(4)}}}
	if err := Save(path, "static", s); err != nil {
		t.Fatal(err)
	}
	if again, err := Load(path, "static"); err != nil || !again.Equal(s) {
		t.Errorf("got %v, %v", again, err)
	}
}
