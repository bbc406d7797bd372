// Command conformance runs Kubernetes' e2e suite on a cluster of its own: a real
// control plane and nodes of Berth, or of the stock stack, on one machine (see
// package cluster).
//
// It prints passed, failed and skipped specs, each failure with its reason, and
// leaves the suite's own output, a JUnit file and Ginkgo's JSON report in a
// directory. It exits 0 only if every spec that failed is listed in
// exceptions.yaml, at least one passed, and Berth's nodes were left with nothing
// of a pod.
package main

import (
	"context"
	_ "embed"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/berth-io/berth/tests/cluster"
	"github.com/berth-io/berth/tests/ginkgo"
	"github.com/berth-io/berth/tests/harness"
)

//go:embed exceptions.yaml
var exceptions []byte

// options are the command line's.
type options struct {
	focus, skip string
	nodes       int
	kind        string
	procs       int
	images      string
	report      string
	timeout     time.Duration
	attach      string
	args        []string
}

func main() {
	var o options
	flag.StringVar(&o.focus, "focus", `\[Conformance\]`, "run only specs whose names match this expression")
	flag.StringVar(&o.skip, "skip", `\[Serial\]|\[Disruptive\]|\[Flaky\]`, "do not run specs whose names match this expression")
	flag.IntVar(&o.nodes, "nodes", 2, "number of nodes")
	flag.StringVar(&o.kind, "kind", string(cluster.Berth), "kind of nodes: berth or stock")
	flag.IntVar(&o.procs, "procs", 5, "specs that run at a time")
	flag.StringVar(&o.images, "images", "out/images", "the suite's images, in OCI layout")
	flag.StringVar(&o.report, "report", "out/conformance", "directory of the reports and of the suite's own output")
	flag.DurationVar(&o.timeout, "timeout", 2*time.Hour, "bound of the suite's run")
	flag.StringVar(&o.attach, "cluster", "", "run it on the cluster of this name, which is there and stays")
	flag.Parse()
	o.args = flag.Args()
	good := true
	code := harness.Main("conformance", func(t harness.TB) { good = run(t, o) })
	if !good {
		code = 1
	}
	os.Exit(code)
}

// run reports whether the suite went as expected.
func run(t harness.TB, o options) bool {
	known, err := ginkgo.LoadExceptions(exceptions)
	if err != nil {
		t.Fatalf("%v", err)
	}
	for _, path := range []*string{&o.images, &o.report} {
		if *path, err = filepath.Abs(*path); err != nil {
			t.Fatalf("%v", err)
		}
	}
	c := clusterFor(t, o)
	began := time.Now()
	specs := runSuite(t, c, o)
	r := ginkgo.Summarize(specs, known)
	r.Print(os.Stdout, fmt.Sprintf("e2e on %d %s nodes", len(c.Nodes), c.Nodes[0].Kind), time.Since(began))
	fmt.Printf("reports and output: %s\n", o.report)
	if o.attach == "" {
		c.CheckNothingLeft(t)
	}
	bad := r.Unexpected(false)
	fmt.Print(bad)
	return bad == ""
}

func clusterFor(t harness.TB, o options) *cluster.Cluster {
	if o.attach != "" {
		c, err := cluster.Attach(o.attach)
		if err != nil {
			t.Fatalf("%v", err)
		}
		return c
	}
	cfg := cluster.Config{Images: o.images}
	for range o.nodes {
		cfg.Nodes = append(cfg.Nodes, cluster.NodeConfig{Kind: cluster.Kind(o.kind)})
	}
	return cluster.New(t, cfg)
}

// runSuite runs the suite on the control plane's host. Its exit status says the
// same as its report, so that only a missing report is an error.
func runSuite(t harness.TB, c *cluster.Cluster, o options) []ginkgo.Spec {
	if err := os.MkdirAll(o.report, 0o755); err != nil {
		t.Fatalf("%v", err)
	}
	report := filepath.Join(o.report, "report.json")
	if err := os.RemoveAll(report); err != nil { // of another run
		t.Fatalf("%v", err)
	}
	output := filepath.Join(o.report, "e2e.log")
	log, err := os.Create(output)
	if err != nil {
		t.Fatalf("%v", err)
	}
	defer log.Close()
	args := []string{"ginkgo",
		"--procs=" + strconv.Itoa(o.procs), "--timeout=" + o.timeout.String(), "--no-color", "--silence-skips",
		"--focus=" + o.focus, "--skip=" + o.skip,
		"--output-dir=" + o.report, "--json-report=report.json", "--junit-report=junit.xml",
		filepath.Join(c.Config.Bin, "peers", "e2e.test"), "--",
		"--kubeconfig=" + c.Kubeconfig(), "--provider=skeleton", "--num-nodes=" + strconv.Itoa(len(c.Nodes)),
	}
	ctx, cancel := context.WithTimeout(context.Background(), o.timeout+5*time.Minute)
	defer cancel()
	cmd := c.Command(ctx, append(args, o.args...)...)
	cmd.Dir = o.report
	cmd.Stdout, cmd.Stderr = log, log
	runErr := cmd.Run()
	data, err := os.ReadFile(report)
	if err != nil {
		t.Fatalf("the suite wrote no report: %v (%v); the end of %s:\n%s", err, runErr, output, tail(output, 30))
	}
	specs, err := ginkgo.Parse(data)
	if err != nil {
		t.Fatalf("%s: %v", report, err)
	}
	return specs
}

func tail(path string, lines int) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimRight(string(data), "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}
