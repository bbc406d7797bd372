package streaming

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/streaming/pkg/httpstream/wsstream"
	utilexec "k8s.io/utils/exec"
)

// v5Streams are the channels of a WebSocket as a Runtime takes them.
type v5Streams struct {
	in          io.Reader
	out, errOut io.WriteCloser
	resize      <-chan remotecommand.TerminalSize
}

// serveV5 speaks v5.channel.k8s.io (KEP-4006): v4's channels, and a message by
// which the client ends its input while it reads on.
func serveV5(w http.ResponseWriter, r *http.Request, opts remotecommand.Options, run func(context.Context, v5Streams) error) {
	kinds := make([]wsstream.ChannelType, remotecommand.StreamResize+1) // the zero value ignores a channel
	kinds[remotecommand.StreamErr] = wsstream.WriteChannel
	kinds[remotecommand.StreamResize] = wsstream.ReadChannel
	for channel, wanted := range map[int]bool{remotecommand.StreamStdOut: opts.Stdout, remotecommand.StreamStdErr: opts.Stderr} {
		if wanted {
			kinds[channel] = wsstream.WriteChannel
		}
	}
	if opts.Stdin {
		kinds[remotecommand.StreamStdIn] = wsstream.ReadChannel
	}
	conn := wsstream.NewConn(map[string]wsstream.ChannelProtocolConfig{
		remotecommand.StreamProtocolV5Name: {Binary: true, Channels: kinds},
	})
	conn.SetIdleTimeout(idleTimeout)
	_, channels, err := conn.Open(w, r)
	if err != nil {
		return // the client was told, or has gone
	}
	defer conn.Close()
	streams := v5Streams{resize: sizes(r.Context(), channels[remotecommand.StreamResize])}
	if opts.Stdin {
		streams.in = channels[remotecommand.StreamStdIn]
	}
	if opts.Stdout {
		streams.out = channels[remotecommand.StreamStdOut]
	}
	if opts.Stderr {
		streams.errOut = channels[remotecommand.StreamStdErr]
	}
	text, err := json.Marshal(outcome(run(r.Context(), streams)))
	if err == nil {
		_, _ = channels[remotecommand.StreamErr].Write(text) // the client may have gone
	}
}

// outcome is an error as the error channel carries it since v4: a Status whose
// cause ExitCode is the exit code of a command that ran.
func outcome(err error) metav1.Status {
	if err == nil {
		return metav1.Status{Status: metav1.StatusSuccess}
	}
	s := metav1.Status{Status: metav1.StatusFailure, Message: err.Error()}
	if exit, ok := err.(utilexec.ExitError); ok && exit.Exited() {
		s.Reason = remotecommand.NonZeroExitCodeReason
		s.Message = fmt.Sprintf("command terminated with non-zero exit code: %v", err)
		s.Details = &metav1.StatusDetails{Causes: []metav1.StatusCause{
			{Type: remotecommand.ExitCodeCauseType, Message: strconv.Itoa(exit.ExitStatus())},
		}}
		return s
	}
	s.Reason, s.Code = metav1.StatusReasonInternalError, http.StatusInternalServerError
	return s
}

// sizes passes on the window sizes that come in as JSON, until the client has
// gone or sends something else.
func sizes(ctx context.Context, from io.Reader) <-chan remotecommand.TerminalSize {
	out := make(chan remotecommand.TerminalSize)
	go func() {
		defer close(out)
		for decoder := json.NewDecoder(from); ; {
			var size remotecommand.TerminalSize
			if decoder.Decode(&size) != nil {
				return
			}
			select {
			case out <- size:
			case <-ctx.Done():
				return
			}
		}
	}()
	return out
}
