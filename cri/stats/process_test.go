package stats

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"testing"
)

func TestOpenFilesAndSocketsOfAProcess(t *testing.T) {
	before, err := Open([]int{os.Getpid()})
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	c, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	after, err := Open([]int{os.Getpid()})
	// The first socket brings the poller's files with it.
	if err != nil || after.Files < before.Files+2 || after.Sockets != before.Sockets+1 {
		t.Errorf("before %+v, after %+v, %v", before, after, err)
	}
	if limit, err := OpenFilesLimit(os.Getpid()); err != nil || limit == 0 {
		t.Errorf("limit %d, %v", limit, err)
	}
}

func TestAProcessThatHasEndedHoldsNothing(t *testing.T) {
	c := exec.Command("true")
	if err := c.Run(); err != nil {
		t.Fatal(err)
	}
	if o, err := Open([]int{c.Process.Pid}); err != nil || o != (OpenFiles{}) {
		t.Errorf("%+v, %v", o, err)
	}
}

func TestTooManyOpenFilesAreNotCounted(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"0", "1", "2"} {
		write(t, dir+"/"+name, 0)
	}
	if names, err := fileNames(dir, 3); err != nil || len(names) != 3 {
		t.Errorf("%v, %v", names, err)
	}
	if _, err := fileNames(dir, 2); !errors.Is(err, ErrTooMany) {
		t.Errorf("got %v", err)
	}
}
