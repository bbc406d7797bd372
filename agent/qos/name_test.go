package qos

import (
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
)

func TestCgroupNamesAreTheKubelets(t *testing.T) {
	const uid = "0e5c1f5a-2b9a-4d8e-9f8f-0123456789ab"
	for _, test := range []struct {
		root   string
		driver Driver
		class  v1.PodQOSClass
		want   string
	}{
		{"/", Cgroupfs, v1.PodQOSGuaranteed, "/kubepods/pod" + uid},
		{"", Cgroupfs, v1.PodQOSBurstable, "/kubepods/burstable/pod" + uid},
		{"/node-a/x/", Cgroupfs, v1.PodQOSBestEffort, "/node-a/x/kubepods/besteffort/pod" + uid},
		{"/", Systemd, v1.PodQOSGuaranteed, "/kubepods.slice/kubepods-pod0e5c1f5a_2b9a_4d8e_9f8f_0123456789ab.slice"},
		{"/", Systemd, v1.PodQOSBurstable, "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod0e5c1f5a_2b9a_4d8e_9f8f_0123456789ab.slice"},
		{"/node-a", Systemd, v1.PodQOSBestEffort, "/node_a.slice/node_a-kubepods.slice/node_a-kubepods-besteffort.slice/node_a-kubepods-besteffort-pod0e5c1f5a_2b9a_4d8e_9f8f_0123456789ab.slice"},
	} {
		root, err := parseRoot(test.root)
		if err != nil {
			t.Fatal(err)
		}
		parent := classNode(root.child(podsLevel), test.class)
		got := parent.child(podPrefix + uid).path(test.driver)
		if got != test.want {
			t.Errorf("%s %s %s:\n got %s\nwant %s", test.root, test.driver, test.class, got, test.want)
		}
		back, isPod := podUID(test.driver, parent, got[strings.LastIndex(got, "/")+1:])
		if !isPod || back != uid {
			t.Errorf("%s reads back as %q, %v", got, back, isPod)
		}
	}
}

func TestNamesThatAreNoPods(t *testing.T) {
	pods := node{podsLevel}
	for _, test := range []struct {
		driver Driver
		name   string
	}{
		{Cgroupfs, "burstable"}, {Cgroupfs, "pod"}, {Cgroupfs, "xpod1"},
		{Systemd, "kubepods-burstable.slice"}, {Systemd, "kubepods-pod.slice"}, {Systemd, "other-pod1.slice"},
		{Systemd, "kubepods-pod1.scope"}, {Systemd, "kubepods-burstable-pod1.slice"},
	} {
		if uid, isPod := podUID(test.driver, pods, test.name); isPod {
			t.Errorf("%s %s was taken for pod %q", test.driver, test.name, uid)
		}
	}
}

func FuzzPodUIDReadsBack(f *testing.F) {
	f.Add("0e5c1f5a-2b9a-4d8e-9f8f-0123456789ab")
	f.Add("pod")
	f.Add("-.slice")
	f.Fuzz(func(t *testing.T, uid string) {
		if checkLevel(uid) != nil {
			return
		}
		parent := node{"r-x", podsLevel, "burstable"}
		for _, driver := range []Driver{Cgroupfs, Systemd} {
			full := parent.child(podPrefix + uid).path(driver)
			back, isPod := podUID(driver, parent, full[strings.LastIndex(full, "/")+1:])
			if !isPod || back != uid {
				t.Errorf("%s: %q reads back as %q, %v", driver, full, back, isPod)
			}
		}
	})
}

func TestBadConfigurationIsRefused(t *testing.T) {
	for _, config := range []Config{
		{Root: "/", Driver: "cgroup"},
		{Root: "/a/../b", Driver: Cgroupfs},
		{Root: "/a_b", Driver: Cgroupfs},
	} {
		if _, err := NewTree(config); err == nil {
			t.Errorf("%+v was accepted", config)
		} else {
			t.Log(err)
		}
	}
}

func TestNamesOfReservedCgroups(t *testing.T) {
	for _, test := range []struct {
		driver Driver
		name   string
		want   string
	}{
		{Cgroupfs, "/system.slice", "/system.slice"},
		{Cgroupfs, "kube/node_a", "/kube/node_a"},
		{Systemd, "/system.slice", "/system.slice"},
		{Systemd, "kube-node.slice", "/kube.slice/kube-node.slice"},
		{Systemd, "/kube.slice/kube-node.slice", "/kube.slice/kube-node.slice"},
	} {
		n, err := parseExisting(test.driver, test.name)
		if err != nil || n.path(test.driver) != test.want {
			t.Errorf("%s %s: got %s, %v, want %s", test.driver, test.name, n.path(test.driver), err, test.want)
		}
	}
	for _, name := range []string{"", "/", "a/../b", "a//b"} {
		if n, err := parseExisting(Cgroupfs, name); err == nil {
			t.Errorf("%q was taken for %v", name, n)
		}
	}
}
