package server

import (
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// A program must not be started twice: once it may have been, only the word that
// it was not lets the runtime try.
func TestTheRuntimeTriesOnlyWhatHasNotBeenStarted(t *testing.T) {
	for said, want := range map[string]struct {
		pid      int
		declined bool
	}{
		`{"forking":true}{"pid":7}`:             {pid: 7},
		`{"error":"no"}`:                        {declined: true},
		`{"forking":true}{"error":"no"}`:        {declined: true},
		``:                                      {declined: true},
		`{"forki`:                               {declined: true},
		`nonsense`:                              {declined: true},
		`{"forking":true}`:                      {},
		`{"forking":true}{"pi`:                  {},
		`{"forking":true}{"forking":true}`:      {},
		`{"forking":true}{"error":"","pid":"x"`: {},
	} {
		var p [2]int
		if err := unix.Pipe2(p[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
			t.Fatal(err)
		}
		if _, err := unix.Write(p[1], []byte(said)); err != nil {
			t.Fatal(err)
		}
		if err := unix.Close(p[1]); err != nil {
			t.Fatal(err)
		}
		report := os.NewFile(uintptr(p[0]), "report")
		pid, err := follow(report)
		if pid != want.pid || (err == nil) != (want.pid != 0) || errors.Is(err, errDeclined) != want.declined {
			t.Errorf("%q: %d, %v", said, pid, err)
		}
		if err := report.Close(); err != nil {
			t.Error(err)
		}
	}
}
