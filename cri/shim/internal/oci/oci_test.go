package oci

import "testing"

func TestTheRuntimesLastErrorIsItsReason(t *testing.T) {
	for _, c := range []struct{ name, text, want string }{
		{"nothing", "", ""},
		{"one error", `{"level":"error","msg":"no such file","time":"t"}` + "\n", "no such file"},
		{"the last of several", `{"level":"error","msg":"a"}` + "\n" + `{"level":"error","msg":"b"}` + "\n", "b"},
		{"a warning after it", `{"level":"error","msg":"a"}` + "\n" + `{"level":"warning","msg":"b"}` + "\n", "a"},
		{"space around it", `{"level":"fatal","msg":" a \n"}` + "\n", "a"},
		{"a torn line", `"msg":"x"}` + "\n" + `{"level":"error","msg":"a"}` + "\n" + `{"level":"er`, "a"},
		{"no JSON", "panic: out of luck\n", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := parseLog(c.text); got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

func FuzzParseLog(f *testing.F) {
	f.Add(`{"level":"error","msg":"a"}`)
	f.Fuzz(func(_ *testing.T, text string) { parseLog(text) })
}
