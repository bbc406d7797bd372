package cli

import (
	"fmt"
	"io"
	"net/url"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	v1 "k8s.io/api/core/v1"
)

func logsCommand(o *options) *cobra.Command {
	var (
		container            string
		follow, previous, ts bool
		since                time.Duration
		tail                 int64
	)
	cmd := &cobra.Command{
		Use:     "logs POD [-c CONTAINER]",
		Short:   "Print the logs of a container",
		Example: "  berth logs web -f\n  berth logs web -c sidecar --previous --since 10m",
		Args:    cobra.ExactArgs(1),
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
			q := url.Values{}
			for flag, on := range map[string]bool{"follow": follow, "previous": previous, "timestamps": ts} {
				if on {
					q.Set(flag, "true")
				}
			}
			if since > 0 {
				q.Set("sinceSeconds", strconv.FormatInt(int64((since+time.Second-1)/time.Second), 10))
			}
			if tail >= 0 {
				q.Set("tailLines", strconv.FormatInt(tail, 10))
			}
			body, err := c.Do(cmd.Context(), "GET", "/containerLogs/"+namespace+"/"+name+"/"+container+"?"+q.Encode(), nil)
			if err != nil {
				return err
			}
			defer body.Close()
			if _, err := io.Copy(cmd.OutOrStdout(), body); err != nil {
				return fmt.Errorf("read the log: %w", err)
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVarP(&container, "container", "c", "", "the container; default: the pod's first")
	f.BoolVarP(&follow, "follow", "f", false, "go on as lines are written")
	f.BoolVarP(&previous, "previous", "p", false, "of the container's last run")
	f.BoolVar(&ts, "timestamps", false, "with the time of each line")
	f.DurationVar(&since, "since", 0, "only lines of that last time, for example 10m")
	f.Int64Var(&tail, "tail", -1, "only that many last lines")
	return cmd
}

// defaultContainer is the one kubectl would choose.
func defaultContainer(cmd *cobra.Command, pod *v1.Pod) string {
	if name := pod.Annotations["kubectl.kubernetes.io/default-container"]; name != "" {
		return name
	}
	if len(pod.Spec.Containers) > 1 {
		fmt.Fprintf(cmd.ErrOrStderr(), "Defaulted container %q out of:", pod.Spec.Containers[0].Name)
		for _, c := range pod.Spec.Containers {
			fmt.Fprintf(cmd.ErrOrStderr(), " %s", c.Name)
		}
		fmt.Fprintln(cmd.ErrOrStderr())
	}
	return pod.Spec.Containers[0].Name
}
