package kubeletconfig

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the table into docs/agent/kubelet-configuration.md")

const (
	page   = "../../docs/agent/kubelet-configuration.md"
	marker = "<!-- made by: go test ./agent/kubeletconfig -run Documented -update -->\n"
)

func TestEveryFieldIsDocumented(t *testing.T) {
	data, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	before, got, found := strings.Cut(string(data), marker)
	if !found {
		t.Fatalf("%s has no line %q", page, marker)
	}
	var table strings.Builder
	table.WriteString("\n| field | in Berth | |\n|---|---|---|\n")
	fields := Fields()
	slices.SortFunc(fields, func(a, b Field) int { return strings.Compare(strings.ToLower(a.Path), strings.ToLower(b.Path)) })
	for _, f := range fields {
		fmt.Fprintf(&table, "| `%s` | %s | %s |\n", f.Path, f.Effect, f.Note)
	}
	if *update {
		if err := os.WriteFile(page, []byte(before+marker+table.String()), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if got != table.String() {
		t.Errorf("the table in %s is not that of Fields(): run go test ./agent/kubeletconfig -run Documented -update", page)
	}
}
