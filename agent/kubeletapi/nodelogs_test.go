package kubeletapi

import (
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestNodeLogsStayInTheLogDirectory(t *testing.T) {
	w := newWorld(t, func(w *world) {
		dir := w.config.LogDir
		write(t, filepath.Join(w.dir, "secret"), "secret")
		for _, d := range []string{"pods/p/c", "containers"} {
			if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		write(t, filepath.Join(dir, "pods/p/c/0.log"), "of a pod")
		for link, to := range map[string]string{
			"out": filepath.Join(w.dir, "secret"), "up": "../secret", "pods/p/c/1.log": "/etc/hostname",
			"containers/c.log": filepath.Join(dir, "pods/p/c/0.log"),
		} {
			if err := os.Symlink(to, filepath.Join(dir, link)); err != nil {
				t.Fatal(err)
			}
		}
	})
	for path, want := range map[string]int{
		"/logs/containers/c.log": 200, "/logs/pods/p/c/0.log": 200, "/logs/pods/p/c/": 200, "/logs/pods/p/c/1.log": 404,
		"/logs/out": 404, "/logs/up": 404, "/logs/..%2fsecret": 404, "/logs/%2e%2e/secret": 404, "/logs/none": 404,
	} {
		code, body := w.ask("GET", path)
		if want == 200 && code != 200 || want != 200 && code == 200 || strings.Contains(body, "secret\n") {
			t.Errorf("%s: %d %q, want %d", path, code, body, want)
		}
		if strings.HasSuffix(path, ".log") && want == 200 && body != "of a pod" {
			t.Errorf("%s: %q", path, body)
		}
	}
}

func TestNodeLogQueries(t *testing.T) {
	w := newWorld(t, func(w *world) {
		w.config.EnableSystemLogQuery = true
		t.Setenv("PATH", t.TempDir()) // no journal
		write(t, filepath.Join(w.config.LogDir, "foo.log"), "foo's\n")
		if err := os.Mkdir(filepath.Join(w.config.LogDir, "bar"), 0o755); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(w.config.LogDir, "bar/bar.log"), "bar's\n")
	})
	for query, want := range map[string]struct {
		code int
		body string
	}{
		"query=foo":                               {200, "foo's\n"},
		"query=foo&query=bar":                     {200, "foo's\nbar's\n"},
		"query=/foo.log":                          {200, "foo's\n"},
		"query=none":                              {200, "\nlog not found for none\n"},
		"query=foo&tailLines=3":                   {200, "\noptions present and query resolved to log files for [foo]\ntry without specifying options\n"},
		"query=":                                  {400, "may not be empty"},
		"query=foo&sinceTime=x":                   {400, "sinceTime: Invalid value"},
		"query=foo&tailLines=x":                   {400, "tailLines: Invalid value"},
		"query=foo;rm":                            {406, "input contains unsupported characters"},
		"query=--file&tailLines=1":                {200, "options present"},
		"tailLines=3":                             {406, "cannot be empty with options"},
		"query=foo&tailLines=100001":              {406, "tailLines: Invalid value"},
		"query=foo&boot=1":                        {406, "must be less than 1"},
		"query=/foo.log&query=foo":                {406, "cannot specify a file and service"},
		"query=/a&query=/b":                       {406, "cannot specify more than one file"},
		"query=/foo.log&boot=0":                   {406, "cannot specify file with options"},
		"query=../secret":                         {406, "path escapes"},
		"query=a&query=b&query=c&query=d&query=e": {406, "Too many"},
		"query=foo&pattern=(":                     {406, "pattern: Invalid value"},
		"query=foo&sinceTime=2026-01-02T00:00:00Z&untilTime=2026-01-01T00:00:00Z": {406, "must be after `sinceTime`"},
	} {
		code, body := w.ask("GET", "/logs/?"+strings.ReplaceAll(query, ";", "%3B"))
		if code != want.code || !strings.Contains(body, want.body) {
			t.Errorf("%s: %d %q, want %d %q", query, code, body, want.code, want.body)
		}
	}
	if code, _ := w.ask("GET", "/logs/foo.log?query=foo"); code != 406 {
		t.Errorf("a path with a query: %d", code)
	}
	if code, body := w.ask("GET", "/logs/foo.log"); code != 200 || body != "foo's\n" {
		t.Errorf("a path without: %d %q", code, body)
	}
}

func TestWhatTheJournalIsAsked(t *testing.T) {
	q, err := url.ParseQuery("query=kubelet&tailLines=5&boot=-1&pattern=err.*&sinceTime=2026-11-28T02:00:00%2B02:00")
	if err != nil {
		t.Fatal(err)
	}
	n, errs := readNodeQuery(q)
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	want := []string{"--utc", "--no-pager", "--output=short-precise", "--since=2026-11-28 00:00:00 UTC", "--pager-end", "--lines=5", "--unit=kubelet", "--grep=err.*", "--boot", "-1"}
	if got := n.arguments([]string{"kubelet"}); !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
}
