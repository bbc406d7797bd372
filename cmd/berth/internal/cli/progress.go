package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// The methods of the runtime's own image service, for what the CRI has no
// call: progress of a pull, and loading an archive (cri/imagesvc).
const (
	methodPull   = "/berth.cri.v1.Images/Pull"
	methodImport = "/berth.cri.v1.Images/Import"
)

// progress shows how far a pull is.
type progress interface {
	layer(digest, status string, offset, total int64)
	finish(ok bool)
}

type silent struct{}

func (silent) layer(string, string, int64, int64) {}
func (silent) finish(bool)                        {}

func pull(ctx context.Context, conn *grpc.ClientConn, ref string, show progress) error {
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, methodPull)
	if err != nil {
		return err
	}
	if err := stream.SendMsg(wrapperspb.String(ref)); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if err := stream.CloseSend(); err != nil {
		return err
	}
	for {
		var step structpb.Struct
		err := stream.RecvMsg(&step)
		if err != nil {
			show.finish(errors.Is(err, io.EOF))
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		f := step.GetFields()
		if digest := f["digest"].GetStringValue(); digest != "" {
			show.layer(digest, f["status"].GetStringValue(), int64(f["offset"].GetNumberValue()), int64(f["total"].GetNumberValue()))
		}
	}
}

// load sends an archive and returns the names of the images in it.
func load(ctx context.Context, conn *grpc.ClientConn, in io.Reader) ([]string, error) {
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true}, methodImport)
	if err != nil {
		return nil, err
	}
	buf := make([]byte, 1<<20)
	for {
		n, err := in.Read(buf)
		if n > 0 {
			if err := stream.SendMsg(wrapperspb.Bytes(buf[:n])); err != nil {
				break // the node has stopped reading: its answer says why
			}
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("read the archive: %w", err)
		}
	}
	if err := stream.CloseSend(); err != nil {
		return nil, err
	}
	var answer structpb.Struct
	if err := stream.RecvMsg(&answer); err != nil {
		return nil, err
	}
	var names []string
	for _, image := range answer.GetFields()["images"].GetListValue().GetValues() {
		f := image.GetStructValue().GetFields()
		tags := f["tags"].GetListValue().GetValues()
		if len(tags) == 0 {
			names = append(names, f["id"].GetStringValue())
		}
		for _, tag := range tags {
			names = append(names, tag.GetStringValue())
		}
	}
	return names, nil
}

// bars draws one line a layer.
type bars struct {
	all    *mpb.Progress
	layers map[string]*layerBar
}

type layerBar struct {
	bar    *mpb.Bar
	status atomic.Pointer[string] // read while it is drawn
}

func newBars(w io.Writer) *bars {
	return &bars{all: mpb.New(mpb.WithOutput(w), mpb.WithWidth(48)), layers: map[string]*layerBar{}}
}

func (b *bars) layer(digest, status string, offset, total int64) {
	l := b.layers[digest]
	if l == nil {
		l = &layerBar{}
		l.status.Store(&status)
		l.bar = b.all.AddBar(total,
			mpb.PrependDecorators(
				decor.Name(short12(digest)+" "),
				decor.Any(func(decor.Statistics) string { return *l.status.Load() }, decor.WC{W: 12, C: decor.DindentRight})),
			mpb.AppendDecorators(decor.CountersKiloByte("% .1f / % .1f")))
		b.layers[digest] = l
	}
	l.status.Store(&status)
	if total > 0 {
		l.bar.SetTotal(total, false)
	}
	l.bar.SetCurrent(offset)
	if status == "done" || status == "exists" {
		l.bar.SetTotal(-1, true)
	}
}

func (b *bars) finish(ok bool) {
	for _, l := range b.layers {
		if ok {
			l.bar.SetTotal(-1, true)
		} else {
			l.bar.Abort(false)
		}
	}
	b.all.Wait()
}
