// Command clusterctl starts a cluster that stays (see package cluster), gives a
// shell in it, and removes it: what make cluster, cluster-shell and
// cluster-down run.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/berth-io/berth/tests/cluster"
	"github.com/berth-io/berth/tests/images"
)

const usage = `usage: clusterctl up [-name NAME] [-bin DIR] [-nodes N] [-kind berth|stock] [-images DIR] [-dns=false]
       clusterctl shell [-name NAME] [COMMAND...]
       clusterctl down [-name NAME]
       clusterctl images [-bin DIR] [-debs DIR] DIR
`

var errUsage = errors.New("wrong usage")

func main() {
	if err := run(os.Args[1:]); err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			os.Exit(exit.ExitCode()) // the shell's own
		}
		if errors.Is(err, errUsage) {
			fmt.Fprint(os.Stderr, usage)
			os.Exit(2)
		}
		fmt.Fprintln(os.Stderr, "clusterctl:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) == 0 {
		return errUsage
	}
	flags := flag.NewFlagSet(args[0], flag.ExitOnError)
	name := flags.String("name", "dev", "name of the cluster")
	switch args[0] {
	case "up":
		return up(flags, name, args[1:])
	case "shell":
		_ = flags.Parse(args[1:]) // ends the program instead
		return shell(*name, flags.Args())
	case "down":
		_ = flags.Parse(args[1:])
		return cluster.Down(*name)
	case "images":
		return writeImages(flags, args[1:])
	case "registry": // of a cluster that up starts
		_ = flags.Parse(args[1:])
		return cluster.ServeRegistry(*name)
	}
	return errUsage
}

func up(flags *flag.FlagSet, name *string, args []string) error {
	bin := flags.String("bin", "bin", "directory of the binaries")
	nodes := flags.Int("nodes", 2, "number of nodes")
	kind := flags.String("kind", string(cluster.Berth), "kind of nodes: berth or stock")
	imageDir := flags.String("images", "", "directory of more images, in OCI layout")
	dns := flags.Bool("dns", true, "run CoreDNS")
	_ = flags.Parse(args)
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cfg := cluster.Config{Name: *name, NoDNS: !*dns, RegistryCommand: []string{self, "registry", "-name", *name}}
	if cfg.Bin, err = filepath.Abs(*bin); err != nil {
		return err
	}
	if *imageDir != "" {
		if cfg.Images, err = filepath.Abs(*imageDir); err != nil {
			return err
		}
	}
	for range *nodes {
		cfg.Nodes = append(cfg.Nodes, cluster.NodeConfig{Kind: cluster.Kind(*kind)})
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	began := time.Now()
	c, err := cluster.Start(ctx, cfg)
	if ctx.Err() != nil {
		return errors.Join(errors.New("interrupted"), cluster.Down(*name))
	}
	if err != nil {
		return err
	}
	fmt.Printf("cluster %s: %d %s nodes Ready in %v\nlogs: %s/logs\n", *name, *nodes, *kind, time.Since(began).Round(100*time.Millisecond), c.Dir)
	return nil
}

// writeImages builds the images of the e2e suite.
func writeImages(flags *flag.FlagSet, args []string) error {
	bin := flags.String("bin", "bin", "directory of the binaries")
	debs := flags.String("debs", "out/debs/root", "directory of unpacked packages")
	_ = flags.Parse(args)
	if flags.NArg() != 1 {
		return errUsage
	}
	b := &images.Builder{Bin: filepath.Join(*bin, "tests"), Debs: *debs, Peers: filepath.Join(*bin, "peers")}
	all, err := b.E2E()
	if err != nil {
		return err
	}
	return images.WriteLayout(flags.Arg(0), all)
}

// shell runs a shell, or a command, on the control plane's host.
func shell(name string, command []string) error {
	c, err := cluster.Attach(name)
	if err != nil {
		return err
	}
	if len(command) == 0 {
		command = []string{"bash", "--norc"}
		if err := os.Setenv("PS1", "cluster "+name+` \w# `); err != nil {
			return err
		}
	}
	cmd := c.Command(context.Background(), command...)
	cmd.Env = append(os.Environ(), cmd.Env...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	return cmd.Run()
}
