package cli

import (
	"context"
	"fmt"
	"log/slog"
	"os/signal"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/berth-io/berth/agent/kubeletconfig"
	"github.com/berth-io/berth/cmd/berth/internal/config"
	"github.com/berth-io/berth/cmd/berth/internal/kubelet"
	"github.com/berth-io/berth/cmd/berth/internal/node"
)

func nodeCommand(o *options, version string) *cobra.Command {
	var roles []string
	cmd := &cobra.Command{
		Use:   "node",
		Short: "Run the node: agent, container runtime and network",
		Long: `Run the node until it is told to stop with SIGTERM or ^C. Pods run on without
it, and it takes them over again when it is started the next time.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := o.config()
			if err != nil {
				return err
			}
			if cmd.Flags().Changed("roles") {
				c.Roles = roles
				if err := c.Validate(); err != nil {
					return fmt.Errorf("--roles: %w", err)
				}
			}
			level, err := c.Level()
			if err != nil {
				return err
			}
			log := slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), &slog.HandlerOptions{Level: level}))
			k, err := kubelet.Load(c)
			if err != nil {
				return err
			}
			if k != nil {
				if c, err = kubelet.Merge(c, k); err != nil {
					return err
				}
			}
			return runNode(cmd.Context(), c, k, version, log)
		},
	}
	cmd.Flags().StringSliceVar(&roles, "roles", nil, "roles of this daemon: agent, cri, network (default all)")
	return cmd
}

// runNode runs the node until a signal ends it.
func runNode(ctx context.Context, c config.Config, k *kubeletconfig.Config, version string, log *slog.Logger) error {
	ctx, stop := signal.NotifyContext(ctx, unix.SIGTERM, unix.SIGINT)
	defer stop()
	return node.Run(ctx, c, k, version, log)
}
