package network

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/fsnotify/fsnotify"
)

// Run follows changes of the configuration directory until ctx ends. Writers
// make several events of one change: it is read once they have settled.
func (n *Network) Run(ctx context.Context) error {
	if err := os.MkdirAll(n.cfg.ConfDir, 0o755); err != nil {
		return fmt.Errorf("create the network configuration directory: %w", err)
	}
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch the network configurations: %w", err)
	}
	defer watcher.Close()
	if err := watcher.Add(n.cfg.ConfDir); err != nil {
		return fmt.Errorf("watch the network configurations in %s: %w", n.cfg.ConfDir, err)
	}
	n.Reload() // what changed since New
	settled := time.NewTimer(time.Hour)
	settled.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case _, ok := <-watcher.Events:
			if !ok {
				return fmt.Errorf("watch the network configurations in %s: the watch ended", n.cfg.ConfDir)
			}
			settled.Reset(50 * time.Millisecond)
		case err := <-watcher.Errors:
			n.cfg.Logger.Warn("network configuration watch", "error", err)
			settled.Reset(50 * time.Millisecond)
		case <-settled.C:
			n.Reload()
		}
	}
}
