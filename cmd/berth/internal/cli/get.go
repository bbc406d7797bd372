package cli

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-io/berth/cmd/berth/internal/client"
)

func getCommand(o *options) *cobra.Command {
	var output string
	var all bool
	cmd := &cobra.Command{
		Use:       "get pods|images|events [NAME]",
		Short:     "List what is on this node",
		Example:   "  berth get pods -A -o wide\n  berth get pods web -o yaml\n  berth get events",
		Args:      cobra.RangeArgs(1, 2),
		ValidArgs: []string{"pods", "images", "events"},
		RunE: func(cmd *cobra.Command, args []string) error {
			name := ""
			if len(args) == 2 {
				name = args[1]
			}
			namespace := o.namespace
			if all {
				namespace = ""
			}
			switch args[0] {
			case "pods", "pod", "po":
				return getPods(cmd, o, namespace, name, output)
			case "events", "event", "ev":
				return getEvents(cmd, o, namespace, output)
			case "images", "image":
				return getImages(cmd, o, output)
			}
			return fmt.Errorf("%q is not known here: get pods, images or events", args[0])
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "", "wide, json or yaml")
	cmd.Flags().BoolVarP(&all, "all-namespaces", "A", false, "pods of all namespaces")
	return cmd
}

func getPods(cmd *cobra.Command, o *options, namespace, name, output string) error {
	c, err := o.client()
	if err != nil {
		return err
	}
	pods, err := c.Pods(cmd.Context())
	if err != nil {
		return err
	}
	pods = slices.DeleteFunc(pods, func(p v1.Pod) bool {
		return namespace != "" && p.Namespace != namespace || name != "" && p.Name != name
	})
	if name != "" && len(pods) == 0 {
		return fmt.Errorf("pod %q not found in namespace %q on this node", name, namespace)
	}
	if structured(output) {
		if name != "" {
			pods[0].TypeMeta = metav1.TypeMeta{Kind: "Pod", APIVersion: "v1"}
			return encode(cmd.OutOrStdout(), output, pods[0])
		}
		for i := range pods {
			pods[i].TypeMeta = metav1.TypeMeta{Kind: "Pod", APIVersion: "v1"}
		}
		return encode(cmd.OutOrStdout(), output, v1.PodList{TypeMeta: metav1.TypeMeta{Kind: "List", APIVersion: "v1"}, Items: pods})
	}
	if err := knownOutput(output); err != nil {
		return err
	}
	rejected(cmd.Context(), c, cmd.ErrOrStderr())
	if len(pods) == 0 {
		fmt.Fprintln(cmd.ErrOrStderr(), "No pods found.")
		return nil
	}
	return podTable(cmd.OutOrStdout(), pods, namespace == "", output == "wide", time.Now())
}

// rejected reminds of manifests that are not in force: a user who looks at the
// pods wonders where one is.
func rejected(ctx context.Context, c *client.Client, w io.Writer) {
	var list []struct {
		File, Field, Reason string
		Line                int
	}
	if err := c.Get(ctx, "/rejected", &list); err != nil {
		fmt.Fprintln(w, "warning: rejected manifests cannot be listed:", err)
		return
	}
	for _, r := range list {
		where := r.File
		if r.Line > 0 {
			where = fmt.Sprintf("%s:%d", r.File, r.Line)
		}
		if r.Field != "" {
			where += ": " + r.Field
		}
		fmt.Fprintf(w, "warning: manifest not in force: %s: %s\n", where, r.Reason)
	}
}

func podTable(w io.Writer, pods []v1.Pod, namespaces, wide bool, now time.Time) error {
	t := newTable(w)
	head := []string{"NAME", "READY", "STATUS", "RESTARTS", "AGE"}
	if namespaces {
		head = slices.Insert(head, 0, "NAMESPACE")
	}
	if wide {
		head = append(head, "IP", "NODE")
	}
	t.row(head...)
	for i := range pods {
		p := &pods[i]
		s := summarize(p, now)
		row := []string{p.Name, s.ready, s.status, s.restarts, age(p.CreationTimestamp.Time, now)}
		if namespaces {
			row = slices.Insert(row, 0, p.Namespace)
		}
		if wide {
			row = append(row, orNone(p.Status.PodIP), orNone(p.Spec.NodeName))
		}
		t.row(row...)
	}
	return t.flush()
}

func getEvents(cmd *cobra.Command, o *options, namespace, output string) error {
	c, err := o.client()
	if err != nil {
		return err
	}
	var list v1.EventList
	if err := c.Get(cmd.Context(), "/events", &list); err != nil {
		return err
	}
	list.Items = slices.DeleteFunc(list.Items, func(e v1.Event) bool {
		// What concerns the node has no namespace of its own.
		return namespace != "" && e.InvolvedObject.Namespace != "" && e.InvolvedObject.Namespace != namespace
	})
	if structured(output) {
		return encode(cmd.OutOrStdout(), output, list)
	}
	if err := knownOutput(output); err != nil {
		return err
	}
	now := time.Now()
	t := newTable(cmd.OutOrStdout())
	t.row("LAST SEEN", "TYPE", "REASON", "OBJECT", "MESSAGE")
	for _, e := range list.Items {
		seen := age(e.LastTimestamp.Time, now)
		if e.Count > 1 {
			seen = fmt.Sprintf("%s (x%d over %s)", seen, e.Count, age(e.FirstTimestamp.Time, now))
		}
		object := strings.ToLower(e.InvolvedObject.Kind) + "/" + e.InvolvedObject.Name
		if container := containerOf(e.InvolvedObject.FieldPath); container != "" && output == "wide" {
			object += "/" + container
		}
		t.row(seen, e.Type, e.Reason, object, strings.TrimSpace(strings.ReplaceAll(e.Message, "\n", " ")))
	}
	return t.flush()
}

// containerOf reads the name out of spec.containers{NAME}.
func containerOf(fieldPath string) string {
	_, rest, found := strings.Cut(fieldPath, "{")
	if !found {
		return ""
	}
	return strings.TrimSuffix(rest, "}")
}
