package cli

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	agentnode "github.com/berth-io/berth/agent/node"

	"github.com/berth-io/berth/agent/kubeletconfig"
	"github.com/berth-io/berth/cmd/berth/internal/config"
	"github.com/berth-io/berth/cmd/berth/internal/kubelet"
)

// kubeletCommand is the node with the kubelet's command line, for hosts that
// kubeadm sets up. Its flags are not cobra's: --config names the kubelet's file.
func kubeletCommand(version string) *cobra.Command {
	return &cobra.Command{
		Use:   "kubelet",
		Short: "Run the node with the kubelet's flags and files",
		Long: `Run the node with the kubelet's flags and KubeletConfiguration, as kubeadm
writes them. It is the same as berth node otherwise, and reads berth.yaml too
(env BERTH_CONFIG); what the kubelet's flags and files say goes before it. A
program of the name kubelet that is a link to berth is this command.`,
		DisableFlagParsing: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			if kubeletconfig.NotJoined(args) {
				c, err := config.Load(configPath())
				if err != nil {
					return err
				}
				if c.Has(config.RoleCRI) {
					return serveUntilJoined(cmd.Context(), c, args, version, cmd.ErrOrStderr())
				}
			}
			k, err := kubeletconfig.Load(args)
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			switch {
			case k.Help:
				_, err := fmt.Fprintf(out, "%s\n\nUsage:\n  kubelet [flags]\n\nFlags, with the field of KubeletConfiguration that each stands for:\n%s", cmd.Long, kubeletconfig.Usage())
				return err
			case k.Version == "true" || k.Version == "raw":
				return printVersion(out, k.Version, version)
			}
			c, err := config.Load(configPath())
			if err != nil {
				return err
			}
			if c, err = kubelet.Merge(c, k); err != nil {
				return err
			}
			log, err := kubeletLog(c, k, cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			return runNode(cmd.Context(), c, k, version, log)
		},
	}
}

// joinPoll is how often a host that is to join looks whether it has.
const joinPoll = time.Second

// serveUntilJoined is the node of a host that belongs to no cluster yet: the
// runtime alone, which kubeadm join wants to see before it writes the files that
// the agent needs. It ends as soon as one of them is there; whoever runs the
// kubelet starts it again.
func serveUntilJoined(ctx context.Context, c config.Config, args []string, version string, w io.Writer) error {
	level, err := c.Level()
	if err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: level}))
	c.Roles = slices.DeleteFunc(slices.Clone(c.Roles), func(r string) bool { return r == config.RoleAgent })
	log.Info("this host has not joined a cluster: only the runtime is served until kubeadm join or berth join has run", "socket", c.CRISocket)
	ctx, joined := context.WithCancel(ctx)
	defer joined()
	go func() {
		for kubeletconfig.NotJoined(args) {
			select {
			case <-ctx.Done():
				return
			case <-time.After(joinPoll):
			}
		}
		log.Info("this host joins a cluster: ending, to be started again as its node")
		joined()
	}()
	return runNode(ctx, c, nil, version, log)
}

// printVersion says which kubelet Berth stands in for, in the words that kubeadm
// reads (cmd/kubeadm/app/preflight/utils.go, GetKubeletVersion).
func printVersion(w io.Writer, how, berth string) error {
	if how == "raw" {
		_, err := fmt.Fprintf(w, "version.Info{GitVersion:%q, Berth:%q}\n", agentnode.KubeletVersion, berth)
		return err
	}
	_, err := fmt.Fprintf(w, "Kubernetes %s\n", agentnode.KubeletVersion)
	return err
}

// debugVerbosity is the verbosity from which the kubelet's log is for debugging.
const debugVerbosity = 4

// kubeletLog is as the kubelet's logging configuration has it.
func kubeletLog(c config.Config, k *kubeletconfig.Config, w io.Writer) (*slog.Logger, error) {
	level, err := c.Level()
	if err != nil {
		return nil, err
	}
	if k.Logging.Verbosity >= debugVerbosity {
		level = slog.LevelDebug
	}
	options := &slog.HandlerOptions{Level: level}
	if strings.EqualFold(k.Logging.Format, "json") {
		return slog.New(slog.NewJSONHandler(w, options)), nil
	}
	return slog.New(slog.NewTextHandler(w, options)), nil
}
