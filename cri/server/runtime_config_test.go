package server

import (
	"fmt"
	"strings"
	"testing"
)

func TestPodSubnetsAreChecked(t *testing.T) {
	for text, want := range map[string]string{
		"10.1.2.0/24":                       "[10.1.2.0/24]",
		"10.1.2.0/24,fd00::/64":             "[10.1.2.0/24 fd00::/64]",
		"fd00::/64, 10.1.2.0/24":            "[fd00::/64 10.1.2.0/24]",
		"10.1.2.0":                          `"10.1.2.0" is not a subnet such as 10.85.0.0/16`,
		"10.1.2.0/24,":                      `"" is not a subnet such as 10.85.0.0/16`,
		"10.1.2.3/24":                       "10.1.2.3/24 has host bits set: the subnet is 10.1.2.0/24",
		"10.1.2.0/31":                       "10.1.2.0/31 has no room for pods",
		"::ffff:10.1.2.0/120":               "::ffff:10.1.2.0/120 is IPv4 written as IPv6",
		"10.1.2.0/24,10.1.3.0/24":           "10.1.3.0/24 is one too many: one subnet of each family is allowed",
		"10.1.2.0/24,fd00::/64,10.1.3.0/24": "10.1.3.0/24 is one too many: one subnet of each family is allowed",
	} {
		cidrs, err := parsePodCIDRs(text)
		got := fmt.Sprint(cidrs)
		if err != nil {
			got = err.Error()
		}
		if got != want {
			t.Errorf("%q: got %s, want %s", text, got, want)
		}
	}
}

// FuzzPodSubnets shows that whatever is accepted can be used.
func FuzzPodSubnets(f *testing.F) {
	for _, seed := range []string{"10.1.2.0/24", "10.1.2.0/24,fd00::/64", "::ffff:10.0.0.0/104", ",", "fe80::%eth0/64"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		cidrs, err := parsePodCIDRs(text)
		if err != nil {
			return
		}
		if len(cidrs) == 0 || len(cidrs) > 2 || len(cidrs) == 2 && cidrs[0].Addr().Is4() == cidrs[1].Addr().Is4() {
			t.Errorf("%q is %v", text, cidrs)
		}
		for _, c := range cidrs {
			if !c.IsValid() || c.Masked() != c || c.Addr().Zone() != "" || strings.Contains(c.String(), "%") {
				t.Errorf("%q is %v", text, cidrs)
			}
		}
	})
}
