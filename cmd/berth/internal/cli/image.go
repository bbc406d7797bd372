package cli

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func imageCommand(o *options) *cobra.Command {
	cmd := &cobra.Command{Use: "image", Short: "Pull, load, list and remove images"}
	cmd.AddCommand(imagePull(o), imageLoad(o), imageList(o), imageRemove(o))
	return cmd
}

// runtimeConn connects to the runtime's socket. Images are the runtime's, with
// or without an agent beside it.
func (o *options) runtimeConn() (*grpc.ClientConn, error) {
	c, err := o.config()
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(c.CRISocket); err != nil {
		return nil, fmt.Errorf("no runtime answers on %s: start it with `berth node`, or name its configuration with --config", c.CRISocket)
	}
	return grpc.NewClient("unix://"+c.CRISocket, grpc.WithTransportCredentials(insecure.NewCredentials()))
}

// withImages calls the CRI's image service.
func (o *options) withImages(call func(runtimeapi.ImageServiceClient) error) error {
	conn, err := o.runtimeConn()
	if err != nil {
		return err
	}
	defer conn.Close()
	return plain(call(runtimeapi.NewImageServiceClient(conn)))
}

// plain is an error without gRPC's wrapping.
func plain(err error) error {
	if s, ok := status.FromError(err); ok && err != nil {
		return errors.New(s.Message())
	}
	return err
}

func imagePull(o *options) *cobra.Command {
	var quiet bool
	cmd := &cobra.Command{
		Use:   "pull REFERENCE",
		Short: "Pull an image from its registry",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			conn, err := o.runtimeConn()
			if err != nil {
				return err
			}
			defer conn.Close()
			var show progress = silent{}
			if !quiet && term.IsTerminal(int(os.Stderr.Fd())) {
				show = newBars(cmd.ErrOrStderr())
			}
			if err := pull(cmd.Context(), conn, args[0], show); err != nil {
				return plain(err)
			}
			fmt.Fprintln(cmd.OutOrStdout(), args[0])
			return nil
		},
	}
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "no progress bars")
	return cmd
}

func imageLoad(o *options) *cobra.Command {
	return &cobra.Command{
		Use:     "load [FILE]",
		Short:   "Load images from an archive (docker save, or an OCI layout), or from standard input",
		Example: "  docker save app:1 | sudo berth image load",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			in := cmd.InOrStdin()
			if len(args) == 1 && args[0] != "-" {
				f, err := os.Open(args[0])
				if err != nil {
					return fmt.Errorf("open the archive: %w", err)
				}
				defer f.Close()
				in = f
			} else if f, ok := in.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
				return errors.New("there is nothing to load: name a file, or pass an archive to standard input")
			}
			conn, err := o.runtimeConn()
			if err != nil {
				return err
			}
			defer conn.Close()
			names, err := load(cmd.Context(), conn, in)
			if err != nil {
				return plain(err)
			}
			for _, name := range names {
				fmt.Fprintln(cmd.OutOrStdout(), "loaded", name)
			}
			return nil
		},
	}
}

func imageList(o *options) *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List images",
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return getImages(cmd, o, output) },
	}
	cmd.Flags().StringVarP(&output, "output", "o", "", "wide, json or yaml")
	return cmd
}

func imageRemove(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "rm REFERENCE...",
		Short: "Remove images; containers that run from them are not touched",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return o.withImages(func(c runtimeapi.ImageServiceClient) error {
				for _, ref := range args {
					spec := &runtimeapi.ImageSpec{Image: ref}
					st, err := c.ImageStatus(cmd.Context(), &runtimeapi.ImageStatusRequest{Image: spec})
					if err != nil {
						return err
					}
					if st.GetImage() == nil {
						return fmt.Errorf("image %q is not on this node", ref)
					}
					if _, err := c.RemoveImage(cmd.Context(), &runtimeapi.RemoveImageRequest{Image: spec}); err != nil {
						return err
					}
					fmt.Fprintln(cmd.OutOrStdout(), "removed", ref)
				}
				return nil
			})
		},
	}
}

func getImages(cmd *cobra.Command, o *options, output string) error {
	if err := knownOutput(output); err != nil {
		return err
	}
	return o.withImages(func(c runtimeapi.ImageServiceClient) error {
		list, err := c.ListImages(cmd.Context(), &runtimeapi.ListImagesRequest{})
		if err != nil {
			return err
		}
		if structured(output) {
			return encode(cmd.OutOrStdout(), output, list.GetImages())
		}
		return imageTable(cmd.OutOrStdout(), list.GetImages(), output == "wide")
	})
}

func imageTable(w io.Writer, images []*runtimeapi.Image, wide bool) error {
	t := newTable(w)
	head := []string{"IMAGE", "TAG", "IMAGE ID", "SIZE"}
	if wide {
		head = append(head, "DIGEST", "PINNED")
	}
	t.row(head...)
	for _, i := range images {
		id := short12(i.GetId())
		digest := "<none>"
		if d := i.GetRepoDigests(); len(d) > 0 {
			_, digest, _ = strings.Cut(d[0], "@")
		}
		tags := i.GetRepoTags()
		if len(tags) == 0 {
			name := "<none>"
			if d := i.GetRepoDigests(); len(d) > 0 {
				name, _, _ = strings.Cut(d[0], "@")
			}
			tags = []string{name + ":<none>"}
		}
		for _, tag := range tags {
			at := strings.LastIndex(tag, ":")
			row := []string{tag[:at], tag[at+1:], id, size(i.GetSize())}
			if wide {
				row = append(row, digest, fmt.Sprint(i.GetPinned()))
			}
			t.row(row...)
		}
	}
	return t.flush()
}

func short12(digest string) string {
	_, hex, found := strings.Cut(digest, ":")
	if !found {
		hex = digest
	}
	return hex[:min(12, len(hex))]
}
