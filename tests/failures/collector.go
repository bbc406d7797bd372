package main

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// What is repeated of a failure.
const (
	maxEntries = 2   // of what a test logged: the first are why it failed
	maxLines   = 5   // of one entry, and of what was said outside of tests
	maxWidth   = 400 // of one line, in bytes
)

var (
	failed     = regexp.MustCompile(`^( *)--- FAIL: (\S+) `)
	running    = regexp.MustCompile(`^=== (?:RUN|CONT|NAME) +(\S+)`)
	testLine   = regexp.MustCompile(`^ *(--- [A-Z]+: |=== )`)
	entry      = regexp.MustCompile(`^ +\S+\.go:\d+: `)
	packageEnd = regexp.MustCompile(`^(ok|FAIL|\?) *\t(\S+)`)
)

// failure is a test that failed, or what else ended a package.
type failure struct {
	pkg, name string
	lines     []string

	entries, more int // of lines: how many there are, and how many lines the last has
}

// collector reads the output of go test line by line. The packages follow each
// other in it: go test does not mix them.
type collector struct {
	failures []*failure
	mark     int                 // the first failure of the package that is being read
	said     map[string]*failure // by test: with -v what it logs comes before its result
	current  *failure            // whose lines follow
	indent   int                 // of its result
	loose    []string            // what was said outside of tests in this package
	panicked bool                // all that follows is about it
}

func (c *collector) add(line string) {
	line = strings.TrimRight(line, "\r\n")
	switch m := failed.FindStringSubmatch(line); {
	case m != nil:
		c.current, c.indent, c.panicked = c.said[m[2]], len(m[1]), false
		if c.current == nil {
			c.current = &failure{name: m[2]}
		}
		c.failures = append(c.failures, c.current)
	case running.MatchString(line):
		name := running.FindStringSubmatch(line)[1]
		if c.said[name] == nil {
			c.said[name] = &failure{name: name}
		}
		c.current, c.indent, c.panicked = c.said[name], 0, false
	case packageEnd.MatchString(line):
		c.end(line)
	case testLine.MatchString(line):
		c.current, c.panicked = nil, false
	case strings.HasPrefix(line, "panic: ") || strings.HasPrefix(line, "fatal error: "):
		c.current, c.panicked = &failure{name: "panic"}, true
		c.failures = append(c.failures, c.current)
		c.current.keep(line)
	case c.panicked:
		c.current.keep(line)
	case c.current != nil && strings.HasPrefix(line, strings.Repeat(" ", c.indent+4)):
		c.current.log(line)
	default:
		c.current = nil
		if line != "" && line != "PASS" && line != "FAIL" && len(c.loose) < maxLines {
			c.loose = append(c.loose, line)
		}
	}
}

// end is that of a package. One that failed without a failed test says why
// outside of them: it cannot be built, or its TestMain found something.
func (c *collector) end(line string) {
	m := packageEnd.FindStringSubmatch(line)
	if m[1] == "FAIL" && len(c.failures) == c.mark {
		c.failures = append(c.failures, &failure{lines: c.loose})
	}
	for _, f := range c.failures[c.mark:] {
		f.pkg = m[2]
	}
	c.mark, c.current, c.loose, c.panicked = len(c.failures), nil, nil, false
	clear(c.said)
}

// log takes a line that a test logged.
func (f *failure) log(line string) {
	if entry.MatchString(line) {
		f.entries, f.more = f.entries+1, 0
	}
	if f.entries > 0 && f.entries <= maxEntries {
		f.keep(line)
	}
}

func (f *failure) keep(line string) {
	if f.more++; f.more <= maxLines {
		f.lines = append(f.lines, line)
	}
}

// summary is empty when nothing failed. Tests that failed only because one of
// their subtests did are not in it.
func (c *collector) summary() string {
	var b strings.Builder
	for _, f := range c.failures {
		subtest := func(o *failure) bool { return o.pkg == f.pkg && strings.HasPrefix(o.name, f.name+"/") }
		if len(f.lines) == 0 && slices.ContainsFunc(c.failures, subtest) {
			continue
		}
		if b.Len() == 0 {
			b.WriteString("\nWhat failed, and what it said first:\n")
		}
		fmt.Fprintf(&b, "FAILED %s\n", strings.TrimSpace(f.pkg+" "+f.name))
		for _, line := range f.lines {
			line = strings.TrimSpace(line)
			if len(line) > maxWidth {
				line = strings.ToValidUTF8(line[:maxWidth], "") + " ..."
			}
			fmt.Fprintf(&b, "    %s\n", line)
		}
	}
	return b.String()
}
