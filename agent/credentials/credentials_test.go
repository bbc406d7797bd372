package credentials

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

var quiet = slog.New(slog.DiscardHandler)

// secrets are pull secrets by name.
type secrets map[string]*v1.Secret

func (s secrets) Secret(_ context.Context, _ *v1.Pod, name string) (*v1.Secret, error) {
	if found := s[name]; found != nil {
		return found, nil
	}
	return nil, errors.New("not there")
}

func dockerSecret(name, json string) *v1.Secret {
	return &v1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: "uid"},
		Type:       v1.SecretTypeDockerConfigJson, Data: map[string][]byte{v1.DockerConfigJsonKey: []byte(json)},
	}
}

func podOf(pullSecrets ...string) *v1.Pod {
	pod := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "p", UID: "pod-uid"}, Spec: v1.PodSpec{ServiceAccountName: "robot"}}
	for _, name := range pullSecrets {
		pod.Spec.ImagePullSecrets = append(pod.Spec.ImagePullSecrets, v1.LocalObjectReference{Name: name})
	}
	return pod
}

func write(t *testing.T, path, content string, mode os.FileMode) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), mode); err != nil {
		t.Fatal(err)
	}
}

// users lists the user names that were found.
func users(t *testing.T, k *Keyring, pod *v1.Pod, image string) string {
	t.Helper()
	found, err := k.Lookup(t.Context(), pod, image)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, c := range found {
		names = append(names, c.Username)
	}
	return strings.Join(names, " ")
}

// The cases are those of pkg/credentialprovider/keyring_test.go in kind.
func TestWhichEntriesAreForAnImage(t *testing.T) {
	for _, test := range []struct {
		pattern, image string
		want           bool
	}{
		{"registry.io", "registry.io/a", true},
		{"registry.io", "other.io/a", false},
		{"registry.io", "registry.io:5000/a", false},
		{"registry.io:5000", "registry.io:5000/a", true},
		{"registry.io:5000", "registry.io/a", false},
		{"registry.io/team", "registry.io/team/a", true},
		{"registry.io/team", "registry.io/teamwork/a", true}, // the kubelet's: a plain prefix
		{"registry.io/team", "registry.io/a", false},
		{"*.registry.io", "eu.registry.io/a", true},
		{"*.registry.io", "registry.io/a", false},
		{"*.registry.io", "a.eu.registry.io/a", false},
		{"e*.registry.*", "eu.registry.io/a", true},
		{"*.registry.io/team", "eu.registry.io/team/a", true},
		{"[", "eu.registry.io/a", false},
	} {
		if got := matches(test.pattern, test.image); got != test.want {
			t.Errorf("%s for %s: %v, want %v", test.pattern, test.image, got, test.want)
		}
	}
}

func TestCredentialsAreFoundInOrder(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/config.json", `{"auths": {"registry.io": {"username": "node"}, "https://index.docker.io/v1/": {"auth": "aHViOnB3"}}}`, 0o600)
	var told []string
	k, err := New(Config{
		Secrets: secrets{
			"a": dockerSecret("a", `{"auths": {"registry.io": {"username": "a"}, "registry.io/team": {"username": "a-team"}}}`),
			"b": dockerSecret("b", `{"auths": {"http://registry.io/v2/": {"auth": "YjpwOnc"}}}`),
			"old": {Type: v1.SecretTypeDockercfg, Data: map[string][]byte{v1.DockerConfigKey: []byte(
				`{"registry.io": {"username": "old", "password": "x"}}`)}},
			"opaque": {Type: v1.SecretTypeOpaque, Data: map[string][]byte{v1.DockerConfigJsonKey: []byte(`{"auths": {"registry.io": {"username": "no"}}}`)}},
			"broken": dockerSecret("broken", `{"auths": 1}`),
		},
		Docker: DockerConfigDirs{JSON: []string{dir + "/none", dir}, Legacy: []string{dir}},
		Event: func(_ *v1.Pod, eventType, reason, message string) {
			told = append(told, eventType+" "+reason+" "+message)
		},
		Log: quiet,
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		secrets []string
		image   string
		want    string
	}{
		{nil, "registry.io/x:1", "node"},
		{nil, "elsewhere.io/x", ""},
		{nil, "busybox", "hub"},
		{nil, "library/busybox@sha256:" + strings.Repeat("0", 64), "hub"},
		{nil, "docker.io/library/busybox", "hub"},
		{[]string{"a"}, "registry.io/x", "a node"},
		{[]string{"a"}, "registry.io/team/x", "a-team a node"},
		{[]string{"a", "b"}, "registry.io/x", "a b node"},
		{[]string{"b", "a"}, "registry.io/x", "b a node"},
		{[]string{"old", "", "opaque"}, "registry.io/x", "old node"},
	} {
		if got := users(t, k, podOf(test.secrets...), test.image); got != test.want {
			t.Errorf("%v for %s: %q, want %q", test.secrets, test.image, got, test.want)
		}
	}
	found, err := k.Lookup(t.Context(), podOf("b"), "registry.io/x")
	if err != nil || found[0].Password != "p:w" || found[0].Secret == nil || found[1].Secret != nil {
		t.Errorf("credentials %+v, %v", found, err)
	}
	if len(told) > 0 {
		t.Errorf("told %q", told)
	}
	if got := users(t, k, podOf("gone", "a", "lost"), "registry.io/x"); got != "a node" {
		t.Errorf("with secrets that are missing: %q", got)
	}
	if want := "Warning FailedToRetrieveImagePullSecret Unable to retrieve some image pull secrets (gone, lost); attempting to pull the image may not succeed."; len(told) != 1 || told[0] != want {
		t.Errorf("told %q, want %q", told, want)
	}
	if _, err := k.Lookup(t.Context(), podOf("broken"), "registry.io/x"); err == nil || !strings.HasPrefix(err.Error(), "pull secret ns/broken: .dockerconfigjson: ") {
		t.Errorf("error %v", err)
	}
	if _, err := k.Lookup(t.Context(), podOf(), "Bad Name"); err == nil {
		t.Error("an image of no name has credentials")
	}
}

// The sum is that of {"username":"u","password":"p","email":"e"}, as a kubelet
// writes it into its records.
func TestTheHashOfASecretIsTheKubelets(t *testing.T) {
	const want = "2f4f03e762821dfdb66ecda497a8f7c477946b7cdc3e28bf1da2e9da1054c40d"
	if got := (dockerEntry{"u", "p", "e"}).hash(); got != want {
		t.Errorf("hash %s, want %s", got, want)
	}
}

func TestABadAuthFieldIsRefusedWithoutItsContent(t *testing.T) {
	for _, auth := range []string{"c2VjcmV0", "%%%secret"} { // the first is "secret", without a colon
		_, err := secretEntries(dockerSecret("s", `{"auths": {"r.io": {"auth": "`+auth+`"}}}`))
		if err == nil || strings.Contains(err.Error(), ": secret") || strings.Contains(err.Error(), auth) {
			t.Errorf("%s: error %v", auth, err)
		}
	}
}

func TestTheLegacyConfigOfTheNodeIsTheLastChoice(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/.dockercfg", `{"registry.io": {"username": "legacy"}}`, 0o600)
	docker := DockerConfigDirs{JSON: []string{dir}, Legacy: []string{dir}}
	k, err := New(Config{Docker: docker, Log: quiet})
	if err != nil {
		t.Fatal(err)
	}
	if got := users(t, k, podOf(), "registry.io/x"); got != "legacy" {
		t.Errorf("found %q", got)
	}
	write(t, dir+"/config.json", `not json`, 0o600)
	if k, err = New(Config{Docker: docker, Log: quiet}); err != nil {
		t.Fatal(err)
	}
	if got := users(t, k, podOf(), "registry.io/x"); got != "legacy" {
		t.Errorf("beside a config that is none: found %q", got)
	}
}

func FuzzMatches(f *testing.F) {
	f.Add("*.registry.io:5000/a", "eu.registry.io:5000/a/b")
	f.Add("[", "x")
	f.Add("registry.io", "registry.io")
	f.Fuzz(func(t *testing.T, pattern, image string) {
		if !matches(pattern, image) {
			return
		}
		// What a pattern is for, it is for with something more in the path.
		if !strings.ContainsAny(image, "?#%") && !matches(pattern, image+"/more") {
			t.Errorf("%q is for %q and not for what is below", pattern, image)
		}
	})
}
