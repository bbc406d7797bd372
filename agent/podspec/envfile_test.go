package podspec

import "testing"

// The cases are those of the format's definition in the API (FileKeySelector)
// and of pkg/kubelet/util/env.
func TestEnvFileValue(t *testing.T) {
	for _, tt := range []struct{ name, content, want, err string }{
		{"plain", "K='v'", "v", ""},
		{"the first of two counts", "K='1'\nK='2'\n", "1", ""},
		{"not there", "A='1'\n", "", ""},
		{"an empty file", "", "", ""},
		{"comments and empty lines", "\n  # no\n\t\nK='v' # why\n", "v", ""},
		{"space before the name", " \tK='v'", "v", ""},
		{"nothing is expanded", `K='$A\n"'`, `$A\n"`, ""},
		{"over lines", "K='a\n\n# b\nc'\nX='1'", "a\n\n# b\nc", ""},
		{"over lines, of another variable", "X='a\nK=\nc'\nK='v'", "v", ""},
		{"lines that end as in DOS", "K='v'\r\n", "v", ""},
		{"space after the equals sign is an empty value", "K= 'v'", "", ""},
		{"space after another's equals sign", "X= v\nK='v'", "v", ""},
		{"no equals sign", "A='1'\nK", "", "invalid environment variable format at line 2: missing '='"},
		{"no name", "='v'", "", "invalid environment variable format at line 1: empty variable name"},
		{"space before the equals sign", "K ='v'", "", "invalid environment variable format at line 1: whitespace before '=' is not allowed"},
		{"no quotes", "K=v", "", "invalid environment variable format at line 1: value must be enclosed in single quotes"},
		{"double quotes", `K="v"`, "", "invalid environment variable format at line 1: value must be enclosed in single quotes"},
		{"more after the quote", "K='v'w", "", "invalid environment variable format at line 1: unexpected content after closing quote"},
		{"never closed", "X='1'\nK='v\nw", "", "invalid environment variable format starting at line 2: unclosed single quote"},
		{"a mistake after the key is not seen", "K='v'\nnonsense", "v", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := envFileValue([]byte(tt.content), "K")
			text := ""
			if err != nil {
				text = err.Error()
			}
			if got != tt.want || text != tt.err {
				t.Errorf("got %q, error %q; want %q, %q", got, text, tt.want, tt.err)
			}
		})
	}
}

func FuzzEnvFile(f *testing.F) {
	for _, seed := range []string{"K='v'\n", "K= 'v'", "K='a\nb' # c\r\n", "# x\n\nK='", "=''", "K"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, content []byte) {
		value, err := envFileValue(content, "K")
		if err != nil && value != "" {
			t.Errorf("value %q with error %v", value, err)
		}
		// What is put in front for another name changes neither.
		again, againErr := envFileValue(append([]byte("X='1\n2'\n"), content...), "K")
		if again != value || (againErr == nil) != (err == nil) {
			t.Errorf("%q, %v became %q, %v", value, err, again, againErr)
		}
	})
}
