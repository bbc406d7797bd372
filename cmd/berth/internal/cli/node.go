package cli

import (
	"fmt"
	"log/slog"
	"os/signal"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

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
			ctx, stop := signal.NotifyContext(cmd.Context(), unix.SIGTERM, unix.SIGINT)
			defer stop()
			kubelet, err := node.Kubelet(c)
			if err != nil {
				return err
			}
			return node.Run(ctx, c, kubelet, version, log)
		},
	}
	cmd.Flags().StringSliceVar(&roles, "roles", nil, "roles of this daemon: agent, cri, network (default all)")
	return cmd
}
