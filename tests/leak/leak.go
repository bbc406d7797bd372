// Package leak lists what a node has on its machine (mounts, namespaces,
// links, cgroups, packet filter rules, BPF objects, processes, files) and
// compares two such lists, so that a test fails when anything is left behind.
package leak

import (
	"cmp"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// Scope says which node's belongings to look for. Other programs, and other
// nodes, may come and go on the same machine meanwhile.
type Scope struct {
	Dirs       []string // directories that belong to the node alone
	Tag        string   // environment variable, as NAME=value, that marks its processes
	NetNS      string   // path of its network namespace
	CgroupRoot string   // as in its configuration: / or /name
	// Machine looks at the whole machine instead, where that is possible: any
	// new mount, link, named namespace or BPF object counts, whoever made it.
	Machine bool
}

// Item is one thing on the machine. Items with the same Kind and Key are the
// same thing at different times.
type Item struct {
	Kind   string // mount, netns, link, cgroup, rule, bpf, process, file
	Key    string
	Detail string // for people
}

// Snapshot is everything in scope at one moment.
type Snapshot []Item

// Take looks at the machine. It needs root.
func Take(s Scope) (Snapshot, error) {
	var all Snapshot
	var errs []error
	for _, collect := range []func(Scope) ([]Item, error){
		mounts, namedNamespaces, links, cgroups, rules, bpfObjects, processes, files,
	} {
		items, err := collect(s)
		if err != nil {
			errs = append(errs, err)
		}
		all = append(all, items...)
	}
	slices.SortFunc(all, func(a, b Item) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Key, b.Key), cmp.Compare(a.Detail, b.Detail))
	})
	return all, errors.Join(errs...)
}

// Allowed is what may stay, and why. The pattern is matched against the whole
// key of items of that kind.
type Allowed struct {
	Kind, Pattern, Reason string
}

// Diff returns what is in after, was not in before and is not allowed. Equal
// items count: two rules are more than one.
func Diff(before, after Snapshot, allowed []Allowed) []Item {
	type id struct{ kind, key string }
	have := map[id]int{}
	for _, i := range before {
		have[id{i.Kind, i.Key}]++
	}
	var left []Item
	for _, i := range after {
		if have[id{i.Kind, i.Key}] > 0 {
			have[id{i.Kind, i.Key}]--
			continue
		}
		if !slices.ContainsFunc(allowed, func(a Allowed) bool { return a.matches(i) }) {
			left = append(left, i)
		}
	}
	return left
}

func (a Allowed) matches(i Item) bool {
	return a.Kind == i.Kind && regexp.MustCompile("^(?:"+a.Pattern+")$").MatchString(i.Key)
}

// maxPrinted bounds a report: one leaked directory tree can hold thousands.
const maxPrinted = 60

// Format prints what is left, one thing a line.
func Format(left []Item) string {
	var b strings.Builder
	for n, i := range left {
		if n == maxPrinted {
			fmt.Fprintf(&b, "  and %d more\n", len(left)-n)
			break
		}
		fmt.Fprintf(&b, "  %-8s %s", i.Kind, i.Key)
		if i.Detail != "" {
			fmt.Fprintf(&b, "  (%s)", i.Detail)
		}
		b.WriteByte('\n')
	}
	return b.String()
}

func (s Scope) owns(path string) bool {
	return slices.ContainsFunc(s.Dirs, func(dir string) bool { return path == dir || strings.HasPrefix(path, dir+"/") })
}

func (s Scope) mentions(text string) bool {
	return slices.ContainsFunc(s.Dirs, func(dir string) bool { return strings.Contains(text, dir+"/") })
}
