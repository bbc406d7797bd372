package node

import (
	"testing"
	"time"

	"github.com/berth-io/berth/agent/kubeletconfig"
	"github.com/berth-io/berth/agent/logrotate"
)

func TestLogsAreRotatedByTheKubeletsDefaultsOrByWhatItIsTold(t *testing.T) {
	told := kubeletconfig.Default()
	told.ContainerLogMaxSize = "-1"
	*told.ContainerLogMaxFiles, *told.ContainerLogMaxWorkers = 9, 3
	told.ContainerLogMonitorInterval.Duration = time.Minute
	for _, test := range []struct {
		kubelet *kubeletconfig.Config
		want    logrotate.Config
	}{
		{nil, logrotate.Config{MaxBytes: 10 << 20, MaxFiles: 5, Workers: 1, Every: 10 * time.Second}},
		{told, logrotate.Config{MaxBytes: -1, MaxFiles: 9, Workers: 3, Every: time.Minute}},
	} {
		if got, err := logRotation(test.kubelet); err != nil || got != test.want {
			t.Errorf("%+v, %v, want %+v", got, err, test.want)
		}
	}
}
