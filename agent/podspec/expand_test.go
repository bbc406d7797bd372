package podspec

import (
	"strings"
	"testing"
)

func TestExpand(t *testing.T) {
	known := map[string]string{"A": "a", "B": "$(A)", "EMPTY": "", "": "nameless"}
	lookup := func(name string) (string, bool) { v, ok := known[name]; return v, ok }
	for _, tt := range []struct{ name, in, want string }{
		{"a string without references is kept", "plain", "plain"},
		{"a reference is replaced", "x$(A)y", "xay"},
		{"references side by side are replaced", "$(A)$(A)", "aa"},
		{"a value is not expanded again", "$(B)", "$(A)"},
		{"an empty value is a value", "[$(EMPTY)]", "[]"},
		{"an unknown reference is kept", "$(NOPE)", "$(NOPE)"},
		{"a doubled dollar is one dollar", "$$", "$"},
		{"an escaped reference is kept without its escape", "$$(A)", "$(A)"},
		{"three dollars are an escape and a reference", "$$$(A)", "$a"},
		{"four dollars are two escapes", "$$$$(A)", "$$(A)"},
		{"an unclosed reference is kept", "$(A", "$(A"},
		{"a trailing dollar is kept", "cost: 5$", "cost: 5$"},
		{"a shell variable is left to the shell", "$A ${A}", "$A ${A}"},
		{"a reference ends at the first bracket", "$(A))", "a)"},
		{"a nested reference is one unknown name", "$($(A))", "$($(A))"},
		{"an empty name can be known", "$()", "nameless"},
		{"bytes that are not text are kept", "\xff$\xfe", "\xff$\xfe"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := expand(tt.in, lookup); got != tt.want {
				t.Errorf("expand(%q) = %q, want %q", tt.in, got, tt.want)
			}
		})
	}
}

func FuzzExpand(f *testing.F) {
	for _, seed := range []string{"", "$", "$$", "$(A)", "$$(A)", "$(", "$()", "a$(B)c$$d$(", "\xff$("} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, s string) {
		unknown := func(string) (string, bool) { return "", false }
		got := expand(s, unknown)
		if len(got) > len(s) {
			t.Errorf("expand(%q) = %q grew with nothing to insert", s, got)
		}
		if !strings.Contains(s, "$$") && got != s {
			t.Errorf("expand(%q) = %q changed a string without escapes or known names", s, got)
		}
		escaped := strings.ReplaceAll(s, "$", "$$")
		if got := expand(escaped, func(string) (string, bool) { return "no", true }); got != s {
			t.Errorf("expand(%q) = %q, want %q: escaping must undo expansion", escaped, got, s)
		}
		if got := expand("$(X)", func(string) (string, bool) { return s, true }); got != s {
			t.Errorf("the value %q became %q", s, got)
		}
	})
}
