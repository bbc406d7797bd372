// Berth-shim is the parent of one sandbox's containers. The daemon starts it
// with a listening socket as descriptor 3; nobody else has a reason to.
package main

import (
	"flag"
	"fmt"
	"os"

	"github.com/berth-io/berth/cri/shim/enter"
	"github.com/berth-io/berth/cri/shim/podinit"
	"github.com/berth-io/berth/cri/shim/server"
)

// version is stamped by the build.
var version = "unknown"

const listenFD = 3

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "berth-shim:", err)
		os.Exit(1)
	}
}

func run() error {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case podinit.Argument:
			return podinit.Run()
		case enter.Argument:
			return enter.Run(os.Args[2:])
		}
	}
	var cfg server.Config
	flag.StringVar(&cfg.ID, "id", "", "of the sandbox")
	flag.StringVar(&cfg.Dir, "dir", "", "of the sandbox's state")
	flag.StringVar(&cfg.Runtime, "runtime", "", "path of the OCI runtime")
	flag.StringVar(&cfg.RuntimeRoot, "root", "", "the runtime's --root")
	flag.BoolVar(&cfg.SystemdCgroup, "systemd-cgroup", false, "pass --systemd-cgroup to the runtime")
	flag.Func("runtime-arg", "one more global flag for the runtime; may be repeated", func(arg string) error {
		cfg.RuntimeArgs = append(cfg.RuntimeArgs, arg)
		return nil
	})
	flag.DurationVar(&cfg.Timeout, "timeout", 0, "bound on one runtime command")
	showVersion := flag.Bool("version", false, "print the version and exit")
	flag.Parse()
	if *showVersion {
		fmt.Println("berth-shim", version)
		return nil
	}
	if cfg.ID == "" || cfg.Dir == "" || cfg.Runtime == "" {
		return fmt.Errorf("-id, -dir and -runtime are needed: this program is started by the daemon")
	}
	return server.Run(cfg, listenFD)
}
