package notify

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"testing"
)

// listen stands in for the service manager.
func listen(t *testing.T) *net.UnixConn {
	t.Helper()
	path := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	t.Setenv("NOTIFY_SOCKET", path)
	return conn
}

func receive(t *testing.T, conn *net.UnixConn) string {
	t.Helper()
	b := make([]byte, 1024)
	n, err := conn.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	return string(b[:n])
}

func TestReadyCarriesAStatusLine(t *testing.T) {
	conn := listen(t)
	if err := Ready("in control of 3 pods"); err != nil {
		t.Fatal(err)
	}
	if got, want := receive(t, conn), "READY=1\nSTATUS=in control of 3 pods"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestWatchdogIsFedOnlyWhileHealthy(t *testing.T) {
	conn := listen(t)
	t.Setenv("WATCHDOG_USEC", "20000")
	ctx, cancel := context.WithCancel(t.Context())
	sick := 3 // times before it is well
	done := make(chan error, 1)
	go func() {
		done <- Watchdog(ctx, func(context.Context) error {
			if sick--; sick >= 0 {
				return errors.New("hung")
			}
			return nil
		})
	}()
	if got := receive(t, conn); got != "WATCHDOG=1" {
		t.Errorf("got %q", got)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if sick >= 0 {
		t.Error("the watchdog was fed although the daemon hung")
	}
}

func TestWithoutAServiceManagerNothingHappens(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	if err := Ready("x"); err != nil {
		t.Error(err)
	}
	if err := Watchdog(t.Context(), nil); err != nil {
		t.Error(err)
	}
}
