package rootfs

import "testing"

func TestAnSELinuxContextIsQuotedForItsCommas(t *testing.T) {
	for want, o := range map[string]option{
		"volatile":    {"volatile", ""},
		"upperdir=/u": {"upperdir", "/u"},
		`context="system_u:object_r:container_file_t:s0:c1,c2"`: {contextOption, "system_u:object_r:container_file_t:s0:c1,c2"},
	} {
		if got := o.String(); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
	if got := Context(""); got != "" {
		t.Errorf("no context: %q", got)
	}
	if got, want := Context("a:b:c"), `,context="a:b:c"`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}
