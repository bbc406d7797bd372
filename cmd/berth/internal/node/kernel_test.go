package node

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// sysctls is a /proc/sys with the settings that the kubelet wants, but for one.
func sysctls(t *testing.T, name, value string) string {
	t.Helper()
	dir := t.TempDir()
	for _, s := range kernelSettings {
		path := filepath.Join(dir, s.name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if s.name == name {
			s.value = value
		}
		if err := os.WriteFile(path, []byte(s.value+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestTheKernelIsSetUpUnlessItsDefaultsAreProtected(t *testing.T) {
	dir := sysctls(t, "kernel/panic", "0")
	err := setKernel(dir, true, slog.New(slog.DiscardHandler))
	if err == nil || !strings.Contains(err.Error(), "kernel/panic is 0 and must be 10: set it (sysctl -w kernel.panic=10)") {
		t.Errorf("protected: %v", err)
	}
	if data, err := os.ReadFile(filepath.Join(dir, "kernel/panic")); err != nil || string(data) != "0\n" {
		t.Errorf("protected and changed: %q, %v", data, err)
	}
	for _, protect := range []bool{false, true} { // the second finds all as it is to be
		if err := setKernel(dir, protect, slog.New(slog.DiscardHandler)); err != nil {
			t.Errorf("protect %v: %v", protect, err)
		}
	}
	if data, err := os.ReadFile(filepath.Join(dir, "kernel/panic")); err != nil || strings.TrimSpace(string(data)) != "10" {
		t.Errorf("not changed: %q, %v", data, err)
	}
	if err := setKernel(t.TempDir(), false, slog.New(slog.DiscardHandler)); err == nil {
		t.Error("a kernel without these settings is taken for one that has them")
	}
}
