package shim

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/berth-io/berth/cri/shim/internal/wire"
)

var (
	// ErrGone means that the shim has ended, and what it ran with it is
	// nobody's any more.
	ErrGone = errors.New("the shim is gone")
	// ErrNotFound means that there is no such container or exec, or that it
	// has exited.
	ErrNotFound = errors.New("not found")
	// ErrRunning means that a container still runs.
	ErrRunning = errors.New("still running")
)

// Client speaks to one shim. Its methods may be called concurrently; the
// deadline of a call is its context's.
type Client struct {
	conn   *wire.Conn
	pid    int
	child  bool // of this process: it has to be reaped
	events chan *Event
	gone   chan struct{} // closed when the connection has ended

	mu      sync.Mutex
	last    uint64 // request ID
	pending map[uint64]chan answer
	execs   map[uint64]*Exec
	closed  bool // by Close: the shim lives on

	migrating atomic.Bool // expectMigration is under way
}

type answer struct {
	message wire.Message
	files   []*os.File
}

// eventBacklog is how many events may wait for the daemon. A container sends
// two in its life. The channel has pointers, since its slots are there for as
// long as the pod, and mostly empty: 18 KB a pod if the events were in them.
const eventBacklog = 128

func newClient(conn *wire.Conn) *Client {
	return &Client{
		conn: conn, events: make(chan *Event, eventBacklog), gone: make(chan struct{}),
		pending: map[uint64]chan answer{}, execs: map[uint64]*Exec{},
	}
}

// Pid is the shim's process.
func (c *Client) Pid() int { return c.pid }

// Events tells of exits and OOM kills; EventGone comes last, and not after
// Close. What happened before the connection was made is in State.
func (c *Client) Events() <-chan *Event { return c.events }

// Close drops the connection; the shim and its containers live on.
func (c *Client) Close() error {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	_ = c.conn.Close() // it may have ended by itself
	<-c.gone
	return nil
}

// read hands on what comes in until the connection ends.
func (c *Client) read() {
	for {
		m, files, err := c.conn.Read()
		if err != nil {
			break
		}
		switch m.Method {
		case "":
			c.answered(m, files)
			continue
		case wire.EventExit, wire.EventOOM:
			c.containerEvent(m)
		case wire.EventExecExit:
			c.execExited(m)
		}
		closeFiles(files)
	}
	c.end()
}

func (c *Client) answered(m wire.Message, files []*os.File) {
	c.mu.Lock()
	ch, ok := c.pending[m.ID]
	delete(c.pending, m.ID)
	c.mu.Unlock()
	if !ok { // its caller has given up
		closeFiles(files)
		return
	}
	ch <- answer{m, files}
}

func (c *Client) containerEvent(m wire.Message) {
	var st wire.ContainerState
	if json.Unmarshal(m.Body, &st) != nil {
		return // not a shim of ours; its state is asked for anyway
	}
	kind := EventExit
	if m.Method == wire.EventOOM {
		kind = EventOOM
	}
	c.events <- &Event{Kind: kind, State: ContainerState(st)}
}

// end lets everybody know that no answer and no event will come.
func (c *Client) end() {
	_ = c.conn.Close()
	c.mu.Lock()
	pending, execs, closed := c.pending, c.execs, c.closed
	c.pending, c.execs = nil, nil
	c.mu.Unlock()
	for _, ch := range pending {
		close(ch)
	}
	for _, e := range execs {
		close(e.exited)
	}
	if !closed {
		if c.child {
			go reap(c.pid) // it has ended, or its socket has: then this waits with it
		}
		c.events <- &Event{Kind: EventGone}
	}
	close(c.events)
	close(c.gone)
}

// call asks and waits for the answer, which is decoded into out.
func (c *Client) call(ctx context.Context, method wire.Method, body, out any) error {
	files, err := c.ask(ctx, method, body, out, nil)
	closeFiles(files)
	return err
}

// ask is call for answers that bring files, which are the caller's to close.
// exec, if there is one, is known from before the request is sent: its exit
// may follow the answer at once.
func (c *Client) ask(ctx context.Context, method wire.Method, body, out any, exec *Exec) ([]*os.File, error) {
	if ctx.Err() != nil {
		return nil, fmt.Errorf("ask the shim (pid %d) for %s: %w", c.pid, method, context.Cause(ctx))
	}
	m := wire.Message{Method: method}
	if body != nil {
		text, err := json.Marshal(body)
		if err != nil {
			return nil, fmt.Errorf("encode %s request: %w", method, err)
		}
		m.Body = text
	}
	ch := make(chan answer, 1)
	c.mu.Lock()
	if c.pending == nil {
		c.mu.Unlock()
		return nil, fmt.Errorf("%s: %w", method, ErrGone)
	}
	c.last++
	m.ID = c.last
	c.pending[m.ID] = ch
	if exec != nil {
		exec.id = m.ID
		c.execs[m.ID] = exec
	}
	c.mu.Unlock()
	if err := c.conn.Write(m, exec.files()...); err != nil {
		c.giveUp(m.ID)
		return nil, fmt.Errorf("%s: %w: %w", method, ErrGone, err)
	}
	select {
	case a, ok := <-ch:
		if !ok {
			return nil, fmt.Errorf("%s: %w", method, ErrGone)
		}
		if a.message.Error != nil {
			closeFiles(a.files)
			c.giveUp(m.ID)
			return nil, refusal(a.message.Error)
		}
		if out != nil {
			if err := json.Unmarshal(a.message.Body, out); err != nil {
				closeFiles(a.files)
				return nil, fmt.Errorf("decode the shim's answer to %s: %w", method, err)
			}
		}
		return a.files, nil
	case <-ctx.Done():
		c.giveUp(m.ID)
		// The answer may have come at the same time.
		select {
		case a := <-ch:
			closeFiles(a.files)
		default:
		}
		if exec != nil {
			c.abandon(exec)
		}
		return nil, fmt.Errorf("the shim (pid %d) has not answered %s: %w", c.pid, method, context.Cause(ctx))
	}
}

// abandon ends a process whose caller has gone before it started. The answer
// is nobody's.
func (c *Client) abandon(e *Exec) {
	text, err := json.Marshal(wire.ExecKill{Exec: e.id})
	if err != nil {
		return // a number can be encoded
	}
	c.mu.Lock()
	c.last++
	id := c.last
	c.mu.Unlock()
	_ = c.conn.Write(wire.Message{ID: id, Method: wire.MethodExecKill, Body: text}) // a shim that has gone has no execs
}

func (c *Client) giveUp(id uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.pending, id)
	delete(c.execs, id)
}

// refusal makes a shim's error one that callers can tell apart.
func refusal(e *wire.Error) error {
	switch e.Code {
	case wire.CodeNotFound:
		return fmt.Errorf("%s: %w", e.Text, ErrNotFound)
	case wire.CodeRunning:
		return fmt.Errorf("%s: %w", e.Text, ErrRunning)
	}
	return errors.New(e.Text)
}

// Run makes and starts a container. An error carries the OCI runtime's own
// message; nothing of the container is left then.
func (c *Client) Run(ctx context.Context, spec Container) (ContainerState, error) {
	c.expectMigration()
	var st wire.ContainerState
	err := c.call(ctx, wire.MethodRun, wire.Container(spec), &st)
	return ContainerState(st), err
}

// Init starts the minimal init process of the namespaces that the sandbox's
// containers share, and returns its pid on the host. Called again it returns
// the same. It ends with EndInit or the shim's Shutdown.
func (c *Client) Init(ctx context.Context, spec Init) (pid int, err error) {
	body := wire.Init{CgroupDirs: spec.CgroupDirs, UIDs: spec.UIDs, GIDs: spec.GIDs}
	if spec.SetUp != nil {
		if body.SetUp, err = json.Marshal(spec.SetUp); err != nil {
			return 0, fmt.Errorf("encode what the init process sets up: %w", err)
		}
	}
	var info wire.Info
	err = c.call(ctx, wire.MethodInit, body, &info)
	return info.Pid, err
}

// EndInit ends the process that Init started, and what its namespaces hold
// with it.
func (c *Client) EndInit(ctx context.Context) error {
	return c.call(ctx, wire.MethodEndInit, nil, nil)
}

// Kill signals a container's first process, or all its processes. ErrNotFound
// means that it has exited.
func (c *Client) Kill(ctx context.Context, containerID string, sig unix.Signal, all bool) error {
	return c.call(ctx, wire.MethodKill, wire.Kill{ID: containerID, Signal: int(sig), All: all}, nil)
}

// Delete ends a container and removes what the shim and the OCI runtime keep
// of it. It is idempotent.
func (c *Client) Delete(ctx context.Context, containerID string) error {
	return c.call(ctx, wire.MethodDelete, wire.Target{ID: containerID}, nil)
}

// State lists the containers that were started and not deleted.
func (c *Client) State(ctx context.Context) ([]ContainerState, error) {
	var list []wire.ContainerState
	if err := c.call(ctx, wire.MethodState, nil, &list); err != nil {
		return nil, err
	}
	out := make([]ContainerState, 0, len(list))
	for _, st := range list {
		out = append(out, ContainerState(st))
	}
	return out, nil
}

// Resize sets the size of a container's terminal in characters.
func (c *Client) Resize(ctx context.Context, containerID string, width, height uint16) error {
	return c.call(ctx, wire.MethodResize, wire.Resize{ID: containerID, Width: width, Height: height}, nil)
}

// ReopenLog goes on in a new file at the log's path, after the old one was
// renamed. No line is lost or split.
func (c *Client) ReopenLog(ctx context.Context, containerID string) error {
	return c.call(ctx, wire.MethodReopenLog, wire.Target{ID: containerID}, nil)
}

// Attach joins a container's streams: Stdout and Stderr have its output from
// now on. With stdin, what is written to Stdin goes to its input, if it has
// one; of a container with StdinOnce that input ends with the first Stdin that
// is closed, so who only looks on must not ask. The files are the caller's to
// close.
func (c *Client) Attach(ctx context.Context, containerID string, stdin bool) (Stdio, error) {
	var which wire.Attached
	files, err := c.ask(ctx, wire.MethodAttach, wire.Attach{ID: containerID, Stdin: stdin}, &which, nil)
	if err != nil {
		return Stdio{}, err
	}
	var out Stdio
	for _, slot := range []struct {
		there bool
		file  **os.File
	}{{which.Stdin, &out.Stdin}, {which.Stdout, &out.Stdout}, {which.Stderr, &out.Stderr}} {
		if slot.there && len(files) > 0 {
			*slot.file, files = files[0], files[1:]
		}
	}
	closeFiles(files)
	return out, nil
}

// Shutdown ends the shim. ErrRunning refuses while a container runs.
func (c *Client) Shutdown(ctx context.Context) error {
	return c.call(ctx, wire.MethodShutdown, nil, nil)
}

func closeFiles(files []*os.File) {
	for _, f := range files {
		_ = f.Close()
	}
}
