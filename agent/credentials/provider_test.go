package credentials

import (
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// plugin is a script that notes its input and prints what a test wants.
type plugin struct {
	*Keyring
	t    *testing.T
	dir  string
	ran  []string // and how it ended
	hash string
}

const tokenAttributes = `
  tokenAttributes: {serviceAccountTokenAudience: aud, cacheType: %s, requireServiceAccount: %v, requiredServiceAccountAnnotationKeys: [%s], optionalServiceAccountAnnotationKeys: [opt]}`

func newPlugin(t *testing.T, response, more string) *plugin {
	t.Helper()
	dir := t.TempDir()
	write(t, dir+"/bin/plugin", "#!/bin/sh\ncat >> "+dir+"/asked\necho \"$1 $MORE\" >> "+dir+"/args\ncat "+dir+"/response\n[ ! -e "+dir+"/fail ] || { echo broken >&2; exit 3; }\n", 0o755)
	write(t, dir+"/config.yaml", `
apiVersion: kubelet.config.k8s.io/v1
kind: CredentialProviderConfig
providers:
- name: plugin
  matchImages: ["*.registry.io", "registry.io:5000/team"]
  defaultCacheDuration: 1h
  apiVersion: credentialprovider.kubelet.k8s.io/v1
  args: [get]
  env: [{name: MORE, value: things}]`+more, 0o644)
	p := &plugin{t: t, dir: dir}
	p.answers(response)
	var err error
	p.Keyring, err = New(Config{
		ProviderConfig: dir + "/config.yaml", ProviderBinDir: dir + "/bin", Tokens: tokens{},
		ServiceAccount: func(_ context.Context, namespace, name string) (*v1.ServiceAccount, error) {
			return &v1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, UID: "sa-uid", Annotations: map[string]string{"opt": "in", "req": "yes"}}}, nil
		},
		PluginRan:  func(name string, _ time.Duration, err error) { p.ran = append(p.ran, fmt.Sprint(name, " ", err)) },
		Configured: func(hash string) { p.hash = hash },
		Log:        quiet,
	})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestRunsOfAPluginAreCountedAndItsConfigurationIsHashed(t *testing.T) {
	p := newPlugin(t, answerOf("Image", ""), "")
	users(t, p.Keyring, podOf(), "eu.registry.io/x")
	write(t, p.dir+"/fail", "", 0o644)
	users(t, p.Keyring, podOf(), "eu.registry.io/y")
	if want := []string{"plugin <nil>", "plugin exit status 3"}; !slices.Equal(p.ran, want) {
		t.Errorf("counted %q, want %q", p.ran, want)
	}
	content, err := os.ReadFile(p.dir + "/config.yaml")
	if err != nil {
		t.Fatal(err)
	}
	sized := append([]byte{0, 0, 0, 0, 0, 0, byte(len(content) >> 8), byte(len(content))}, content...)
	if want := fmt.Sprintf("sha256:%x", sha256.Sum256(sized)); p.hash != want {
		t.Errorf("the hash is %s, want %s", p.hash, want)
	}
}

// tokens makes a token for each pod.
type tokens struct{}

func (tokens) Get(_ context.Context, namespace, account string, r *authenticationv1.TokenRequest) (*authenticationv1.TokenRequest, error) {
	r = r.DeepCopy()
	r.Status.Token = fmt.Sprintf("token %s/%s %s %s %s", namespace, account, r.UID, r.Spec.Audiences[0], r.Spec.BoundObjectRef.UID)
	return r, nil
}

func (p *plugin) answers(response string) {
	p.t.Helper()
	write(p.t, p.dir+"/response", response, 0o644)
}

// asked returns the requests since the last call.
func (p *plugin) asked() []string {
	p.t.Helper()
	content, err := os.ReadFile(p.dir + "/asked")
	if err != nil && !os.IsNotExist(err) {
		p.t.Fatal(err)
	}
	if err := os.RemoveAll(p.dir + "/asked"); err != nil {
		p.t.Fatal(err)
	}
	return strings.FieldsFunc(string(content), func(r rune) bool { return r == '\n' })
}

func answerOf(cache, more string) string {
	return `{"kind": "CredentialProviderResponse", "apiVersion": "credentialprovider.kubelet.k8s.io/v1", "cacheKeyType": "` + cache + `"` + more +
		`, "auth": {"*.registry.io": {"username": "glob", "password": "p"}, "eu.registry.io/team": {"username": "team", "password": "p"}, "registry.io:5000": {"username": "port", "password": "p"}}}`
}

func TestAPluginIsAskedForImagesThatMatch(t *testing.T) {
	p := newPlugin(t, answerOf("Image", ""), "")
	for _, test := range []struct {
		image, want string
		asked       int
	}{
		{"other.io/x", "", 0},
		{"registry.io:5000/x", "", 0},
		{"registry.io:5000/team/x", "port", 1},
		{"eu.registry.io/x:1", "glob", 1},
		{"eu.registry.io/team/x", "team glob", 1},
		{"busybox", "", 0},
	} {
		if got := users(t, p.Keyring, podOf(), test.image); got != test.want {
			t.Errorf("%s: %q, want %q", test.image, got, test.want)
		}
		asked := p.asked()
		if len(asked) != test.asked {
			t.Errorf("%s: asked %q", test.image, asked)
		}
		if test.image == "eu.registry.io/x:1" && asked[0] != `{"kind":"CredentialProviderRequest","apiVersion":"credentialprovider.kubelet.k8s.io/v1","image":"eu.registry.io/x"}` {
			t.Errorf("asked %s", asked[0])
		}
	}
	if args, err := os.ReadFile(p.dir + "/args"); err != nil || !strings.HasPrefix(string(args), "get things\n") {
		t.Errorf("arguments and environment %q, %v", args, err)
	}
}

func TestAnAnswerIsKeptForWhatThePluginSays(t *testing.T) {
	images := []string{"eu.registry.io/a", "eu.registry.io/a:2", "eu.registry.io/b", "us.registry.io/a"}
	for _, test := range []struct {
		cache, more string
		asked       int
	}{
		{"Image", "", 3},
		{"Registry", "", 2},
		{"Global", "", 1},
		{"Global", `, "cacheDuration": "0s"`, 4},
		{"Global", `, "cacheDuration": "5m"`, 1},
		{"Image", `, "cacheDuration": "1ns"`, 4},
	} {
		p := newPlugin(t, answerOf(test.cache, test.more), "")
		for _, image := range images {
			if got := users(t, p.Keyring, podOf(), image); got != "glob" {
				t.Errorf("%s%s: %s: %q", test.cache, test.more, image, got)
			}
		}
		if asked := p.asked(); len(asked) != test.asked {
			t.Errorf("%s%s: asked %d times, want %d", test.cache, test.more, len(asked), test.asked)
		}
	}
}

func TestAPluginThatWantsTokensGetsThem(t *testing.T) {
	other := podOf()
	other.UID = "other-uid"
	none := podOf()
	none.Spec.ServiceAccountName = ""
	for _, test := range []struct {
		name, cache string
		require     bool
		annotation  string
		asked       []string // of pod, other and one without an account
	}{
		{"an answer for the account", "ServiceAccount", true, "req", []string{"token ns/robot sa-uid aud pod-uid"}},
		{"an answer for the token", "Token", true, "req", []string{"token ns/robot sa-uid aud pod-uid", "token ns/robot sa-uid aud other-uid"}},
		{"pods without an account too", "ServiceAccount", false, "", []string{"token ns/robot sa-uid aud pod-uid", ""}},
		{"an annotation that the account has not", "Token", true, "gone", nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := newPlugin(t, answerOf("Registry", ""), fmt.Sprintf(tokenAttributes, test.cache, test.require, test.annotation))
			for _, pod := range []*v1.Pod{podOf(), other, none} {
				found, err := p.Lookup(t.Context(), pod, "eu.registry.io/x")
				if err != nil {
					t.Fatal(err)
				}
				if len(found) > 0 && (found[0].ServiceAccount == nil) != (pod == none) {
					t.Errorf("credentials %+v", found)
				}
			}
			asked := p.asked()
			if len(asked) != len(test.asked) {
				t.Fatalf("asked %q, want %q", asked, test.asked)
			}
			for i, token := range test.asked {
				if token != "" && !strings.Contains(asked[i], `"serviceAccountToken":"`+token+`"`) || token == "" && strings.Contains(asked[i], "Token") {
					t.Errorf("asked %s, want the token %q", asked[i], token)
				}
				if token != "" && !strings.Contains(asked[i], `"opt":"in"`) {
					t.Errorf("asked %s without the annotation", asked[i])
				}
			}
		})
	}
}

func TestAPluginThatFailsIsLikeOneThatHasNothing(t *testing.T) {
	token := strings.Replace(answerOf("Image", ""), `"password": "p"`, `"password": "token ns/robot sa-uid aud pod-uid"`, 1)
	for name, response := range map[string]string{
		"nothing":         "",
		"another version": strings.Replace(answerOf("Image", ""), "k8s.io/v1", "k8s.io/v1beta1", 1),
		"another kind":    strings.Replace(answerOf("Image", ""), "Response", "Request", 1),
		"no cache key":    answerOf("Never", ""),
		"unknown fields":  answerOf("Image", `, "more": 1`),
		"too much":        strings.Repeat("x", maxAnswer+1),
		"the token":       token,
	} {
		p := newPlugin(t, response, fmt.Sprintf(tokenAttributes, "ServiceAccount", true, "req"))
		if got := users(t, p.Keyring, podOf(), "eu.registry.io/x"); got != "" {
			t.Errorf("%s: found %q", name, got)
		}
	}
	p := newPlugin(t, answerOf("Image", ""), "")
	write(t, p.dir+"/fail", "", 0o644)
	if _, err := p.providers[0].provide(t.Context(), podOf(), "eu.registry.io/x"); err == nil || !strings.HasSuffix(err.Error(),
		"error execing credential provider plugin plugin for image eu.registry.io/x: exit status 3: broken\n") {
		t.Errorf("error %v", err)
	}
}

func TestBadConfigurationOfPluginsIsRefused(t *testing.T) {
	const good = `{apiVersion: kubelet.config.k8s.io/v1, kind: CredentialProviderConfig, providers: [{name: plugin, matchImages: [r.io], defaultCacheDuration: 1m, apiVersion: credentialprovider.kubelet.k8s.io/v1}]}`
	dir := t.TempDir()
	write(t, dir+"/bin/plugin", "#!/bin/sh\n", 0o755)
	for _, test := range []struct{ old, new, want string }{
		{"", "", ""},
		{"k8s.io/v1,", "k8s.io/v9,", `apiVersion "kubelet.config.k8s.io/v9"`},
		{"name: plugin", "name: a/b", "providers[0].name: Invalid value"},
		{"name: plugin", "name: ..", "provider name cannot be '..'"},
		{"name: plugin", "name: gone", "put the plugin into imageCredentialProviderBinDir"},
		{"[r.io]", "[]", "providers[0].matchImages: Required"},
		{"1m", "-1m", "must be greater than or equal to 0"},
		{"defaultCacheDuration: 1m, ", "", "providers[0].defaultCacheDuration: Required"},
		{"credentialprovider.kubelet.k8s.io/v1", "v1", "providers[0].apiVersion: Unsupported value"},
		{"name: plugin", "name: plugin, nonsense: 1", `unknown field "nonsense"`},
		{"name: plugin", "name: plugin, tokenAttributes: {}", "serviceAccountTokenAudience: Required"},
		{"name: plugin", "name: plugin, tokenAttributes: {serviceAccountTokenAudience: a, cacheType: Token, requireServiceAccount: true}", "tokenAttributes need an API server"},
		{"name: plugin", "name: plugin, tokenAttributes: {serviceAccountTokenAudience: a, cacheType: Never, requireServiceAccount: false, requiredServiceAccountAnnotationKeys: [k]}", "requireServiceAccount cannot be false"},
	} {
		write(t, dir+"/config.yaml", strings.Replace(good, test.old, test.new, 1), 0o644)
		_, err := New(Config{ProviderConfig: dir + "/config.yaml", ProviderBinDir: dir + "/bin", Log: quiet})
		if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
			t.Errorf("%s -> %s: error %v, want %s", test.old, test.new, err, test.want)
		}
	}
	write(t, dir+"/two/a.yaml", good, 0o644)
	write(t, dir+"/two/b.yml", good, 0o644)
	write(t, dir+"/two/c.txt", "no", 0o644)
	if _, err := New(Config{ProviderConfig: dir + "/two", ProviderBinDir: dir + "/bin", Log: quiet}); err == nil || !strings.Contains(err.Error(), `b.yml: duplicate provider name "plugin"`) {
		t.Errorf("error %v", err)
	}
	if _, err := New(Config{ProviderConfig: dir + "/bin", ProviderBinDir: dir + "/bin", Log: quiet}); err == nil || !strings.Contains(err.Error(), "no configuration files") {
		t.Errorf("error %v", err)
	}
}
