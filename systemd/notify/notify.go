// Package notify tells the service manager how the daemon is: ready, alive,
// stopping. Without a service manager (no NOTIFY_SOCKET) everything is a no-op.
package notify

import (
	"context"
	"fmt"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
)

// Ready says that the daemon is in control. status is what `systemctl status`
// shows.
func Ready(status string) error {
	return tell(daemon.SdNotifyReady + "\nSTATUS=" + status)
}

// Stopping says that the daemon ends because it was asked to.
func Stopping() error { return tell(daemon.SdNotifyStopping) }

// Watchdog tells the service manager, at half the interval it asks for, that
// the daemon is alive, as long as healthy says so. A daemon that hangs is then
// killed and started anew; its pods run on. It returns when ctx ends, or at
// once where no watchdog is asked for.
func Watchdog(ctx context.Context, healthy func(context.Context) error) error {
	interval, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		return fmt.Errorf("read the watchdog interval: %w", err)
	}
	if interval == 0 {
		return nil
	}
	tick := time.NewTicker(interval / 2)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		check, cancel := context.WithTimeout(ctx, interval/2)
		err := healthy(check)
		cancel()
		if err != nil {
			continue // silence is the message
		}
		if err := tell(daemon.SdNotifyWatchdog); err != nil {
			return err
		}
	}
}

func tell(state string) error {
	if _, err := daemon.SdNotify(false, state); err != nil {
		return fmt.Errorf("notify the service manager: %w", err)
	}
	return nil
}
