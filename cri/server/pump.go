package server

import (
	"context"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/berth-io/berth/cri/shim"
)

// drainTimeout is how long more output is waited for after its process has
// ended: a process in the background may hold the other end open for ever.
const drainTimeout = 2 * time.Second

// outputs are what a process says, on its way to a client.
type outputs struct {
	files []*os.File
	ended atomic.Bool   // the process has
	done  chan struct{} // closed when all is through
}

// pump starts to copy between a client and a process.
func pump(stdio shim.Stdio, in io.Reader, out, errOut io.Writer) *outputs {
	stdin, stdout := stdio.Stdin, stdio.Stdout
	if stdio.Terminal != nil {
		stdin, stdout = stdio.Terminal, stdio.Terminal
	}
	if in != nil && stdin != nil {
		go func() {
			_, _ = io.Copy(stdin, in) // the process may close its end first
			if stdin != stdio.Terminal {
				_ = stdin.Close()
			}
		}()
	}
	o := &outputs{done: make(chan struct{})}
	var copies sync.WaitGroup
	for _, c := range []struct {
		from *os.File
		to   io.Writer
	}{{stdout, out}, {stdio.Stderr, errOut}} {
		if c.from == nil {
			continue
		}
		if c.to == nil {
			c.to = io.Discard
		}
		o.files = append(o.files, c.from)
		copies.Go(func() { _, _ = io.Copy(c.to, output{c.from, &o.ended}) }) // a terminal ends with EIO
	}
	go func() {
		copies.Wait()
		close(o.done)
	}()
	return o
}

// finish returns when what the process has said is with the client, however
// slow that is, or the client has gone.
func (o *outputs) finish(ctx context.Context) {
	o.ended.Store(true)
	for _, f := range o.files {
		_ = f.SetReadDeadline(time.Now().Add(drainTimeout)) // for the read that waits now
	}
	select {
	case <-o.done:
	case <-ctx.Done():
	}
}

// output reads what a process says. It waits for more, but not for long once
// the process has ended: the time that the client takes does not count.
type output struct {
	file  *os.File
	ended *atomic.Bool
}

func (o output) Read(p []byte) (int, error) {
	if o.ended.Load() {
		_ = o.file.SetReadDeadline(time.Now().Add(drainTimeout))
	}
	return o.file.Read(p)
}

func closeStdio(stdio shim.Stdio) {
	for _, f := range []*os.File{stdio.Stdin, stdio.Stdout, stdio.Stderr, stdio.Terminal} {
		if f != nil {
			_ = f.Close() // nothing is buffered here
		}
	}
}
