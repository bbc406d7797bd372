// Command berth-cni is Berth's CNI plugin as an executable, for any runtime. It
// holds no logic: see package cni/plugin and docs/cni.md.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"

	"github.com/berth-io/berth/cni/plugin"
)

func main() { os.Exit(run()) }

// run answers the one call this process was made for.
func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	defer stop()
	if os.Getenv("CNI_COMMAND") == "" {
		fmt.Fprintln(os.Stderr, "berth-cni is a CNI plugin, executed by a container runtime: see docs/cni.md")
		return 1
	}
	var stdin []byte
	if os.Getenv("CNI_COMMAND") != "VERSION" {
		var err error
		if stdin, err = io.ReadAll(os.Stdin); err != nil {
			fmt.Fprintln(os.Stderr, "berth-cni: read the network configuration:", err)
			return 1
		}
	}
	out, callErr := plugin.New(plugin.Config{}).Handle(ctx, os.Environ(), stdin)
	if callErr != nil {
		// The CNI specification wants errors on standard output.
		var err error
		if out, err = json.Marshal(callErr); err != nil {
			fmt.Fprintln(os.Stderr, "berth-cni:", callErr)
			return 1
		}
	}
	if _, err := os.Stdout.Write(out); err != nil {
		fmt.Fprintln(os.Stderr, "berth-cni: write the result:", err)
		return 1
	}
	if callErr != nil {
		return 1
	}
	return 0
}
