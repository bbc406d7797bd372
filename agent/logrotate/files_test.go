package logrotate

import (
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestWhatGoesAndWhatIsCompressed(t *testing.T) {
	const a, b, c, d = "20260101-000001", "20260101-000002", "20260101-000003", "20260101-000004"
	for name, test := range map[string]struct {
		files            []string
		most             int
		remove, compress []string
	}{
		"nothing":                      {nil, 5, nil, nil},
		"one":                          {[]string{a}, 5, nil, nil},
		"the newest stays as it is":    {[]string{a, b}, 5, nil, []string{a}},
		"archives stay":                {[]string{a + ".gz", b}, 5, nil, nil},
		"the oldest goes":              {[]string{c + ".gz", d, a + ".gz", b + ".gz"}, 4, []string{a + ".gz"}, nil},
		"what goes is not compressed":  {[]string{a, b, c}, 3, []string{a}, []string{b}},
		"the smallest number of files": {[]string{a, b}, 2, []string{a}, nil},
		"a lower number of files":      {[]string{a + ".gz", b + ".gz", c + ".gz", d}, 2, []string{a + ".gz", b + ".gz", c + ".gz"}, nil},
		"killed while compressing":     {[]string{a, a + ".tmp", b}, 5, []string{a + ".tmp"}, []string{a}},
		"killed before it was removed": {[]string{a, a + ".gz", b}, 5, []string{a}, nil},
		"killed, and both are too old": {[]string{a, a + ".gz", a + ".tmp", b}, 2, []string{a + ".tmp", a, a + ".gz"}, nil},
		"unfinished ones do not count": {[]string{a, b, c + ".tmp"}, 3, []string{c + ".tmp"}, []string{a}},
		"another's files":              {[]string{"pos", "1.tmp", a + ".bz2", a + "x", "20261301-000000", a + ".gz.tmp"}, 2, nil, nil},
	} {
		var names []string
		for _, f := range test.files {
			names = append(names, "0.log."+f)
		}
		names = append(names, "0.log", "0.logs."+a, "1.log."+a)
		remove, compress := tidy(files("0.log", names), test.most)
		if diff := cmp.Diff(test.remove, remove); diff != "" {
			t.Errorf("%s: removed (-want +got):\n%s", name, diff)
		}
		if diff := cmp.Diff(test.compress, compress); diff != "" {
			t.Errorf("%s: compressed (-want +got):\n%s", name, diff)
		}
	}
}

func TestNamesAscendWhateverTheClockDoes(t *testing.T) {
	now := time.Date(2026, 10, 25, 2, 30, 0, 0, time.Local)
	for _, test := range []struct{ before, want string }{
		{"", "20261025-023000"},
		{"20261025-022959", "20261025-023000"},
		{"20261025-023000.gz", "20261025-023001"},  // twice in a second
		{"20261025-025959", "20261025-030000"},     // the hour that comes twice
		{"20301231-235959.tmp", "20310101-000000"}, // a clock that was wrong
	} {
		if got := next(files("0.log", []string{"0.log." + test.before}), now); got != test.want {
			t.Errorf("after %q: %s, want %s", test.before, got, test.want)
		}
	}
}

func FuzzTidy(f *testing.F) {
	f.Add("0.log.20260101-000001 0.log.20260101-000001.gz 0.log.20260101-000002 0.log.x", 2)
	f.Add("0.log.20260101-000001.tmp 0.log 0.log.20260101-000003", 5)
	f.Fuzz(func(t *testing.T, text string, most int) {
		if most < 2 || most > 100 {
			t.Skip()
		}
		there := map[string]bool{}
		for _, name := range strings.Fields(text) {
			there[name] = true
		}
		before := files("0.log", slices.Collect(maps.Keys(there)))
		remove, compress := tidy(before, most)
		if !slices.IsSorted(compress) {
			t.Errorf("compressed in the order %v", compress)
		}
		for _, suffix := range remove {
			if name := "0.log." + suffix; there[name] {
				delete(there, name)
			} else {
				t.Errorf("%s is removed, and is not there", name)
			}
		}
		for _, suffix := range compress {
			name := "0.log." + suffix
			if !there[name] || there[name+".gz"] {
				t.Errorf("%s is compressed, among %v", name, there)
			}
			delete(there, name)
			there[name+".gz"] = true
		}
		after := files("0.log", slices.Collect(maps.Keys(there)))
		if again, more := tidy(after, most); again != nil || more != nil {
			t.Errorf("there is more to do: remove %v, compress %v", again, more)
		}
		want := logs(before)
		want = want[max(0, len(want)-(most-1)):]
		if len(after) != len(want) {
			t.Fatalf("left: %+v, want %+v", after, want)
		}
		for i, f := range after {
			newest := i == len(after)-1 && !want[i].archived
			if f != (file{stamp: want[i].stamp, plain: newest, archived: !newest}) {
				t.Errorf("left: %+v of %+v", after, want)
			}
		}
		if at := next(before, time.Unix(0, 0)); len(before) > 0 && at <= before[len(before)-1].stamp && before[len(before)-1].stamp < "99991231-235959" {
			t.Errorf("the next is %s after %+v", at, before)
		}
	})
}
