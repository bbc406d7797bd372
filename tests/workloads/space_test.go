package workloads

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	box = "registry.test/box:1" // testbox and busybox

	// testTimeout bounds one test, on a machine that is busy with other things.
	testTimeout = 8 * time.Minute
	// waitTimeout bounds one wait, and wait one of kubectl.
	waitTimeout = 4 * time.Minute
	wait        = "--timeout=4m"
)

// atOnce bounds how many tests run at a time, whatever -parallel says: more
// would wait for each other on a small machine until they time out.
var atOnce = make(chan struct{}, 6)

// space is a test's namespace and the kubectl that works in it.
type space struct {
	t   *testing.T
	ctx context.Context
	ns  string
}

// newSpace makes a namespace named after the test, for a test that may run
// beside others. It goes with the test; the pods in it are waited for at the
// end of all tests.
func newSpace(t *testing.T) *space {
	t.Helper()
	if shared == nil {
		t.Skip(without)
	}
	t.Parallel()
	atOnce <- struct{}{}
	t.Cleanup(func() { <-atOnce })
	return makeSpace(t)
}

var capital = regexp.MustCompile(`[A-Z]+`)

func makeSpace(t *testing.T) *space {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
	t.Cleanup(cancel)
	name := capital.ReplaceAllStringFunc(strings.TrimPrefix(t.Name(), "Test"), func(s string) string { return "-" + strings.ToLower(s) })
	name = strings.Trim(name, "-")
	s := &space{t: t, ctx: ctx, ns: strings.Trim(name[:min(len(name), 50)], "-")}
	if out, err := shared.Kubectl(ctx, "create", "namespace", s.ns); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Cleanup(func() {
		if t.Failed() {
			s.describe()
		}
		if err := shared.Client.CoreV1().Namespaces().Delete(context.Background(), s.ns, metav1.DeleteOptions{}); err != nil {
			t.Errorf("delete namespace %s: %v", s.ns, err)
		}
	})
	// Pods are refused until the controller has made their service account.
	s.kubectl("wait", "--for=create", "serviceaccount/default", wait)
	return s
}

// describe shows what there was when a test failed.
func (s *space) describe() {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for _, args := range [][]string{{"get", "all", "-o", "wide"}, {"describe", "pods"}} {
		out, err := shared.Kubectl(ctx, append([]string{"-n", s.ns}, args...)...)
		if err != nil {
			out += err.Error()
		}
		s.t.Logf("kubectl %s:\n%s", strings.Join(args, " "), out)
	}
}

// try runs kubectl in the namespace.
func (s *space) try(args ...string) (string, error) {
	out, err := shared.Kubectl(s.ctx, append([]string{"-n", s.ns}, args...)...)
	return strings.TrimSpace(out), err
}

// kubectl runs kubectl, which must succeed, and returns what it printed.
func (s *space) kubectl(args ...string) string {
	s.t.Helper()
	out, err := s.try(args...)
	if err != nil {
		s.t.Fatalf("%v\n%s", err, out)
	}
	return out
}

// refused runs kubectl, which must fail, and returns why it did.
func (s *space) refused(args ...string) string {
	s.t.Helper()
	out, err := s.try(args...)
	if err == nil {
		s.t.Fatalf("kubectl %s succeeds, but must not: %s", strings.Join(args, " "), out)
	}
	return err.Error()
}

// file keeps text in a file for kubectl to read.
func (s *space) file(name, text string) string {
	s.t.Helper()
	path := filepath.Join(s.t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		s.t.Fatal(err)
	}
	return path
}

// apply creates or changes what a manifest says; $BOX is the test image.
func (s *space) apply(yaml string) {
	s.t.Helper()
	s.kubectl("apply", "-f", s.file("manifest.yaml", strings.ReplaceAll(yaml, "$BOX", box)))
}

// get returns a field of an object, by a JSONPath without its braces.
func (s *space) get(object, path string) string {
	s.t.Helper()
	return s.kubectl("get", object, "-o", "jsonpath={"+path+"}")
}

// want waits until a field of an object has a value.
func (s *space) want(object, path, value string) {
	s.t.Helper()
	out, err := s.try("wait", object, "--for=jsonpath={"+path+"}="+value, wait)
	if err != nil {
		now, _ := s.try("get", object, "-o", "jsonpath={"+path+"}") // there may be none
		s.t.Fatalf("%s of %s is %q, want %q: %v\n%s", path, object, now, value, err, out)
	}
}

// ready waits for conditions of objects: pod/web, or -l app=web in two words.
func (s *space) ready(objects ...string) {
	s.t.Helper()
	s.kubectl(append([]string{"wait", "--for=condition=Ready", wait}, objects...)...)
}

// gone waits until an object is not there any more.
func (s *space) gone(object string) {
	s.t.Helper()
	s.kubectl("wait", "--for=delete", object, wait)
}

// pod makes a pod of one container, box, whose specification goes on with more
// lines of YAML, and waits until it is Ready.
func (s *space) pod(name string, spec ...string) {
	s.t.Helper()
	s.create(name, spec...)
	s.ready("pod/" + name)
}

// create is pod without the wait.
func (s *space) create(name string, spec ...string) {
	s.t.Helper()
	s.apply("{apiVersion: v1, kind: Pod, metadata: {name: " + name + "}, spec: {" + strings.Join(spec, ", ") +
		"}}")
}

// exec runs a command in a pod.
func (s *space) exec(pod string, command ...string) string {
	s.t.Helper()
	return s.kubectl(append([]string{"exec", pod, "--"}, command...)...)
}

// event waits for an event of an object that has a reason and says something.
// It returns what all events say that the object has for that reason by then:
// there may be others before.
func (s *space) event(object, reason, part string) string {
	s.t.Helper()
	kind, name, _ := strings.Cut(object, "/")
	var out string
	s.eventually(func() (err error) {
		out, err = s.try("get", "events", "-o", "jsonpath={range .items[*]}{.message}{\"\\n\"}{end}",
			"--field-selector=involvedObject.kind="+kind+",involvedObject.name="+name+",reason="+reason)
		if err == nil && !strings.Contains(out, part) {
			err = fmt.Errorf("the events %s of %s say %q, none says %q", reason, object, out, part)
		}
		return err
	})
	return out
}

// logs waits until kubectl logs prints text: a container has started before it
// has printed anything.
func (s *space) logs(text string, args ...string) {
	s.t.Helper()
	s.eventually(func() error {
		out, err := s.try(append([]string{"logs"}, args...)...)
		if err == nil && out != text {
			err = fmt.Errorf("kubectl logs %s prints %q, want %q", strings.Join(args, " "), out, text)
		}
		return err
	})
}

// eventually asks again and again, for what cannot be watched.
func (s *space) eventually(check func() error) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.ctx, waitTimeout)
	defer cancel()
	for {
		err := check()
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			s.t.Fatal(errors.Join(err, ctx.Err()))
		case <-time.After(200 * time.Millisecond):
		}
	}
}

func equal[T comparable](t *testing.T, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Errorf("%s: got %v, want %v", what, got, want)
	}
}

func contains(t *testing.T, what, text, part string) {
	t.Helper()
	if !strings.Contains(text, part) {
		t.Errorf("%s: got %q, want it to contain %q", what, text, part)
	}
}
