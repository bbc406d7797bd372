// Command critest runs critest, the validation suite of cri-tools, on Berth's
// runtime: a node with the roles cri and network, in a network namespace of its
// own, beside a registry with images for everything that the specs name. The
// suite is not part of this repository; -critest is the path of its binary.
//
// It prints passed, failed and skipped specs, each failure with its reason, and
// exits 0 only if every spec that failed is listed in exceptions.yaml, every
// spec listed there did fail, and the node was left with nothing of a pod.
//
// With -containerd it runs the same suite on containerd, with the same images,
// on the same machine: what fails on both is no fault of either.
package main

import (
	"context"
	_ "embed"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/berth-io/berth/tests/ginkgo"
	"github.com/berth-io/berth/tests/harness"
	"github.com/berth-io/berth/tests/stock"
)

// pauseImage is that of containerd's pods; no spec names this version.
const pauseImage = "registry.k8s.io/pause:3.10.2"

//go:embed exceptions.yaml
var exceptions []byte

// options are the command line's.
type options struct {
	critest    string
	focus      string
	skip       string
	nri        bool
	containerd string
	args       []string
	keep       string
}

func main() {
	var o options
	flag.StringVar(&o.critest, "critest", "", "path of the critest binary")
	flag.StringVar(&o.focus, "focus", "", "run only specs whose names match this expression")
	flag.StringVar(&o.skip, "skip", "", "do not run specs whose names match this expression")
	flag.BoolVar(&o.nri, "nri", true, "run the specs of NRI too")
	flag.StringVar(&o.containerd, "containerd", "", "run them on containerd: directory of containerd, its shim and CNI plugins")
	flag.StringVar(&o.keep, "keep", "", "keep critest's whole output in this file")
	flag.Parse()
	o.args = flag.Args()
	if o.critest == "" {
		fmt.Fprintln(os.Stderr, "critest: -critest is not set: the path of a critest binary, from cri-tools v1.36 or later")
		os.Exit(2)
	}
	good := true
	code := harness.Main("critest", func(t harness.TB) { good = run(t, o) })
	if !good {
		code = 1
	}
	os.Exit(code)
}

// run reports whether the suite went as expected. Failed specs are no failure
// of the program, which would print the end of the daemon's log.
func run(t harness.TB, o options) bool {
	known, err := ginkgo.LoadExceptions(exceptions)
	if err != nil {
		t.Fatalf("%v", err)
	}
	n := harness.NewNode(t, harness.Options{
		Mirrors:    []string{"registry.k8s.io", "k8s.gcr.io", "gcr.io"},
		MoreImages: pushImages,
		Amend: func(c *harness.Config) {
			c.Roles = []string{"cri", "network"}
			c.NRI = harness.NRI{
				Enable: o.nri, SocketPath: c.RunDir + "/nri.sock", PluginPath: c.RootDir + "/nri", ConfigPath: c.RootDir + "/nri",
				RequestTimeout: "10s", // a spec has a plugin take just the default, two seconds
			}
		},
	})
	rt := runtimeUnderTest{name: "berth", socket: n.Config.CRISocket, nri: n.Config.NRI.SocketPath}
	if o.containerd == "" {
		n.Start()
	} else {
		bin, err := filepath.Abs(o.containerd)
		if err != nil {
			t.Fatalf("%v", err)
		}
		c := stock.StartContainerd(t, n, bin, pauseImage)
		rt = runtimeUnderTest{name: "containerd", socket: c.Socket, nri: c.NRISocket}
	}
	if !o.nri {
		rt.nri = ""
	}
	began := time.Now()
	specs := runSuite(t, n, o, rt)
	r := ginkgo.Summarize(specs, known)
	r.Print(os.Stdout, "critest on "+rt.name, time.Since(began))
	if o.containerd != "" {
		return true // its failures are for comparison
	}
	n.Stop()
	n.CheckNothingLeft()
	bad := r.Unexpected(o.focus == "" && o.skip == "")
	fmt.Print(bad)
	return bad == ""
}

// runtimeUnderTest is whom critest asks.
type runtimeUnderTest struct {
	name   string
	socket string
	nri    string // NRI socket, or empty
}

func pushImages(n *harness.Node) error {
	all, err := n.Builder().CRITest()
	if err != nil {
		return err
	}
	for reference, img := range all {
		if err := n.Registry.PushReference(reference, img); err != nil {
			return err
		}
	}
	return nil
}

// suiteTimeout bounds a run; ginkgo's own report is written when it ends.
const suiteTimeout = 40 * time.Minute

// runSuite runs critest where it reaches the pods: in the node's network
// namespace, with this process' mounts. Its exit status says the same as its
// report, so that only a missing report is an error.
func runSuite(t harness.TB, n *harness.Node, o options, rt runtimeUnderTest) []ginkgo.Spec {
	tmp := filepath.Join(n.Dir, "tmp")
	if err := os.MkdirAll(tmp, 0o755); err != nil {
		t.Fatalf("%v", err)
	}
	report := filepath.Join(n.Dir, "report.json")
	output := o.keep
	if output == "" {
		output = filepath.Join(n.Dir, "critest.log")
	}
	log, err := os.Create(output)
	if err != nil {
		t.Fatalf("%v", err)
	}
	defer log.Close()
	args := append(n.InNetNS(), o.critest,
		"-runtime-endpoint=unix://"+rt.socket, "-config=/dev/null",
		"-ginkgo.json-report="+report, "-ginkgo.timeout="+suiteTimeout.String())
	for name, value := range map[string]string{"ginkgo.focus": o.focus, "ginkgo.skip": o.skip, "nri-socket": rt.nri} {
		if value != "" {
			args = append(args, "-"+name+"="+value)
		}
	}
	args = append(args, o.args...)
	ctx, cancel := context.WithTimeout(context.Background(), suiteTimeout+time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Env = append(n.Environ(), "TMPDIR="+tmp)
	cmd.Stdout, cmd.Stderr = log, log
	segments := sharedMemory(t)
	runErr := cmd.Run()
	removeSharedMemory(t, segments)
	data, err := os.ReadFile(report)
	if err != nil {
		t.Fatalf("critest wrote no report: %v (%v); the end of its output:\n%s", err, runErr, tail(output, 30))
	}
	specs, err := ginkgo.Parse(data)
	if err != nil {
		t.Fatalf("critest's report: %v", err)
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
