// Package deps asserts which package may import which. Each rule carries its
// reason, so that whoever breaks one can judge whether the rule or the import
// is wrong.
package deps

import (
	"bytes"
	"debug/elf"
	"debug/gosym"
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/berth-io/berth/tests/harness"
)

const module = "github.com/berth-io/berth"

// trees are the parts of the product, and the other trees each may import.
// cmd/ wires them and may import every one; they talk to each other through
// the public seams (CRI, CNI, CSI) instead.
var trees = map[string][]string{
	"agent":   {"csi", "systemd"},
	"cri":     {"systemd"},
	"cni":     nil,
	"csi":     nil,
	"systemd": nil,
}

// shared are packages that are no part of a tree.
var shared = []string{"internal/failpoint"}

type pkg struct {
	ImportPath   string
	Standard     bool
	Imports      []string
	TestImports  []string
	XTestImports []string
	Deps         []string
}

func TestTreesImportEachOtherOnlyWhereTheDesignSaysSo(t *testing.T) {
	for _, p := range list(t, "./...") {
		from := tree(p.ImportPath)
		allowed, isTree := trees[from]
		if !isTree {
			continue
		}
		for _, imp := range all(p) {
			to := tree(imp)
			if !strings.HasPrefix(imp, module+"/") || to == from || slices.Contains(allowed, to) || isShared(imp) {
				continue
			}
			t.Errorf("%s imports %s: %s/ may import %s and %s; wire the two together in cmd/",
				p.ImportPath, imp, from, orNothing(allowed), strings.Join(shared, ", "))
		}
	}
}

func TestTestsKnowTheProductOnlyFromOutside(t *testing.T) {
	for _, p := range list(t, "./tests/...") {
		for _, imp := range all(p) {
			if strings.HasPrefix(imp, module+"/") && tree(imp) != "tests" {
				t.Errorf("%s imports %s: black-box tests drive the built binaries and know their formats from the documentation",
					p.ImportPath, imp)
			}
		}
	}
}

// forbidden are modules that must not become part of a binary.
var forbidden = []struct {
	roots  string
	prefix string
	reason string
}{
	{"./...", "k8s.io/kubernetes", "not a library: it pulls in the whole of Kubernetes and pins every k8s.io module to a fork"},
	{"./cmd/berth-shim", "google.golang.org/grpc", "there is one shim per pod: gRPC costs each about 4 MB"},
	{"./cmd/berth-shim", "google.golang.org/protobuf", "there is one shim per pod: protobuf's registry costs each memory at start"},
	{"./cmd/berth-shim", "k8s.io/", "there is one shim per pod: the API types cost each several MB"},
	{"./cmd/berth-shim", "github.com/containerd/containerd", "there is one shim per pod: it must know nothing of images"},
	{"./cmd/berth-shim", "github.com/containerd/nri", "there is one shim per pod: plugins are the daemon's"},
	{"./cmd/berth-cni", "github.com/containerd/nri", "the plugin is started for every pod: start-up time is its cost"},
	{"./cmd/berth-shim", "net/http", "there is one shim per pod: net/http costs each about 1 MB"},
	{"./cmd/berth-shim", "github.com/spf13/cobra", "the shim has no command line for people"},
	{"./cmd/berth-cni", "google.golang.org/grpc", "the plugin is started for every pod: start-up time is its cost"},
	{"./cmd/berth-cni", "k8s.io/client-go", "the plugin is started for every pod: start-up time is its cost"},
}

func TestBinariesCarryNothingHeavyOrForbidden(t *testing.T) {
	for _, rule := range forbidden {
		for _, p := range list(t, rule.roots) {
			for _, dep := range p.Deps {
				if dep == rule.prefix || strings.HasPrefix(dep, strings.TrimSuffix(rule.prefix, "/")+"/") {
					t.Errorf("%s depends on %s: %s (go mod why -m, or go list -deps, shows the way)", p.ImportPath, dep, rule.reason)
				}
			}
		}
	}
}

// list asks the go command, which knows build tags and test files.
func list(t *testing.T, pattern string) []pkg {
	t.Helper()
	cmd := exec.Command("go", "list", "-e", "-json=ImportPath,Standard,Imports,TestImports,XTestImports,Deps", pattern)
	cmd.Dir = "../.."
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list %s: %v\n%s", pattern, err, stderr.String())
	}
	var pkgs []pkg
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatalf("go list %s: %v", pattern, err)
		}
		pkgs = append(pkgs, p)
	}
	if len(pkgs) == 0 {
		t.Fatalf("go list %s: no packages", pattern)
	}
	return pkgs
}

// all imports of a package, its tests' included: a wall that tests may climb
// is no wall.
func all(p pkg) []string {
	return slices.Concat(p.Imports, p.TestImports, p.XTestImports)
}

func tree(importPath string) string {
	rest, ok := strings.CutPrefix(importPath, module+"/")
	if !ok {
		return ""
	}
	first, _, _ := strings.Cut(rest, "/")
	return first
}

func isShared(importPath string) bool {
	return slices.Contains(shared, strings.TrimPrefix(importPath, module+"/"))
}

func orNothing(list []string) string {
	if len(list) == 0 {
		return "no other tree"
	}
	return strings.Join(list, "/, ") + "/"
}

// A method that nobody calls stays out of a binary, unless something in it
// looks methods up by a name that only running tells: then every exported
// method of every type stays, which made berth half as large again, all of it in
// memory. The wrapper below has no caller, and is there only then.
func TestNothingInTheDaemonLooksUpMethodsByName(t *testing.T) {
	const keptWithAll = "reflect.(*Value).MethodByName"
	file := filepath.Join(harness.Bin(t), "berth")
	names := functions(t, file)
	if !slices.Contains(names, "main.main") {
		t.Fatalf("%s: no main.main among its %d functions", file, len(names))
	}
	if slices.Contains(names, keptWithAll) {
		t.Errorf("%s has all methods of its types, %d functions: something in it looks up methods by name, as text/template does "+
			"(go build -ldflags=-dumpdep prints the way to it: look for <ReflectMethod>)", file, len(names))
	}
}

// functions of a Go binary, by the table that also stripped ones have.
func functions(t *testing.T, file string) (names []string) {
	t.Helper()
	f, err := elf.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	table, text := f.Section(".gopclntab"), f.Section(".text")
	if table == nil || text == nil {
		t.Fatalf("%s: no Go binary", file)
	}
	data, err := table.Data()
	if err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	symbols, err := gosym.NewTable(nil, gosym.NewLineTable(data, text.Addr))
	if err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	for _, f := range symbols.Funcs {
		names = append(names, f.Name)
	}
	return names
}
