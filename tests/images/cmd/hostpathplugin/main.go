// Command hostpathplugin stands for the CSI driver of that name in what the e2e
// suite wants of it beside volumes: its proxy mode, by which drivers of the suite
// are reached that run in the suite's own process. Each connection to the endpoint
// is joined with one to the proxy endpoint, which the suite makes in advance.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"strings"
	"sync"
)

func main() {
	endpoint := flag.String("endpoint", "", "unix socket, a path or unix://PATH")
	proxy := flag.String("proxy-endpoint", "", "tcp://HOST:PORT")
	flag.Int("v", 0, "ignored")
	flag.Parse()
	err := run(strings.TrimPrefix(*endpoint, "unix://"), strings.TrimPrefix(*proxy, "tcp://"))
	fmt.Fprintln(os.Stderr, "hostpathplugin:", err)
	os.Exit(1)
}

// run ends with an error only.
func run(socket, address string) error {
	if socket == "" || address == "" {
		return errors.New("only the proxy mode is there: -endpoint and -proxy-endpoint are needed")
	}
	if err := os.Remove(socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	inner, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	outer, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	for {
		from, err := outer.Accept()
		if err != nil {
			return err
		}
		to, err := inner.Accept()
		if err != nil {
			return err
		}
		go join(from, to)
	}
}

// join ends both when one ends.
func join(a, b net.Conn) {
	var wg sync.WaitGroup
	for _, pair := range [][2]net.Conn{{a, b}, {b, a}} {
		wg.Go(func() {
			_, _ = io.Copy(pair[0], pair[1]) // whoever sees the end of it tries again
			_ = a.Close()
			_ = b.Close()
		})
	}
	wg.Wait()
}
