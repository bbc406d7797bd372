package server

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-io/berth/cri/selinux"
)

// permissive is a policy that knows everything. The kernel of the test may know
// nothing of it, and refuse mounts with a label.
type permissive struct{}

func (permissive) Contexts() (process, file string) { return "u:r:container_t:s0", "u:o:file_t:s0" }
func (permissive) Check(string) error               { return nil }
func (permissive) Relabel(string, string) error     { return nil }

const noneLeft = "all pairs of 2 SELinux categories are taken"

func TestLabelsAreFoundAgainInRecordsAndReleasedWithThem(t *testing.T) {
	w := newWorld(t)
	s := w.start(t)
	sb := runSandbox(t, s, "old")
	s.Close()
	// The sandbox has the one pair of categories there is, says its record.
	file := filepath.Join(w.dir, "run/sandboxes", sb, "sandbox.json")
	record, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	labelled := strings.Replace(string(record), "{", `{"selinux":{"process":"u:r:container_t:s0:c0,c1","file":"u:o:file_t:s0:c0,c1"},`, 1)
	if err := os.WriteFile(file, []byte(labelled), 0o600); err != nil {
		t.Fatal(err)
	}
	if w.labels, err = selinux.New(permissive{}, 2); err != nil {
		t.Fatal(err)
	}
	s = w.start(t)
	defer s.Close()
	if _, err := s.RunPodSandbox(t.Context(), sandboxRequest("new")); err == nil || !strings.Contains(err.Error(), noneLeft) {
		t.Errorf("another sandbox: %v", err)
	}
	removeSandbox(t, s, sb)
	// Twice: one that fails gives its label back as well.
	for range 2 {
		_, err := s.RunPodSandbox(t.Context(), sandboxRequest("new"))
		if err != nil && strings.Contains(err.Error(), noneLeft) {
			t.Errorf("after the removal: %v", err)
		}
	}
	for _, sb := range s.sandboxes.List() { // on a kernel with SELinux
		removeSandbox(t, s, sb.ID)
	}
	w.checkEmpty(t)
}

func TestALabelThatIsNoneIsRefused(t *testing.T) {
	w := newWorld(t)
	s := w.start(t)
	defer s.Close()
	bad := sandboxRequest("a")
	bad.Config.Linux.SecurityContext.SelinuxOptions = &runtimeapi.SELinuxOption{Type: "a b"}
	if _, err := s.RunPodSandbox(t.Context(), bad); err == nil || !strings.Contains(err.Error(), "config.linux.security_context.selinux_options.type") {
		t.Errorf("sandbox: %v", err)
	}
	sb := runSandbox(t, s, "a")
	req := containerRequest(sb, "main")
	req.Config.Linux = &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
		SelinuxOptions: &runtimeapi.SELinuxOption{Level: "high"},
	}}
	if _, err := s.CreateContainer(t.Context(), req); err == nil || !strings.Contains(err.Error(), "config.linux.security_context.selinux_options.level") {
		t.Errorf("container: %v", err)
	}
	removeSandbox(t, s, sb)
	w.checkEmpty(t)
}
