package server

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestAShimStaysUntilTheHostGoesDown(t *testing.T) {
	pid1 := filepath.Join(t.TempDir(), "comm")
	name := func(program string) {
		if err := os.WriteFile(pid1, []byte(program+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	name("systemd")
	signals, done := make(chan os.Signal), make(chan struct{})
	go func() {
		defer close(done)
		refuse(signals, pid1)
	}()
	for range 3 {
		select {
		case signals <- unix.SIGTERM: // taken only while it stays
		case <-done:
			t.Fatal("it ended with its host up")
		}
	}
	// The last of the three may still be looked at.
	signals <- unix.SIGHUP
	name("systemd-shutdow")
	for {
		select {
		case signals <- unix.SIGTERM:
		case <-done:
			return
		}
	}
}
