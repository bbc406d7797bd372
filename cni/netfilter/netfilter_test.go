package netfilter

import (
	"os/exec"
	"strings"
	"testing"

	"github.com/berth-io/berth/cni/internal/netnstest"
)

func TestHasRulesSeesWhatNFTInstalls(t *testing.T) {
	if _, err := exec.LookPath("nft"); err != nil {
		t.Skip("nft is not installed")
	}
	host := netnstest.New(t)
	for _, step := range []struct {
		nft  string
		want bool
	}{
		{"", false},
		{"add table inet berth_cni", false},
		{"add chain inet berth_cni c", false},
		{"add rule inet berth_cni c counter", true},
		{"flush chain inet berth_cni c", false},
	} {
		host.Must(t, func() error {
			if step.nft != "" {
				if out, err := exec.Command("nft", strings.Fields(step.nft)...).CombinedOutput(); err != nil {
					t.Fatalf("nft %s: %v: %s", step.nft, err, out)
				}
			}
			got, err := HasRules("c")
			if got != step.want {
				t.Errorf("after %q: HasRules = %v, want %v", step.nft, got, step.want)
			}
			return err
		})
	}
}

func TestDetectPrefersNFTables(t *testing.T) {
	if _, err := exec.LookPath("nft"); err != nil || !kernelHasNFTables() {
		t.Skip("nft is not installed or the kernel has no nf_tables")
	}
	if got, err := Detect(); got != NFTables || err != nil {
		t.Errorf("Detect: %q, %v", got, err)
	}
	t.Setenv("PATH", t.TempDir())
	_, err := Detect()
	if want := "neither nft nor iptables is in PATH: install nftables or iptables"; err == nil || err.Error() != want {
		t.Errorf("Detect without programs: %v", err)
	}
}
