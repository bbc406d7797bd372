package podspec

import (
	"testing"

	v1 "k8s.io/api/core/v1"
)

func TestHashIsTheKubeletsSoThatEitherCanTakeOver(t *testing.T) {
	// The value is pinned by kubernetes' own tests.
	c := &v1.Container{Name: "test_container", Image: "foo/image:v1", Command: []string{"/bin/testcmd"}}
	if got := Hash(c); got != 0x8e45cbd0 {
		t.Errorf("Hash = %#x, want 0x8e45cbd0", got)
	}
}

func TestLogPathsAreTheKubelets(t *testing.T) {
	pod := &v1.Pod{}
	pod.Namespace, pod.Name, pod.UID = "ns", "web", "1234"
	if got, want := LogDir("/var/log/pods", pod), "/var/log/pods/ns_web_1234"; got != want {
		t.Errorf("LogDir = %s, want %s", got, want)
	}
	if got, want := LogPath("app", 3), "app/3.log"; got != want {
		t.Errorf("LogPath = %s, want %s", got, want)
	}
}
