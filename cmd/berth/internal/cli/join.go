package cli

import (
	"time"

	"github.com/spf13/cobra"

	"github.com/berth-io/berth/cmd/berth/internal/join"
)

func joinCommand() *cobra.Command {
	var c join.Config
	cmd := &cobra.Command{
		Use:   "join API_SERVER",
		Short: "Make this host a node of a Kubernetes cluster",
		Long: `Make this host a node of the cluster whose API server is at API_SERVER
(HOST:PORT), with a bootstrap token of that cluster. The files are those of
kubeadm join, which works on a host with Berth too.`,
		Example: "  berth join 192.0.2.10:6443 --token abcdef.0123456789abcdef --discovery-token-ca-cert-hash sha256:1234...",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c.Server, c.Out = args[0], cmd.OutOrStdout()
			if join.SystemdRuns() && !c.DryRun {
				c.Service = join.Systemd{}
			}
			return join.Run(cmd.Context(), c)
		},
	}
	fl := cmd.Flags()
	fl.StringVar(&c.Token, "token", "", "bootstrap token: kubeadm token create makes one")
	fl.StringSliceVar(&c.CACertHashes, "discovery-token-ca-cert-hash", nil, "hash of the public key of the cluster's CA: sha256:HEX")
	fl.BoolVar(&c.SkipCAVerification, "discovery-token-unsafe-skip-ca-verification", false, "trust whoever knows the token")
	fl.StringVar(&c.NodeName, "node-name", "", "name of the node; default: the host's")
	fl.DurationVar(&c.Timeout, "timeout", time.Minute, "how long to wait for the API server and for it to know the token")
	fl.BoolVar(&c.DryRun, "dry-run", false, "write nothing, and say what would be written")
	fl.StringVar(&c.KubernetesDir, "kubernetes-dir", "/etc/kubernetes", "directory of kubeconfigs and of the cluster's CA")
	fl.StringVar(&c.KubeletDir, "kubelet-dir", "/var/lib/kubelet", "the kubelet's directory")
	return cmd
}
