package images

import (
	"os"
	"testing"
)

func TestImagesOfCritestDifferUnlessASpecWantsThemTheSame(t *testing.T) {
	needs(t, "busybox", "ldd")
	b := &Builder{Debs: "../../out/debs/root", Bin: "../../bin/tests"}
	for _, path := range []string{b.Debs + "/usr/sbin/nginx", b.Bin + "/testbox"} {
		if _, err := os.Stat(path); err != nil {
			t.Skipf("%v (made by: make testbins, scripts/setup critest)", err)
		}
	}
	all, err := b.CRITest()
	if err != nil {
		t.Fatal(err)
	}
	same := map[string]string{
		"gcr.io/k8s-staging-cri-tools/test-image-tags:2": "gcr.io/k8s-staging-cri-tools/test-image-tags:1",
		"gcr.io/k8s-staging-cri-tools/test-image-tags:3": "gcr.io/k8s-staging-cri-tools/test-image-tags:1",
		"k8s.gcr.io/pause:3.9":                           "registry.k8s.io/pause:3.9",
	}
	digests := map[string]string{}
	for reference, img := range all {
		if other, ok := same[reference]; ok {
			if all[other] != img {
				t.Errorf("%s is not %s", reference, other)
			}
			continue
		}
		id, err := img.ConfigName()
		if err != nil {
			t.Fatal(err)
		}
		if other, ok := digests[id.String()]; ok {
			t.Errorf("%s and %s have the same ID", reference, other)
		}
		digests[id.String()] = reference
	}
}
