package credentials

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	kubeletconfig "k8s.io/kubelet/config/v1beta1"
)

func open(t *testing.T, dir string, policy kubeletconfig.ImagePullCredentialsVerificationPolicy, allowed ...string) *Records {
	t.Helper()
	r, err := OpenRecords(RecordsConfig{KubeletDir: dir, Policy: policy, Allowed: allowed, Log: quiet})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func secretCredential(uid, hash string) Credential {
	return Credential{Username: uid, Secret: &kubeletconfig.ImagePullSecret{UID: uid, Namespace: "ns", Name: "s-" + uid, CredentialHash: hash}}
}

func accountCredential(uid string) Credential {
	return Credential{ServiceAccount: &kubeletconfig.ImagePullServiceAccount{UID: uid, Namespace: "ns", Name: "sa"}}
}

func (r *Records) must(t *testing.T, image, ref string, own ...Credential) bool {
	t.Helper()
	must, err := r.MustPull(image, ref, func() ([]Credential, error) { return own, nil })
	if err != nil {
		t.Fatal(err)
	}
	return must
}

func pulled(t *testing.T, r *Records, image, ref string, with *Credential) {
	t.Helper()
	if err := r.Begin(image); err != nil {
		t.Fatal(err)
	}
	r.Pulled(image, ref, with)
}

func TestThePolicySaysWhoseCredentialsAreLookedAt(t *testing.T) {
	for _, test := range []struct {
		policy             kubeletconfig.ImagePullCredentialsVerificationPolicy
		preloaded, ofOther bool // must be pulled
	}{
		{"", false, true},
		{kubeletconfig.NeverVerify, false, false},
		{kubeletconfig.NeverVerifyPreloadedImages, false, true},
		{kubeletconfig.AlwaysVerify, true, true},
	} {
		r := open(t, t.TempDir(), test.policy)
		if got := r.must(t, "r.io/pre:1", "pre"); got != test.preloaded {
			t.Errorf("%s: a preloaded image must be pulled: %v", test.policy, got)
		}
		with := secretCredential("a", "h")
		pulled(t, r, "r.io/x:1", "x", &with)
		if got := r.must(t, "r.io/x:1", "x"); got != test.ofOther {
			t.Errorf("%s: another's image must be pulled: %v", test.policy, got)
		}
	}
	r := open(t, t.TempDir(), kubeletconfig.NeverVerifyAllowlistedImages, "r.io/one", "r.io/team/*")
	for image, want := range map[string]bool{"r.io/one:1": false, "r.io/one/x": true, "r.io/team/x@sha256:" + strings.Repeat("0", 64): false, "r.io/teams": true} {
		if got := r.must(t, image, "ref"); got != want {
			t.Errorf("%s must be pulled: %v", image, got)
		}
	}
}

func TestAPodMayUseWhatItsCredentialsHavePulled(t *testing.T) {
	a, b := secretCredential("a", "hash-a"), secretCredential("b", "hash-b")
	rotated, copied := secretCredential("a", "hash-new"), secretCredential("c", "hash-a")
	robot, other := accountCredential("1"), accountCredential("2")
	for _, test := range []struct {
		name  string
		with  *Credential
		image string // asked for
		own   []Credential
		must  bool
	}{
		{"pulled without: everybody", nil, "r.io/x:1", nil, false},
		{"pulled by the node: everybody", &Credential{Username: "node"}, "r.io/x:1", nil, false},
		{"another tag of the repository, the same image", nil, "r.io/x:2", nil, false},
		{"another name of the image", nil, "mirror.io/x:1", nil, true},
		{"the same secret", &a, "r.io/x:1", []Credential{b, a}, false},
		{"another secret", &a, "r.io/x:1", []Credential{b}, true},
		{"no secret", &a, "r.io/x:1", nil, true},
		{"the same secret with new content", &a, "r.io/x:1", []Credential{rotated}, false},
		{"another secret with the same content", &a, "r.io/x:1", []Credential{copied}, false},
		{"the same service account", &robot, "r.io/x:1", []Credential{robot}, false},
		{"another service account", &robot, "r.io/x:1", []Credential{other}, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			r := open(t, dir, "")
			pulled(t, r, "r.io/x:1", "ref", test.with)
			for range 2 { // the second time after a restart
				if got := r.must(t, test.image, "ref", test.own...); got != test.must {
					t.Errorf("must pull: %v, want %v", got, test.must)
				}
				r = open(t, dir, "")
			}
		})
	}
}

func TestWhyAnImageIsPulledAgainIsCountedInTheKubeletsWords(t *testing.T) {
	a := secretCredential("a", "h")
	var counted []string
	open := func(policy kubeletconfig.ImagePullCredentialsVerificationPolicy, dir string) *Records {
		t.Helper()
		r, err := OpenRecords(RecordsConfig{KubeletDir: dir, Policy: policy, Log: quiet, Checked: func(result string) { counted = append(counted, result) }})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	dir := t.TempDir()
	r := open("", dir)
	r.must(t, "r.io/pre", "pre")
	pulled(t, r, "r.io/x", "x", &a)
	pulled(t, r, "r.io/open", "open", nil)
	if err := r.Begin("r.io/coming"); err != nil {
		t.Fatal(err)
	}
	r.must(t, "r.io/x", "x", a)
	r.must(t, "r.io/open", "open")
	r.must(t, "r.io/x", "x")
	if _, err := r.MustPull("r.io/x", "x", func() ([]Credential, error) { return nil, errors.New("broken") }); err == nil {
		t.Error("the error is lost")
	}
	open(kubeletconfig.AlwaysVerify, t.TempDir()).must(t, "r.io/pre", "pre")
	want := []string{"credentialPolicyAllowed", "credentialRecordFound", "credentialRecordFound", "mustAuthenticate", "error", "mustAuthenticate"}
	if !slices.Equal(counted, want) {
		t.Errorf("counted %q, want %q", counted, want)
	}
	if pulling, pulled, err := r.Count(); pulling != 1 || pulled != 2 || err != nil {
		t.Errorf("%d pulls under way, %d records, %v", pulling, pulled, err)
	}
}

func TestWhatIsLearntOfASecretStaysWhenTheOldOneIsGone(t *testing.T) {
	a, copied := secretCredential("a", "h"), secretCredential("c", "h")
	r := open(t, t.TempDir(), "")
	pulled(t, r, "r.io/x", "ref", &a)
	if r.must(t, "r.io/x", "ref", copied) {
		t.Fatal("a copy of the secret is not known")
	}
	changed := copied
	changed.Secret = &kubeletconfig.ImagePullSecret{UID: "c", Namespace: "ns", Name: "s-c", CredentialHash: "h2"}
	if r.must(t, "r.io/x", "ref", changed) {
		t.Error("the copy is not known with new content")
	}
}

func TestASecretsErrorIsReturnedOnlyWhereItMatters(t *testing.T) {
	r := open(t, t.TempDir(), "")
	broken := func() ([]Credential, error) { return nil, errors.New("broken") }
	if _, err := r.MustPull("r.io/x", "ref", broken); err != nil {
		t.Error(err)
	}
	a := secretCredential("a", "h")
	pulled(t, r, "r.io/x", "ref", &a)
	if must, err := r.MustPull("r.io/x", "ref", broken); !must || err == nil {
		t.Errorf("must pull: %v, %v", must, err)
	}
}

// The files are as a kubelet 1.36 writes them.
func TestTheFilesAreTheKubelets(t *testing.T) {
	dir := t.TempDir()
	r := open(t, dir, "")
	if err := r.Begin("r.io/x:1"); err != nil {
		t.Fatal(err)
	}
	const intent = "sha256-ede415db50a47ee7e2ae0bfb460d05e1c9eee451498642196e520c09b8b87557" // of r.io/x:1
	files, err := filepath.Glob(dir + "/image_manager/pulling/*")
	if err != nil || len(files) != 1 || filepath.Base(files[0]) != intent {
		t.Fatalf("files %v, %v", files, err)
	}
	want(t, files[0], `{"kind":"ImagePullIntent","apiVersion":"kubelet.config.k8s.io/v1beta1","image":"r.io/x:1"}`+"\n")
	a := secretCredential("a", "h")
	r.Pulled("r.io/x:1", "sha256:1", &a)
	if _, err := os.Lstat(files[0]); !os.IsNotExist(err) {
		t.Errorf("the intent is still there: %v", err)
	}
	files, err = filepath.Glob(dir + "/image_manager/pulled/*")
	if err != nil || len(files) != 1 {
		t.Fatalf("files %v, %v", files, err)
	}
	content, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	head, rest, found := strings.Cut(string(content), `"lastUpdatedTime":"`)
	_, tail, _ := strings.Cut(rest, `",`)
	if !found || head != `{"kind":"ImagePulledRecord","apiVersion":"kubelet.config.k8s.io/v1beta1",` ||
		tail != `"imageRef":"sha256:1","credentialMapping":{"r.io/x":{"kubernetesSecrets":[{"uid":"a","namespace":"ns","name":"s-a","credentialHash":"h"}]}}}`+"\n" {
		t.Errorf("record %s", content)
	}
}

func want(t *testing.T, file, want string) {
	t.Helper()
	if content, err := os.ReadFile(file); err != nil || string(content) != want {
		t.Errorf("%s holds %q, %v; want %q", file, content, err, want)
	}
}

func TestAKilledDaemonsPullIsNoPreloadedImage(t *testing.T) {
	dir := t.TempDir()
	r := open(t, dir, "")
	for _, image := range []string{"busybox", "r.io/gone:1"} {
		if err := r.Begin(image); err != nil {
			t.Fatal(err)
		}
	}
	r = open(t, dir, "") // killed before the pull was over
	if !r.must(t, "busybox", "id") || !r.must(t, "another-name", "id") {
		t.Error("may be used without credentials")
	}
	unfinished := filepath.Join(dir, "image_manager/pulled/sha256-0.tmp")
	if err := os.WriteFile(unfinished, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := r.Recover([]*runtimeapi.Image{{Id: "id", RepoTags: []string{"docker.io/library/busybox:latest"}}, {Id: "other", RepoTags: []string{"r.io/x:1"}}}); err != nil {
		t.Fatal(err)
	}
	if !r.must(t, "busybox", "id") || !r.must(t, "another-name", "id") {
		t.Error("after a restart it may be used without credentials")
	}
	if files, err := recordFiles(dir + "/image_manager/pulling"); err != nil || len(files) != 1 {
		t.Errorf("intents left: %v, %v; want that of the image that did not come", files, err)
	}
	if _, err := os.Stat(unfinished); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what a record that was being written left: %v", err)
	}
	if r.must(t, "r.io/x:1", "other") {
		t.Error("a preloaded image must be pulled")
	}
	pulled(t, r, "busybox", "id", nil)
	if r.must(t, "busybox", "id") {
		t.Error("pulled anew without credentials, and still it must be pulled")
	}
}

func TestADamagedIntentHoldsUpNothing(t *testing.T) {
	dir := t.TempDir()
	r := open(t, dir, "")
	if err := os.WriteFile(r.intent("r.io/x"), nil, 0o600); err != nil { // the power went
		t.Fatal(err)
	}
	r = open(t, dir, "")
	if err := r.Recover(nil); err != nil {
		t.Fatal(err)
	}
	if r.must(t, "r.io/preloaded:1", "id") {
		t.Error("no preloaded image is one any more")
	}
}

func TestAPullUnderWayIsNotRecovered(t *testing.T) {
	dir := t.TempDir()
	r := open(t, dir, "")
	if err := r.Begin("r.io/x"); err != nil {
		t.Fatal(err)
	}
	if err := r.Recover([]*runtimeapi.Image{{Id: "id", RepoTags: []string{"r.io/x:latest"}}}); err != nil {
		t.Fatal(err)
	}
	if files, err := recordFiles(dir + "/image_manager/pulling"); err != nil || len(files) != 1 {
		t.Errorf("intents %v, %v while a pull is under way", files, err)
	}
	if files, err := recordFiles(dir + "/image_manager/pulled"); err != nil || len(files) != 0 {
		t.Errorf("records %v, %v of a pull under way", files, err)
	}
}

func TestPullsOfOneImageShareItsIntent(t *testing.T) {
	dir := t.TempDir()
	r := open(t, dir, "")
	for range 2 {
		if err := r.Begin("r.io/x"); err != nil {
			t.Fatal(err)
		}
	}
	r.Failed("r.io/x")
	if files, _ := recordFiles(dir + "/image_manager/pulling"); len(files) != 1 {
		t.Errorf("intents %v while a pull is under way", files)
	}
	r.Failed("r.io/x")
	if files, _ := recordFiles(dir + "/image_manager/pulling"); len(files) != 0 || len(r.running) != 0 {
		t.Errorf("intents %v after the last", files)
	}
}

func TestATornRecordIsNoProof(t *testing.T) {
	dir := t.TempDir()
	r := open(t, dir, "")
	pulled(t, r, "r.io/x", "ref", nil)
	for _, content := range []string{"", "{", `{"kind":"ImagePullIntent","apiVersion":"kubelet.config.k8s.io/v1beta1"}`} {
		write(t, r.record("ref"), content, 0o600)
		if !r.must(t, "r.io/x", "ref") {
			t.Errorf("%q is a proof", content)
		}
	}
	write(t, r.record("ref")+unfinished, "half", 0o600)
	pulled(t, r, "r.io/x", "ref", nil)
	if r.must(t, "r.io/x", "ref") {
		t.Error("a pull does not mend the record")
	}
}

func TestRecordsOfImagesThatAreGoneArePruned(t *testing.T) {
	r := open(t, t.TempDir(), "")
	for _, ref := range []string{"a", "b"} {
		pulled(t, r, "r.io/"+ref, ref, nil)
	}
	if err := r.Prune([]string{"a"}, time.Now().Add(-time.Minute)); err != nil {
		t.Fatal(err)
	}
	if files, _ := recordFiles(r.pulled); len(files) != 2 {
		t.Errorf("a record that is newer than the list is gone: %v", files)
	}
	if err := r.Prune([]string{"a"}, time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	if files, _ := recordFiles(r.pulled); len(files) != 1 || files[0] != r.record("a") {
		t.Errorf("records %v", files)
	}
}

func TestBadPoliciesAreRefused(t *testing.T) {
	for want, c := range map[string]RecordsConfig{
		`imagePullCredentialsVerificationPolicy: unknown policy "Sometimes"`:                                        {Policy: "Sometimes"},
		"preloadedImagesVerificationAllowlist: neither tag nor digest is accepted in an image reference: r.io/x:1":  {Allowed: []string{"r.io/x:1"}},
		"preloadedImagesVerificationAllowlist: leading/trailing spaces are not allowed:  r.io/x":                    {Allowed: []string{" r.io/x"}},
		"preloadedImagesVerificationAllowlist: at least registry hostname is required":                              {Allowed: []string{"/*"}},
		"preloadedImagesVerificationAllowlist: r.io/x*: failed to parse as an image name: invalid reference format": {Allowed: []string{"r.io/x*"}},
	} {
		c.KubeletDir = t.TempDir()
		if _, err := OpenRecords(c); err == nil || err.Error() != want {
			t.Errorf("error %v, want %s", err, want)
		}
	}
}
