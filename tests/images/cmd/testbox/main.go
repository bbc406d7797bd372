// Command testbox is the program inside test pods: each subcommand is one
// behaviour that a scenario needs from a container.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/berth-io/berth/tests/images/report"
)

var commands = map[string]struct {
	run  func(args []string) error
	help string
}{
	"report":   {reportCmd, "print what this process sees as one line of JSON, then wait for SIGTERM"},
	"pause":    {pause, "wait for SIGTERM or SIGINT, then exit 0"},
	"stubborn": {stubborn, "print every SIGTERM and stay"},
	"term":     {term, "on SIGTERM print a line, wait, exit with a code"},
	"exit":     {exit, "write a termination message, wait, exit with a code"},
	"lines":    {lines, "print numbered lines"},
	"alloc":    {alloc, "touch memory and hold it"},
	"burn":     {burn, "use CPU time, then wait"},
	"datagram": {datagrams, "send UDP datagrams"},
	"zombies":  {zombies, "orphan children and count the zombies they leave"},
	"serve":    {serve, "HTTP, TCP, UDP and gRPC health on one switch"},
	"get":      {get, "GET a URL and print the body"},
	"send":     {send, "send a line over tcp or udp and print the answer"},
	"euid":     {euid, "print the effective user ID"},
	"syscall":  {syscallCmd, "try a system call by name and print its error"},
}

func main() {
	if len(os.Args) < 2 {
		usage()
	}
	c, ok := commands[os.Args[1]]
	if !ok {
		usage()
	}
	if err := c.run(os.Args[2:]); err != nil {
		fmt.Fprintf(os.Stderr, "testbox %s: %v\n", os.Args[1], err)
		os.Exit(1)
	}
}

func usage() {
	fmt.Fprintln(os.Stderr, "usage: testbox COMMAND [FLAGS]")
	for name, c := range commands {
		fmt.Fprintf(os.Stderr, "  %-10s %s\n", name, c.help)
	}
	os.Exit(2)
}

func reportCmd(args []string) error {
	fs := flag.NewFlagSet("report", flag.ExitOnError)
	once := fs.Bool("once", false, "exit after printing")
	fs.Parse(args)
	if err := json.NewEncoder(os.Stdout).Encode(report.Collect()); err != nil {
		return err
	}
	if *once {
		return nil
	}
	return pause(nil)
}

// pause must ask for its signals: PID 1 of a namespace ignores those it has no
// handler for.
func pause([]string) error {
	<-signals(syscall.SIGTERM, syscall.SIGINT)
	return nil
}

func signals(sigs ...os.Signal) <-chan os.Signal {
	ch := make(chan os.Signal, 16)
	signal.Notify(ch, sigs...)
	return ch
}
