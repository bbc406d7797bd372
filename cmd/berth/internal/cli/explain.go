package cli

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	v1 "k8s.io/api/core/v1"
)

// explanation is the API's answer to /explain.
type explanation struct {
	Pod   v1.Pod
	Phase string
	Steps []step
	Stuck *struct {
		Step, Container, Reason, Message string
		Since                            time.Time
	}
}

type step struct {
	Name, Container, Error string
	Start, End             time.Time
}

func explainCommand(o *options) *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:     "explain pod NAME",
		Short:   "Tell what the node did for a pod, how long it took, and what it waits for",
		Example: "  berth explain pod web",
		Args:    cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			arg := args[len(args)-1]
			if len(args) == 2 && args[0] != "pod" && args[0] != "pods" {
				return fmt.Errorf("%q is not known here: explain pod NAME", args[0])
			}
			c, err := o.client()
			if err != nil {
				return err
			}
			namespace, name := o.target(arg)
			if structured(output) {
				var raw any
				if err := c.Get(cmd.Context(), "/explain/"+namespace+"/"+name, &raw); err != nil {
					return err
				}
				return encode(cmd.OutOrStdout(), output, raw)
			}
			var e explanation
			if err := c.Get(cmd.Context(), "/explain/"+namespace+"/"+name, &e); err != nil {
				return err
			}
			return e.print(cmd.OutOrStdout(), time.Now())
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "", "json or yaml")
	return cmd
}

// barWidth is the width of the timeline's chart in characters.
const barWidth = 32

func (e *explanation) print(w io.Writer, now time.Time) error {
	s := summarize(&e.Pod, now)
	fmt.Fprintf(w, "Pod %s/%s is %s, %s containers ready (life cycle: %s)\n\n", e.Pod.Namespace, e.Pod.Name, s.status, s.ready, e.Phase)
	if len(e.Steps) == 0 {
		fmt.Fprintln(w, "Nothing was done for it yet.")
		return nil
	}
	first, chartEnd := e.Steps[0].Start, e.chartEnd(now)
	t := newTable(w)
	t.row("AT", "TOOK", "STEP", "CONTAINER", "")
	for _, st := range e.Steps {
		took := "instant"
		switch {
		case st.End.IsZero():
			took = short(now.Sub(st.Start)) + " so far"
		case st.End.After(st.Start):
			took = short(st.End.Sub(st.Start))
		}
		note := bar(st, first, chartEnd)
		if st.Error != "" {
			note += " " + strings.ReplaceAll(st.Error, "\n", " ")
		}
		t.row(short(st.Start.Sub(first)), took, st.Name, st.Container, strings.TrimRight(note, " "))
	}
	if err := t.flush(); err != nil {
		return err
	}
	if e.Stuck == nil {
		return nil
	}
	fmt.Fprintf(w, "\nIt waits in step %q", e.Stuck.Step)
	if e.Stuck.Container != "" {
		fmt.Fprintf(w, " of container %q", e.Stuck.Container)
	}
	if !e.Stuck.Since.IsZero() {
		fmt.Fprintf(w, " for %s", short(now.Sub(e.Stuck.Since)))
	}
	if e.Stuck.Reason != "" {
		fmt.Fprintf(w, ": %s", e.Stuck.Reason)
	}
	if e.Stuck.Message != "" {
		fmt.Fprintf(w, "\n  %s", e.Stuck.Message)
	}
	fmt.Fprintln(w)
	return nil
}

// chartEnd is where the chart ends: when the pod became ready the first time,
// since what comes later would squeeze the start to nothing.
func (e *explanation) chartEnd(now time.Time) time.Time {
	for _, st := range e.Steps {
		if st.Name == "ready" {
			return st.Start
		}
	}
	last := e.Steps[len(e.Steps)-1]
	if last.End.IsZero() {
		return now
	}
	return last.End
}

func bar(st step, first, end time.Time) string {
	total := end.Sub(first)
	if total <= 0 || !st.Start.Before(end) || !st.End.After(st.Start) {
		return ""
	}
	from := int(float64(barWidth) * float64(st.Start.Sub(first)) / float64(total))
	to := int(float64(barWidth)*float64(min(st.End.Sub(first), total))/float64(total) + 0.5)
	return strings.Repeat(" ", from) + strings.Repeat("█", max(to-from, 1))
}

// short prints a duration with three digits, which is all that means anything.
func short(d time.Duration) string {
	switch {
	case d < 0:
		return "0"
	case d < 10*time.Millisecond:
		return fmt.Sprintf("%.1fms", float64(d)/float64(time.Millisecond))
	case d < time.Second:
		return fmt.Sprintf("%dms", d.Milliseconds())
	case d < time.Minute:
		return fmt.Sprintf("%.1fs", d.Seconds())
	}
	return d.Round(time.Second).String()
}
