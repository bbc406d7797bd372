// Berth runs Kubernetes pods on a host: "berth node" is the daemon, the other
// commands are for looking at it. See docs/architecture.md.
package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/berth-io/berth/cmd/berth/internal/cli"
)

// version is stamped by the build.
var version = "unknown"

func main() {
	root := cli.New(version)
	// Installed as /usr/bin/kubelet, it is one: kubeadm and the unit call it so.
	if filepath.Base(os.Args[0]) == "kubelet" {
		root.SetArgs(append([]string{"kubelet"}, os.Args[1:]...))
	}
	err := root.Execute()
	if err == nil {
		return
	}
	var exit cli.ExitError
	if errors.As(err, &exit) {
		os.Exit(int(exit)) // the command in the pod has said what is wrong
	}
	fmt.Fprintln(os.Stderr, "error:", err)
	os.Exit(1)
}
