package cli

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

func versionCommand(version string) *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print versions",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			w := cmd.OutOrStdout()
			fmt.Fprintf(w, "berth %s (%s, %s/%s)\n", version, runtime.Version(), runtime.GOOS, runtime.GOARCH)
			info, ok := debug.ReadBuildInfo()
			if !ok {
				return nil
			}
			for _, dep := range info.Deps {
				switch dep.Path {
				case "k8s.io/api":
					fmt.Fprintln(w, "  Kubernetes API", dep.Version)
				case "k8s.io/cri-api":
					fmt.Fprintln(w, "  CRI           ", dep.Version)
				case "github.com/containernetworking/cni":
					fmt.Fprintln(w, "  CNI library   ", dep.Version)
				case "github.com/containerd/containerd/v2":
					fmt.Fprintln(w, "  image library ", dep.Version)
				}
			}
			return nil
		},
	}
}
