package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	v1 "k8s.io/api/core/v1"

	"github.com/berth-io/berth/cmd/berth/internal/client"
)

func stopCommand(o *options) *cobra.Command {
	var grace time.Duration
	cmd := &cobra.Command{
		Use:   "stop POD...",
		Short: "Stop pods; their logs and statuses stay until they are removed",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := o.client()
			if err != nil {
				return err
			}
			for _, arg := range args {
				namespace, name := o.target(arg)
				path := "/stop/" + namespace + "/" + name
				if cmd.Flags().Changed("grace-period") {
					path += fmt.Sprintf("?grace=%d", int64(grace/time.Second))
				}
				if err := call(cmd.Context(), c, "POST", path, nil, nil); err != nil {
					return err
				}
				err := await(cmd.Context(), c, namespace, name, func(p *v1.Pod) bool {
					return p == nil || p.Status.Phase == v1.PodSucceeded || p.Status.Phase == v1.PodFailed
				})
				if err != nil {
					return err
				}
				fmt.Fprintf(cmd.OutOrStdout(), "pod/%s stopped\n", name)
			}
			return nil
		},
	}
	cmd.Flags().DurationVar(&grace, "grace-period", 0, "time to end in before SIGKILL; default: the pod's own")
	return cmd
}

func rmCommand(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "rm POD...",
		Short: "Remove pods made with berth run, and all that is kept of them",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := o.client()
			if err != nil {
				return err
			}
			for _, arg := range args {
				namespace, name := o.target(arg)
				if err := call(cmd.Context(), c, "DELETE", "/pods/"+namespace+"/"+name, nil, nil); err != nil {
					return err
				}
				if err := await(cmd.Context(), c, namespace, name, func(p *v1.Pod) bool { return p == nil }); err != nil {
					return err
				}
				fmt.Fprintf(cmd.OutOrStdout(), "pod/%s removed\n", name)
			}
			return nil
		},
	}
}

// call makes one request and decodes its answer into out, where there is one.
func call(ctx context.Context, c *client.Client, method, path string, body []byte, out any) error {
	answer, err := c.Do(ctx, method, path, body)
	if err != nil {
		return err
	}
	defer answer.Close()
	if out == nil {
		return nil
	}
	if err := json.NewDecoder(answer).Decode(out); err != nil {
		return fmt.Errorf("read the node's answer: %w", err)
	}
	return nil
}

// await looks at a pod until it is as wanted; nil is a pod that is gone. The
// user's ^C ends it: what was asked for goes on.
func await(ctx context.Context, c *client.Client, namespace, name string, wanted func(*v1.Pod) bool) error {
	for {
		pods, err := c.Pods(ctx)
		if err != nil {
			return err
		}
		var found *v1.Pod
		for i := range pods {
			if pods[i].Namespace == namespace && pods[i].Name == name {
				found = &pods[i]
			}
		}
		if wanted(found) {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
}
