package objects

import (
	"errors"
	"testing"

	v1 "k8s.io/api/core/v1"

	"github.com/berth-io/berth/csi/volume"
)

// manifests has the objects named cm, s and c.
type manifests struct{ err error }

func (m manifests) ConfigMap(namespace, name string) (*v1.ConfigMap, error) {
	if namespace == "ns" && name == "cm" {
		return &v1.ConfigMap{Data: map[string]string{"from": "file"}}, m.err
	}
	return nil, m.err
}

func (m manifests) Secret(namespace, name string) (*v1.Secret, error) {
	if namespace == "ns" && name == "s" {
		return &v1.Secret{}, m.err
	}
	return nil, m.err
}

func (m manifests) Claim(namespace, name string) (string, bool, error) {
	if namespace == "ns" && name == "c" {
		return "/claims/c", true, m.err
	}
	return "", false, m.err
}

func TestPodsFromManifestsHaveTheObjectsOfManifestsAndNoOthers(t *testing.T) {
	s, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	both := BySource{File: Local{manifests{}}, API: s}
	file, api := podWith("f"), podWith("a")
	file.Annotations = map[string]string{"kubernetes.io/config.source": "file"}
	if got, err := both.ConfigMap(t.Context(), file, "cm"); err != nil || got.Data["from"] != "file" {
		t.Errorf("config map %v, %v", got, err)
	}
	if _, err := both.ConfigMap(t.Context(), file, "gone"); !errors.Is(err, volume.ErrNotFound) || err.Error() != `configmap "gone" not found` {
		t.Errorf("error %v", err)
	}
	if _, err := both.Secret(t.Context(), file, "s"); err != nil {
		t.Error(err)
	}
	if _, err := both.Secret(t.Context(), file, "gone"); !errors.Is(err, volume.ErrNotFound) || err.Error() != `secret "gone" not found` {
		t.Errorf("error %v", err)
	}
	if path, readOnly, err := both.Claim(t.Context(), file, "c"); path != "/claims/c" || !readOnly || err != nil {
		t.Errorf("claim %s, %v, %v", path, readOnly, err)
	}
	if _, _, err := both.Claim(t.Context(), file, "gone"); !errors.Is(err, volume.ErrNotFound) {
		t.Errorf("error %v", err)
	}
	const noServer = " needs an API server, which a pod from a manifest has not: leave it out"
	if _, err := both.Token(t.Context(), file, nil); err == nil || err.Error() != "projected serviceAccountToken"+noServer {
		t.Errorf("error %v", err)
	}
	if _, err := both.TrustBundle(t.Context(), file, nil); err == nil || err.Error() != "projected clusterTrustBundle"+noServer {
		t.Errorf("error %v", err)
	}
	if _, err := both.ConfigMap(t.Context(), api, "cm"); !errors.Is(err, volume.ErrNotRegistered) {
		t.Errorf("a pod of the API server: %v", err)
	}
	s.Register(file)
	if _, err := s.ConfigMap(t.Context(), file, "cm"); !errors.Is(err, volume.ErrNotRegistered) {
		t.Errorf("a pod from a manifest has its objects watched: %v", err)
	}
}

func TestAnErrorOfTheManifestsIsPassedOn(t *testing.T) {
	l, pod, broken := Local{manifests{errors.New("broken")}}, podWith("f"), "broken"
	if _, err := l.ConfigMap(t.Context(), pod, "x"); err == nil || err.Error() != broken {
		t.Error(err)
	}
	if _, err := l.Secret(t.Context(), pod, "x"); err == nil || err.Error() != broken {
		t.Error(err)
	}
	if _, _, err := l.Claim(t.Context(), pod, "x"); err == nil || err.Error() != broken {
		t.Error(err)
	}
}
