package manifest

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sigs.k8s.io/yaml"
)

var update = flag.Bool("update", false, "rewrite the golden files")

var testOptions = Options{
	NodeName:  "node-a",
	Now:       time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
	ClaimsDir: "/var/lib/berth/claims",
}

func golden(t *testing.T, path, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v (run with -update to write it)", err)
	}
	if got != string(want) {
		t.Errorf("%s differs (run with -update when that is right)\ngot:\n%s\nwant:\n%s", path, got, want)
	}
}

func manifests(t *testing.T, dir string) []string {
	t.Helper()
	var files []string
	for _, pattern := range []string{"*.yaml", "*.json"} {
		found, err := filepath.Glob(filepath.Join("testdata", dir, pattern))
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, found...)
	}
	if len(files) == 0 {
		t.Fatalf("no manifests in testdata/%s", dir)
	}
	return files
}

func TestBadManifestsAreRejectedWithFileLineFieldAndReason(t *testing.T) {
	for _, file := range manifests(t, "bad") {
		t.Run(filepath.Base(file), func(t *testing.T) {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			set, rejections := Parse(filepath.Base(file), data, testOptions)
			if len(rejections) == 0 {
				t.Fatal("accepted")
			}
			if len(set.Objects()) != 0 {
				t.Errorf("a rejected file left %v", set.Objects())
			}
			var got strings.Builder
			for _, r := range rejections {
				got.WriteString(r.Error() + "\n")
			}
			golden(t, file+".golden", got.String())
		})
	}
}

func TestGoodManifestsAreDefaultedAndExpanded(t *testing.T) {
	for _, file := range manifests(t, "good") {
		t.Run(filepath.Base(file), func(t *testing.T) {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			set, rejections := Parse(filepath.Base(file), data, testOptions)
			if len(rejections) > 0 {
				t.Fatalf("rejected: %v", rejections)
			}
			golden(t, file+".golden", render(t, set))
		})
	}
}

// render prints a set as YAML.
func render(t *testing.T, set Set) string {
	t.Helper()
	byKey := func(kind string) map[string]any {
		m := map[string]any{}
		for k, v := range set.ConfigMaps {
			if kind == "configMaps" {
				m[k.String()] = v
			}
		}
		for k, v := range set.Secrets {
			if kind == "secrets" {
				m[k.String()] = v
			}
		}
		for k, v := range set.Claims {
			if kind == "claims" {
				m[k.String()] = v
			}
		}
		for k, v := range set.Services {
			if kind == "services" {
				m[k.String()] = v
			}
		}
		return m
	}
	out := map[string]any{"pods": set.Pods}
	for _, kind := range []string{"configMaps", "secrets", "claims", "services"} {
		if m := byKey(kind); len(m) > 0 {
			out[kind] = m
		}
	}
	b, err := yaml.Marshal(out)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
