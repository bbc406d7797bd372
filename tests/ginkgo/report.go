// Package ginkgo reads the reports of test suites that are written with Ginkgo,
// and says what of a run was not expected.
package ginkgo

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"sigs.k8s.io/yaml"
)

// Spec is one spec's outcome.
type Spec struct {
	Name   string
	State  string // passed, failed, skipped, or another word of Ginkgo for a failure
	Reason string // why it failed or was skipped; empty for a spec that was not selected
}

// Parse reads ginkgo's JSON report. Nodes other than specs, such as
// BeforeSuite, count when they fail: without them no spec can run.
func Parse(data []byte) ([]Spec, error) {
	var suites []struct {
		SpecReports []struct {
			ContainerHierarchyTexts []string
			LeafNodeType            string
			LeafNodeText            string
			State                   string
			Failure                 struct{ Message string }
		}
	}
	if err := json.Unmarshal(data, &suites); err != nil {
		return nil, err
	}
	var specs []Spec
	for _, suite := range suites {
		for _, r := range suite.SpecReports {
			name := strings.Join(append(r.ContainerHierarchyTexts, r.LeafNodeText), " ")
			if r.LeafNodeType != "It" {
				if r.State == "passed" || r.State == "skipped" {
					continue
				}
				name = r.LeafNodeType
			}
			specs = append(specs, Spec{Name: strings.TrimPrefix(name, "[k8s.io] "), State: r.State, Reason: shorten(strings.TrimSpace(r.Failure.Message))})
		}
	}
	if len(specs) == 0 {
		return nil, fmt.Errorf("no specs in it")
	}
	return specs, nil
}

// Exception is a spec that fails here, and why that is no fault of what is tested.
type Exception struct {
	Spec   string `json:"spec"`
	Reason string `json:"reason"`
}

// LoadExceptions reads a list of them in YAML.
func LoadExceptions(data []byte) ([]Exception, error) {
	var all []Exception
	if err := yaml.UnmarshalStrict(data, &all); err != nil {
		return nil, fmt.Errorf("exceptions.yaml: %w", err)
	}
	for i, e := range all {
		if e.Spec == "" || e.Reason == "" {
			return nil, fmt.Errorf("exceptions.yaml: entry %d needs a spec and a reason", i+1)
		}
	}
	return all, nil
}

// Result is what a run came to.
type Result struct {
	Passed      int
	notSelected int
	Failed      []Spec         // not known
	known       []Spec         // the reason is the exception's
	skipped     map[string]int // by reason
	idle        []Exception    // did not fail
}

// Summarize sorts specs by their outcome.
func Summarize(specs []Spec, known []Exception) Result {
	r := Result{skipped: map[string]int{}}
	failed := map[string]bool{}
	for _, s := range specs {
		switch {
		case s.State == "passed":
			r.Passed++
		case s.State == "skipped" && s.Reason == "", s.State == "pending":
			r.notSelected++
		case s.State == "skipped":
			r.skipped[firstLine(s.Reason)]++
		default:
			failed[s.Name] = true
			if i := slices.IndexFunc(known, func(e Exception) bool { return e.Spec == s.Name }); i >= 0 {
				s.Reason = known[i].Reason
				r.known = append(r.known, s)
				continue
			}
			r.Failed = append(r.Failed, s)
		}
	}
	for _, e := range known {
		if !failed[e.Spec] {
			r.idle = append(r.idle, e)
		}
	}
	return r
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}

// Print says what ran, and of each failure the reason.
func (r Result) Print(w io.Writer, suite string, took time.Duration) {
	skipped := 0
	for _, n := range r.skipped {
		skipped += n
	}
	ran := r.Passed + len(r.Failed) + len(r.known)
	fmt.Fprintf(w, "%s: %d of %d passed, %d failed (%d of them known), %d skipped, %d not selected, in %v\n",
		suite, r.Passed, ran, len(r.Failed)+len(r.known), len(r.known), skipped, r.notSelected, took.Round(time.Second))
	for _, reason := range sortedKeys(r.skipped) {
		fmt.Fprintf(w, "skipped %3d: %s\n", r.skipped[reason], reason)
	}
	for _, s := range r.known {
		fmt.Fprintf(w, "known: %s\n    %s\n", s.Name, indent(s.Reason))
	}
	for _, s := range r.Failed {
		fmt.Fprintf(w, "%s: %s\n    %s\n", s.State, s.Name, indent(s.Reason))
	}
}

func indent(s string) string { return strings.ReplaceAll(strings.TrimSpace(s), "\n", "\n    ") }

// shorten leaves out the dumps of Go structures that gomega puts below the
// values it compares.
func shorten(s string) string {
	var out []string
	end := ""
	for line := range strings.SplitSeq(s, "\n") {
		text := strings.TrimLeft(line, " ")
		switch {
		case end != "":
			if line == end {
				end = ""
			}
		case text == "{":
			end = strings.TrimSuffix(line, "{") + "}"
		default:
			out = append(out, line)
		}
	}
	return strings.Join(out, "\n")
}

func sortedKeys(m map[string]int) []string {
	var keys []string
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// Unexpected says what is wrong with a run, or nothing. Exceptions must fail in
// a run of the whole suite: one that no longer does hides the next failure.
func (r Result) Unexpected(whole bool) string {
	var all []string
	if n := len(r.Failed); n > 0 {
		all = append(all, fmt.Sprintf("%d specs failed that exceptions.yaml does not list", n))
	}
	if r.Passed == 0 {
		all = append(all, "no spec passed")
	}
	for _, e := range r.idle {
		if whole {
			all = append(all, fmt.Sprintf("exceptions.yaml lists %q, which did not fail: remove it", e.Spec))
		}
	}
	return strings.Join(append(all, ""), "\n")
}
