package plugin_test

import (
	"testing"

	"github.com/berth-io/berth/cni/internal/netnstest"
)

func BenchmarkAddDel(b *testing.B) {
	l := newLab(b, "10.88.0.0/16")
	for i := 0; b.Loop(); i++ {
		b.StopTimer()
		pod := netnstest.New(b)
		b.StartTimer()
		l.add(containerID(i), pod, l.conf)
		l.must("DEL", containerID(i), pod.Path, l.conf)
		b.StopTimer()
		pod.Close()
		b.StartTimer()
	}
}
