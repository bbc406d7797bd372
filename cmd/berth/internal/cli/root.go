// Package cli is the berth command line: one file a command. Commands talk to
// the node through its sockets, as any other client does; only node itself is
// the node.
package cli

import (
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/berth-io/berth/cmd/berth/internal/client"
	"github.com/berth-io/berth/cmd/berth/internal/config"
)

// options are the flags of all commands.
type options struct {
	configPath string
	namespace  string
}

func (o *options) config() (config.Config, error) { return config.Load(o.configPath) }

func (o *options) client() (*client.Client, error) {
	c, err := o.config()
	if err != nil {
		return nil, err
	}
	return client.New(c.APISocket), nil
}

// target splits [pod/]NAME or NAMESPACE/NAME as users of kubectl write it.
func (o *options) target(arg string) (namespace, name string) {
	arg = strings.TrimPrefix(arg, "pod/")
	arg = strings.TrimPrefix(arg, "pods/")
	if ns, name, found := strings.Cut(arg, "/"); found {
		return ns, name
	}
	return o.namespace, arg
}

// New returns the command tree.
func New(version string) *cobra.Command {
	o := &options{}
	root := &cobra.Command{
		Use:   "berth",
		Short: "Run Kubernetes pods on this host",
		Long: `Berth is the node side of Kubernetes in one program: the node agent, the
container runtime, the pod network and the volumes. "berth node" is the
daemon; the other commands look at a running node and talk to it.`,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.PersistentFlags().StringVar(&o.configPath, "config", configPath(), "configuration file (env BERTH_CONFIG)")
	root.PersistentFlags().StringVarP(&o.namespace, "namespace", "n", "default", "namespace of the pod")
	root.AddCommand(
		nodeCommand(o, version), kubeletCommand(version), joinCommand(), runCommand(o), getCommand(o), logsCommand(o), execCommand(o),
		stopCommand(o), rmCommand(o), imageCommand(o), explainCommand(o), doctorCommand(o), versionCommand(version),
	)
	return root
}

// configPath is where berth.yaml is where no flag says so.
func configPath() string {
	if path := os.Getenv("BERTH_CONFIG"); path != "" {
		return path
	}
	return config.DefaultPath
}
