package main

import (
	"flag"
	"fmt"
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// burn uses an amount of CPU time, however long that takes.
func burn(args []string) error {
	fs := flag.NewFlagSet("burn", flag.ExitOnError)
	amount := fs.Duration("cpu", time.Second, "CPU time to use; 0 means without end")
	fs.Parse(args)
	fmt.Println("burning")
	for {
		var used unix.Rusage
		if err := unix.Getrusage(unix.RUSAGE_SELF, &used); err != nil {
			return err
		}
		if *amount > 0 && time.Duration(used.Utime.Nano()+used.Stime.Nano()) >= *amount {
			break
		}
		for range 100_000 { // about a tenth of a millisecond
		}
	}
	fmt.Println("burnt", *amount)
	return pause(nil)
}

// datagrams sends to an address where nobody needs to listen.
func datagrams(args []string) error {
	fs := flag.NewFlagSet("datagram", flag.ExitOnError)
	to := fs.String("to", "", "address")
	count := fs.Int("n", 1, "number of datagrams")
	size := fs.Int("size", 1000, "bytes in each")
	fs.Parse(args)
	addr, err := net.ResolveUDPAddr("udp", *to)
	if err != nil {
		return err
	}
	// Not connected: the answer that the port is closed would be an error.
	c, err := net.ListenUDP("udp", nil)
	if err != nil {
		return err
	}
	defer c.Close()
	for range *count {
		if _, err := c.WriteToUDP(make([]byte, *size), addr); err != nil {
			return err
		}
	}
	fmt.Println("sent", *count)
	return nil
}
