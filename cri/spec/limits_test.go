package spec

import (
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestTheTwoNamesOfACgroup(t *testing.T) {
	for _, c := range []struct {
		oci     string
		systemd bool
		want    string // empty: refused
	}{
		{"/kubepods/pod1/c1", false, "/kubepods/pod1/c1"},
		{"relative/c1", false, "/relative/c1"},
		{"kubepods-pod1.slice:berth:c1", true, "/kubepods.slice/kubepods-pod1.slice/berth-c1.scope"},
		{"/kubepods/pod1/c1", true, ""},
		{"kubepods:berth:c1", true, ""},
	} {
		got, err := CgroupOf(c.oci, Host{SystemdCgroup: c.systemd})
		if (err == nil) != (c.want != "") || got.Path != c.want {
			t.Errorf("%s: got %q, %v, want %q", c.oci, got.Path, err, c.want)
		}
	}
}

func TestACgroupHasOneNameWhicheverWayItWasMade(t *testing.T) {
	for _, systemd := range []bool{false, true} {
		parent, host := "/kubepods/pod1", Host{SystemdCgroup: systemd}
		if systemd {
			parent = "kubepods-pod1.slice"
		}
		made, err := ContainerCgroup(parent, "c1", host)
		if err != nil {
			t.Fatal(err)
		}
		if again, err := CgroupOf(made.OCI, host); err != nil || again != made {
			t.Errorf("systemd %v: %+v, and from its OCI name %+v, %v", systemd, made, again, err)
		}
	}
}

func TestNewLimitsLeaveTheRestOfASpecification(t *testing.T) {
	score, pids := 100, int64(7)
	s := &specs.Spec{
		Process: &specs.Process{OOMScoreAdj: &score},
		Linux: &specs.Linux{Resources: &specs.LinuxResources{
			Pids: &specs.LinuxPids{Limit: &pids}, Devices: []specs.LinuxDeviceCgroup{{Allow: true}},
		}},
	}
	r := &runtimeapi.LinuxContainerResources{CpuShares: 300, OomScoreAdj: -999}
	host := Host{MinOOMScoreAdj: -500}
	SetLimits(s, Resources(r, host), r, host)
	got := s.Linux.Resources
	if *got.CPU.Shares != 300 || *got.Pids.Limit != 7 || len(got.Devices) != 1 || *s.Process.OOMScoreAdj != -500 {
		t.Errorf("got %+v with score %d", got, *s.Process.OOMScoreAdj)
	}
}
