package cli

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"golang.org/x/term"
	"k8s.io/client-go/tools/remotecommand"
	utilexec "k8s.io/client-go/util/exec"
	//lint:ignore SA1019 client-go's executor still wants this package's types, not those of its successor
	"k8s.io/apimachinery/pkg/util/httpstream/spdy"

	"github.com/berth-io/berth/cmd/berth/internal/client"
)

// ExitError is the exit code of a command that ran in a container.
type ExitError int

func (e ExitError) Error() string { return fmt.Sprintf("command exited with code %d", int(e)) }

func execCommand(o *options) *cobra.Command {
	var container string
	var stdin, tty bool
	cmd := &cobra.Command{
		Use:     "exec POD [-c CONTAINER] -- COMMAND [ARG...]",
		Short:   "Run a command in a container",
		Example: "  berth exec web -- env\n  berth exec -it web -- sh",
		Args: func(cmd *cobra.Command, args []string) error {
			if cmd.ArgsLenAtDash() != 1 || len(args) < 2 {
				return errors.New("name a pod, and the command after --: berth exec POD [-c CONTAINER] -- COMMAND [ARG...]")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := o.client()
			if err != nil {
				return err
			}
			namespace, name := o.target(args[0])
			if container == "" {
				pod, err := c.Pod(cmd.Context(), namespace, name)
				if err != nil {
					return err
				}
				container = defaultContainer(cmd, pod)
			}
			if tty && !(stdin && term.IsTerminal(int(os.Stdin.Fd()))) {
				fmt.Fprintln(cmd.ErrOrStderr(), "Unable to use a TTY - input is not a terminal or the right kind of file")
				tty = false
			}
			q := url.Values{"command": args[1:], "output": {"1"}}
			if stdin {
				q.Set("input", "1")
			}
			if tty {
				q.Set("tty", "1")
			} else {
				q.Set("error", "1")
			}
			path := "/exec/" + namespace + "/" + name + "/" + container
			return stream(cmd, c, path, q, remotecommand.StreamOptions{Tty: tty}, stdin)
		},
	}
	f := cmd.Flags()
	f.StringVarP(&container, "container", "c", "", "the container; default: the pod's first")
	f.BoolVarP(&stdin, "stdin", "i", false, "pass standard input on")
	f.BoolVarP(&tty, "tty", "t", false, "with a terminal")
	return cmd
}

// stream runs one exec or attach over the API socket, by SPDY.
func stream(cmd *cobra.Command, c *client.Client, path string, q url.Values, opts remotecommand.StreamOptions, stdin bool) error {
	u, err := url.Parse(client.Base + path + "?" + q.Encode())
	if err != nil {
		return err
	}
	// A rest.Config would do, but for its dialer, which streams do not use.
	transport, err := spdy.NewRoundTripperWithConfig(spdy.RoundTripperConfig{UpgradeTransport: c.Transport()})
	if err != nil {
		return fmt.Errorf("prepare the stream: %w", err)
	}
	executor, err := remotecommand.NewSPDYExecutorForTransports(transport, transport, http.MethodPost, u)
	if err != nil {
		return fmt.Errorf("prepare the stream: %w", err)
	}
	opts.Stdout = cmd.OutOrStdout()
	if stdin {
		opts.Stdin = cmd.InOrStdin()
	}
	if !opts.Tty {
		opts.Stderr = cmd.ErrOrStderr()
	} else {
		sizes, restore, err := rawTerminal()
		if err != nil {
			return err
		}
		defer restore()
		opts.TerminalSizeQueue = sizes
	}
	err = executor.StreamWithContext(cmd.Context(), opts)
	var code utilexec.CodeExitError
	if errors.As(err, &code) {
		return ExitError(code.Code)
	}
	if err != nil {
		return errors.New(strings.TrimSpace(err.Error()))
	}
	return nil
}

// rawTerminal hands the keyboard to the container until restore is called, and
// tells the size of the window whenever it changes.
func rawTerminal() (sizes *sizeQueue, restore func(), err error) {
	fd := int(os.Stdin.Fd())
	old, err := term.MakeRaw(fd)
	if err != nil {
		return nil, nil, fmt.Errorf("put the terminal into raw mode: %w", err)
	}
	sizes = &sizeQueue{fd: fd, changed: make(chan os.Signal, 1), done: make(chan struct{})}
	sizes.changed <- unix.SIGWINCH // the size to begin with
	signal.Notify(sizes.changed, unix.SIGWINCH)
	return sizes, func() {
		signal.Stop(sizes.changed)
		close(sizes.done)
		if err := term.Restore(fd, old); err != nil {
			fmt.Fprintln(os.Stderr, "error: the terminal could not be restored; run `reset`:", err)
		}
	}, nil
}

type sizeQueue struct {
	fd      int
	changed chan os.Signal
	done    chan struct{}
}

// Next implements remotecommand.TerminalSizeQueue.
func (q *sizeQueue) Next() *remotecommand.TerminalSize {
	select {
	case <-q.changed:
	case <-q.done:
		return nil
	}
	width, height, err := term.GetSize(q.fd)
	if err != nil {
		return nil
	}
	return &remotecommand.TerminalSize{Width: uint16(width), Height: uint16(height)}
}
