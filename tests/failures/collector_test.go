package main

import (
	"strings"
	"testing"
)

func TestSummarySaysWhatFailedAndWhy(t *testing.T) {
	for name, c := range map[string]struct{ output, want string }{
		"nothing, when nothing did": {"ok  \texample.test/a\t0.1s\n?   \texample.test/b\t[no test files]\n", ""},
		"a test, by what it logged first": {`--- FAIL: TestA (1.00s)
    a_test.go:1: got 1
        want 2
    a_test.go:2: and so on
    a_test.go:3: end of a long log
        one
        two
--- FAIL: TestB (0.00s)
    b_test.go:7: bad
time=12:00 level=INFO msg="what a daemon said"
FAIL
FAIL	example.test/a	1.1s
ok  	example.test/b	0.1s
FAIL
`, `
What failed, and what it said first:
FAILED example.test/a TestA
    a_test.go:1: got 1
    want 2
    a_test.go:2: and so on
FAILED example.test/a TestB
    b_test.go:7: bad
`},
		"a subtest instead of its parents": {`--- FAIL: TestA (1.00s)
    --- FAIL: TestA/on_one_node (0.00s)
        --- PASS: TestA/on_one_node/x (0.00s)
            a_test.go:9: said by what passed
        --- FAIL: TestA/on_one_node/y (0.00s)
            a_test.go:1: bad
FAIL
FAIL	example.test/a	1.1s
`, `
What failed, and what it said first:
FAILED example.test/a TestA/on_one_node/y
    a_test.go:1: bad
`},
		"a parent that says something itself": {`--- FAIL: TestA (1.00s)
    a_test.go:5: left behind
    --- FAIL: TestA/x (0.00s)
        a_test.go:1: bad
FAIL	example.test/a	1.1s
`, `
What failed, and what it said first:
FAILED example.test/a TestA
    a_test.go:5: left behind
FAILED example.test/a TestA/x
    a_test.go:1: bad
`},
		"the results of -v, which follow what was logged": {`=== RUN   TestA
    a_test.go:1: bad
--- FAIL: TestA (1.00s)
=== RUN   TestB
    b_test.go:1: good
=== NAME  TestC
    c_test.go:1: also bad
--- FAIL: TestC (1.00s)
--- PASS: TestB (1.00s)
FAIL
FAIL	example.test/a	1.1s
`, `
What failed, and what it said first:
FAILED example.test/a TestA
    a_test.go:1: bad
FAILED example.test/a TestC
    c_test.go:1: also bad
`},
		"a package whose tests passed": {`PASS
workloads: left behind by n2:
  cgroup   /x
FAIL	example.test/a	1.1s
`, `
What failed, and what it said first:
FAILED example.test/a
    workloads: left behind by n2:
    cgroup   /x
`},
		"a package that cannot be built": {`# example.test/a
./a.go:1:2: undefined: x
FAIL	example.test/a [build failed]
`, `
What failed, and what it said first:
FAILED example.test/a
    # example.test/a
    ./a.go:1:2: undefined: x
`},
		"a panic": {`--- FAIL: TestA (0.00s)
panic: test timed out after 25m0s
	running tests:
		TestA (24m0s)

goroutine 1 [running]:
FAIL	example.test/a	1500s
`, `
What failed, and what it said first:
FAILED example.test/a TestA
FAILED example.test/a panic
    panic: test timed out after 25m0s
    running tests:
    TestA (24m0s)
    
    goroutine 1 [running]:
`},
		"no more than a few lines of each": {"--- FAIL: TestA (0.00s)\n    a_test.go:1: " + strings.Repeat("x", 1000) + "\n" +
			strings.Repeat("        more\n", 100) + "FAIL\texample.test/a\t1.1s\n", `
What failed, and what it said first:
FAILED example.test/a TestA
    a_test.go:1: ` + strings.Repeat("x", maxWidth-len("a_test.go:1: ")) + ` ...
` + strings.Repeat("    more\n", maxLines-1)},
	} {
		t.Run(name, func(t *testing.T) {
			var out strings.Builder
			if err := run(strings.NewReader(c.output), &out); err != nil {
				t.Fatal(err)
			}
			got, whole := strings.CutPrefix(out.String(), c.output)
			if !whole {
				t.Errorf("the output is not passed on:\n%s", out.String())
			}
			if got != c.want {
				t.Errorf("got:\n%s\nwant:\n%s", got, c.want)
			}
		})
	}
}
