package main

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"sigs.k8s.io/yaml"
)

// spec is one spec's outcome.
type spec struct {
	name   string
	state  string // passed, failed, skipped, or another word of ginkgo for a failure
	reason string // why it failed or was skipped; empty for a spec that was not selected
}

// parseReport reads ginkgo's JSON report. Nodes other than specs, such as
// BeforeSuite, count when they fail: without them no spec can run.
func parseReport(data []byte) ([]spec, error) {
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
	var specs []spec
	for _, suite := range suites {
		for _, r := range suite.SpecReports {
			name := strings.Join(append(r.ContainerHierarchyTexts, r.LeafNodeText), " ")
			if r.LeafNodeType != "It" {
				if r.State == "passed" || r.State == "skipped" {
					continue
				}
				name = r.LeafNodeType
			}
			specs = append(specs, spec{name: strings.TrimPrefix(name, "[k8s.io] "), state: r.State, reason: shorten(strings.TrimSpace(r.Failure.Message))})
		}
	}
	if len(specs) == 0 {
		return nil, fmt.Errorf("no specs in it")
	}
	return specs, nil
}

// exception is a spec that fails here, and why that is no fault of the runtime.
type exception struct {
	Spec   string `json:"spec"`
	Reason string `json:"reason"`
}

//go:embed exceptions.yaml
var exceptionsFile []byte

func loadExceptions() ([]exception, error) {
	var all []exception
	if err := yaml.UnmarshalStrict(exceptionsFile, &all); err != nil {
		return nil, fmt.Errorf("exceptions.yaml: %w", err)
	}
	for i, e := range all {
		if e.Spec == "" || e.Reason == "" {
			return nil, fmt.Errorf("exceptions.yaml: entry %d needs a spec and a reason", i+1)
		}
	}
	return all, nil
}

// result is what a run came to.
type result struct {
	passed      int
	notSelected int
	failed      []spec         // not known
	known       []spec         // the reason is the exception's
	skipped     map[string]int // by reason
	idle        []exception    // did not fail
}

func summarize(specs []spec, known []exception) result {
	r := result{skipped: map[string]int{}}
	failed := map[string]bool{}
	for _, s := range specs {
		switch {
		case s.state == "passed":
			r.passed++
		case s.state == "skipped" && s.reason == "":
			r.notSelected++
		case s.state == "skipped":
			r.skipped[firstLine(s.reason)]++
		default:
			failed[s.name] = true
			if i := slices.IndexFunc(known, func(e exception) bool { return e.Spec == s.name }); i >= 0 {
				s.reason = known[i].Reason
				r.known = append(r.known, s)
				continue
			}
			r.failed = append(r.failed, s)
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

func (r result) print(w io.Writer, runtime string, took time.Duration) {
	skipped := 0
	for _, n := range r.skipped {
		skipped += n
	}
	ran := r.passed + len(r.failed) + len(r.known)
	fmt.Fprintf(w, "critest on %s: %d of %d passed, %d failed (%d of them known), %d skipped, %d not selected, in %v\n",
		runtime, r.passed, ran, len(r.failed)+len(r.known), len(r.known), skipped, r.notSelected, took.Round(time.Second))
	for _, reason := range sortedKeys(r.skipped) {
		fmt.Fprintf(w, "skipped %3d: %s\n", r.skipped[reason], reason)
	}
	for _, s := range r.known {
		fmt.Fprintf(w, "known: %s\n    %s\n", s.name, indent(s.reason))
	}
	for _, s := range r.failed {
		fmt.Fprintf(w, "%s: %s\n    %s\n", s.state, s.name, indent(s.reason))
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

// unexpected says what is wrong with a run, or nothing. Exceptions must fail in
// a run of the whole suite: one that no longer does hides the next failure.
func (r result) unexpected(whole bool) string {
	var all []string
	if n := len(r.failed); n > 0 {
		all = append(all, fmt.Sprintf("%d specs failed that exceptions.yaml does not list", n))
	}
	if r.passed == 0 {
		all = append(all, "no spec passed")
	}
	for _, e := range r.idle {
		if whole {
			all = append(all, fmt.Sprintf("exceptions.yaml lists %q, which did not fail: remove it", e.Spec))
		}
	}
	return strings.Join(append(all, ""), "\n")
}
