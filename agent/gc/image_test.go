package gc

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-io/berth/agent/usage"
)

var now = time.Date(2026, 1, 2, 0, 0, 0, 0, time.UTC)

func ids(images []Image) []string {
	var out []string
	for _, i := range images {
		out = append(out, i.ID)
	}
	return out
}

func TestTheLeastRecentlyUsedImageGoesFirst(t *testing.T) {
	images := inOrder([]Image{
		{ID: "used now", FirstSeen: now, LastUsed: now},
		{ID: "used before", FirstSeen: now, LastUsed: now.Add(-time.Hour)},
		{ID: "never used, newer", FirstSeen: now.Add(-time.Minute)},
		{ID: "never used, older", FirstSeen: now.Add(-time.Hour)},
	})
	want := []string{"never used, older", "never used, newer", "used before", "used now"}
	if diff := cmp.Diff(want, ids(images)); diff != "" {
		t.Errorf("order (-want +got):\n%s", diff)
	}
}

func TestImagesAreOldByTheirLastUse(t *testing.T) {
	p := ImagePolicy{MaxAge: time.Hour, MinAge: 2 * time.Minute}
	images := []Image{
		{ID: "used long ago", FirstSeen: now.Add(-3 * time.Hour), LastUsed: now.Add(-61 * time.Minute)},
		{ID: "used", FirstSeen: now.Add(-3 * time.Hour), LastUsed: now.Add(-time.Hour)},
		{ID: "pulled", FirstSeen: now.Add(-time.Minute)},
		{ID: "pulled long ago", FirstSeen: now.Add(-2 * time.Hour)},
	}
	if diff := cmp.Diff([]string{"used long ago", "pulled long ago"}, ids(p.old(images, now))); diff != "" {
		t.Errorf("old (-want +got):\n%s", diff)
	}
	if old := (ImagePolicy{}).old(images, now); old != nil {
		t.Errorf("without an age there are old ones: %v", ids(old))
	}
	if diff := cmp.Diff([]string{"used long ago", "used", "pulled long ago"}, ids(p.removable(images, now))); diff != "" {
		t.Errorf("removable (-want +got):\n%s", diff)
	}
}

func TestRoomIsMadeFromTheHighToTheLowThreshold(t *testing.T) {
	p := ImagePolicy{HighPercent: 85, LowPercent: 80}
	for _, test := range []struct {
		available uint64
		need      int64
		percent   int
	}{
		{500, 0, 50}, {160, 0, 84},
		{159, 41, 85}, // 84.1 % used: rounded up, as in the kubelet
		{150, 50, 85}, {0, 200, 100},
		{2000, 0, 0}, // more than there is
	} {
		need, percent := p.need(usage.FS{Capacity: 1000, Available: test.available})
		if need != test.need || percent != test.percent {
			t.Errorf("%d of 1000 available: need %d at %d %%, want %d at %d %%", test.available, need, percent, test.need, test.percent)
		}
	}
}

func TestWrongThresholdsAreNamed(t *testing.T) {
	for _, test := range []struct {
		p    ImagePolicy
		want string
	}{
		{ImagePolicy{HighPercent: 101}, "imageGCHighThresholdPercent: 101"},
		{ImagePolicy{HighPercent: 80, LowPercent: -1}, "imageGCLowThresholdPercent: -1"},
		{ImagePolicy{HighPercent: 80, LowPercent: 81}, "imageGCLowThresholdPercent: 81 is above"},
	} {
		if _, err := New(Config{Images: test.p}, nil, nil, nil, nil, nil); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%+v: error %v, want one with %q", test.p, err, test.want)
		}
	}
}

func TestSizesAreWrittenForPeople(t *testing.T) {
	for bytes, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 5 << 19: "2.5 MiB", 3 << 30: "3.0 GiB", 5 << 40: "5.0 TiB", 5 << 50: "5120.0 TiB"} {
		if got := size(bytes); got != want {
			t.Errorf("%d is %s, want %s", bytes, got, want)
		}
	}
}

func TestRecordsFollowWhatThereIs(t *testing.T) {
	r := records{"gone": {FirstSeen: now}, "idle": {FirstSeen: now.Add(-time.Hour), LastUsed: now.Add(-time.Minute)}, "future": {FirstSeen: now.Add(time.Hour), LastUsed: now.Add(time.Hour)}}
	r.see(map[string]bool{"idle": false, "new": false, "used": true, "future": false}, now)
	want := records{
		"idle": {FirstSeen: now.Add(-time.Hour), LastUsed: now.Add(-time.Minute)}, "new": {FirstSeen: now},
		"used": {FirstSeen: now, LastUsed: now}, "future": {FirstSeen: now, LastUsed: now},
	}
	if diff := cmp.Diff(want, r); diff != "" {
		t.Errorf("records (-want +got):\n%s", diff)
	}
}
