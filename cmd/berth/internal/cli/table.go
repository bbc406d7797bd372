package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"k8s.io/apimachinery/pkg/util/duration"
	"sigs.k8s.io/yaml"
)

// table prints columns the way kubectl does.
type table struct{ w *tabwriter.Writer }

func newTable(w io.Writer) table { return table{tabwriter.NewWriter(w, 0, 8, 3, ' ', 0)} }

func (t table) row(cells ...string) { fmt.Fprintln(t.w, strings.Join(cells, "\t")) }

func (t table) flush() error { return t.w.Flush() }

func structured(output string) bool { return output == "json" || output == "yaml" }

func knownOutput(output string) error {
	if output == "" || output == "wide" || structured(output) {
		return nil
	}
	return fmt.Errorf("output %q is not known: wide, json or yaml", output)
}

func encode(w io.Writer, output string, v any) error {
	data, err := json.MarshalIndent(v, "", "    ")
	if err != nil {
		return fmt.Errorf("encode as %s: %w", output, err)
	}
	if output == "yaml" {
		if data, err = yaml.JSONToYAML(data); err != nil {
			return fmt.Errorf("encode as yaml: %w", err)
		}
		_, err = w.Write(data)
		return err
	}
	_, err = fmt.Fprintln(w, string(data))
	return err
}

func age(since, now time.Time) string {
	if since.IsZero() {
		return "<unknown>"
	}
	return duration.HumanDuration(now.Sub(since))
}

func orNone(s string) string {
	if s == "" {
		return "<none>"
	}
	return s
}

// size prints bytes as people read them: decimal units, as image sizes are told.
func size(bytes uint64) string {
	const units = "kMGTPE"
	f := float64(bytes)
	if f < 1000 {
		return fmt.Sprintf("%dB", bytes)
	}
	i := -1
	for f >= 1000 && i < len(units)-1 {
		f /= 1000
		i++
	}
	return fmt.Sprintf("%.3g%cB", f, units[i])
}
