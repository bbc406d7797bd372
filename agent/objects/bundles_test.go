package objects

import (
	"encoding/pem"
	"errors"
	"strings"
	"testing"
	"testing/synctest"

	certificatesv1beta1 "k8s.io/api/certificates/v1beta1"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-io/berth/csi/volume"
)

func certificate(content string) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte(content)}))
}

func bundle(name, signer, label string, certificates ...string) *certificatesv1beta1.ClusterTrustBundle {
	b := &certificatesv1beta1.ClusterTrustBundle{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"l": label}}}
	b.Spec.SignerName = signer
	for _, c := range certificates {
		b.Spec.TrustBundle += "# a comment\n" + certificate(c)
	}
	return b
}

func TestTrustBundlesByNameAndBySigner(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, Watch, bundle("one", "", "", "a", "b", "a"), bundle("s:1", "s", "x", "a"), bundle("s:2", "s", "y", "a", "c"), bundle("o:1", "o", "x", "d"))
		if n := w.asked("list", "clustertrustbundles"); n != 0 {
			t.Errorf("asked %d times before a pod had one", n)
		}
		name, missing, signer, yes := "one", "gone", "s", true
		labels := func(value string) *metav1.LabelSelector {
			return &metav1.LabelSelector{MatchLabels: map[string]string{"l": value}}
		}
		for _, test := range []struct {
			what string
			want v1.ClusterTrustBundleProjection
			has  string // of certificates
			err  string
		}{
			{"by name", v1.ClusterTrustBundleProjection{Name: &name}, "ab", ""},
			{"by a name that is not there", v1.ClusterTrustBundleProjection{Name: &missing}, "", `clustertrustbundle "gone" not found`},
			{"optional, by a name that is not there", v1.ClusterTrustBundleProjection{Name: &missing, Optional: &yes}, "", ""},
			{"all of a signer", v1.ClusterTrustBundleProjection{SignerName: &signer, LabelSelector: &metav1.LabelSelector{}}, "ac", ""},
			{"some of a signer", v1.ClusterTrustBundleProjection{SignerName: &signer, LabelSelector: labels("x")}, "a", ""},
			{"of a signer without a selector", v1.ClusterTrustBundleProjection{SignerName: &signer}, "", "combination of signerName and labelSelector matched zero ClusterTrustBundles: not found"},
			{"none of a signer", v1.ClusterTrustBundleProjection{SignerName: &signer, LabelSelector: labels("z")}, "", "combination of signerName and labelSelector matched zero ClusterTrustBundles: not found"},
			{"optional, none of a signer", v1.ClusterTrustBundleProjection{SignerName: &signer, LabelSelector: labels("z"), Optional: &yes}, "", ""},
		} {
			got, err := w.TrustBundle(t.Context(), podWith("a"), &test.want)
			if test.err != "" {
				if !errors.Is(err, volume.ErrNotFound) || err.Error() != test.err {
					t.Errorf("%s: error %v, want %s", test.what, err, test.err)
				}
				continue
			}
			if err != nil {
				t.Errorf("%s: %v", test.what, err)
			}
			length := 0
			for _, c := range test.has {
				length += len(certificate(string(c)))
				if !strings.Contains(string(got), certificate(string(c))) {
					t.Errorf("%s: no %c in %s", test.what, c, got)
				}
			}
			if len(got) != length {
				t.Errorf("%s: %d bytes, want %d: %s", test.what, len(got), length, got)
			}
			if again, _ := w.TrustBundle(t.Context(), podWith("a"), &test.want); string(again) != string(got) {
				t.Errorf("%s: another order the second time", test.what)
			}
		}
	})
}

func TestPodsWithTrustBundlesAreToldOfChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, Watch, bundle("one", "", "", "a"))
		name := "one"
		want := &v1.ClusterTrustBundleProjection{Name: &name, Path: "p"}
		pod := podWith("a")
		pod.Spec.Volumes[0].VolumeSource = v1.VolumeSource{Projected: &v1.ProjectedVolumeSource{Sources: []v1.VolumeProjection{{ClusterTrustBundle: want}}}}
		w.Register(pod)
		w.Register(podWith("b"))
		if _, err := w.TrustBundle(t.Context(), pod, want); err != nil {
			t.Fatal(err)
		}
		w.told()
		if _, err := w.client.CertificatesV1beta1().ClusterTrustBundles().Update(t.Context(), bundle("one", "", "", "b"), metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		if n := w.told(); n != 1 {
			t.Errorf("%d pods were told, want one", n)
		}
		if got, err := w.TrustBundle(t.Context(), pod, want); err != nil || string(got) != certificate("b") {
			t.Errorf("bundle %s, %v", got, err)
		}
		w.setAway(true)
		if got, err := w.TrustBundle(t.Context(), pod, want); err != nil || string(got) != certificate("b") {
			t.Errorf("while the API server is away: bundle %s, %v", got, err)
		}
	})
}

func TestTrustBundlesOfAnAPIServerThatIsAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, Watch)
		w.setAway(true)
		name := "one"
		_, err := w.TrustBundle(t.Context(), podWith("a"), &v1.ClusterTrustBundleProjection{Name: &name})
		if !errors.Is(err, volume.ErrUnavailable) || err.Error() != "failed to sync clustertrustbundle cache: connection refused" {
			t.Errorf("error %v", err)
		}
	})
}
