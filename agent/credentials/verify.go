package credentials

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/distribution/reference"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	kubeletconfig "k8s.io/kubelet/config/v1beta1"

	"github.com/berth-io/berth/internal/failpoint"
)

// rememberAtMost bounds what is added to a record while it is only looked at.
const rememberAtMost = 100

// RecordsConfig of Records.
type RecordsConfig struct {
	KubeletDir string
	// Policy says for which images that are there a pod must have credentials;
	// empty: NeverVerifyPreloadedImages. Allowed are the images that need none
	// with the policy NeverVerifyAllowlistedImages.
	Policy  kubeletconfig.ImagePullCredentialsVerificationPolicy
	Allowed []string
	// Checked is told of each answer of MustPull, in the kubelet's word for it;
	// nil: nobody counts.
	Checked func(result string)
	Log     *slog.Logger
}

// Answers of MustPull, as the kubelet's metric names them.
const (
	byPolicy = "credentialPolicyAllowed"
	byRecord = "credentialRecordFound"
	mustAuth = "mustAuthenticate"
	checkErr = "error"
)

// Records remembers with which credentials images were pulled and decides by
// that whether a pod may use an image that is there, or has to pull it to prove
// that it may (pkg/kubelet/images/pullmanager). Its methods may be called from
// any goroutine.
type Records struct {
	config          RecordsConfig
	pulling, pulled string // directories
	names, prefixes []string

	mu         sync.Mutex
	running    map[string]int // pulls by the name of the image
	unfinished bool           // there may be intents of before, which nobody has looked at
}

// OpenRecords makes the directories of the records where they are missing.
func OpenRecords(c RecordsConfig) (*Records, error) {
	r := &Records{
		config:  c,
		pulling: filepath.Join(c.KubeletDir, "image_manager", "pulling"),
		pulled:  filepath.Join(c.KubeletDir, "image_manager", "pulled"),
		running: map[string]int{},
	}
	switch c.Policy {
	case "":
		r.config.Policy = kubeletconfig.NeverVerifyPreloadedImages
	case kubeletconfig.NeverVerify, kubeletconfig.NeverVerifyPreloadedImages, kubeletconfig.NeverVerifyAllowlistedImages, kubeletconfig.AlwaysVerify:
	default:
		return nil, fmt.Errorf("imagePullCredentialsVerificationPolicy: unknown policy %q", c.Policy)
	}
	for _, pattern := range c.Allowed {
		if err := r.allow(pattern); err != nil {
			return nil, fmt.Errorf("preloadedImagesVerificationAllowlist: %w", err)
		}
	}
	for _, dir := range []string{r.pulling, r.pulled} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("make directory for records of pulls: %w", err)
		}
	}
	intents, err := recordFiles(r.pulling)
	if err != nil {
		return nil, fmt.Errorf("look for unfinished pulls: %w", err)
	}
	r.unfinished = len(intents) > 0
	return r, nil
}

// allow takes in a name without tag and digest, or a prefix that ends in /*.
func (r *Records) allow(pattern string) error {
	if pattern != strings.TrimSpace(pattern) {
		return fmt.Errorf("leading/trailing spaces are not allowed: %s", pattern)
	}
	if prefix, ok := strings.CutSuffix(pattern, "*"); ok && strings.HasSuffix(prefix, "/") {
		if strings.Contains(prefix, "*") {
			return fmt.Errorf("not a valid wildcard pattern, only patterns ending with '/*' are allowed: %s", pattern)
		}
		if prefix == "/" {
			return errors.New("at least registry hostname is required")
		}
		r.prefixes = append(r.prefixes, prefix)
		return nil
	}
	name, err := withoutVersion(pattern)
	if err != nil {
		return fmt.Errorf("%s: failed to parse as an image name: %w", pattern, err)
	}
	if name != pattern {
		return fmt.Errorf("neither tag nor digest is accepted in an image reference: %s", pattern)
	}
	r.names = append(r.names, name)
	return nil
}

// withoutVersion takes tag and digest off the name of an image.
func withoutVersion(image string) (string, error) {
	ref, err := reference.Parse(image)
	if err != nil {
		return "", err
	}
	if digested, ok := ref.(reference.Digested); ok {
		image = strings.TrimSuffix(image, "@"+digested.Digest().String())
	}
	if tagged, ok := ref.(reference.Tagged); ok {
		image = strings.TrimSuffix(image, ":"+tagged.Tag())
	}
	return image, nil
}

// Begin records that an image is about to be pulled. Pulled or Failed ends it.
func (r *Records) Begin(image string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	intent := kubeletconfig.ImagePullIntent{TypeMeta: recordType("ImagePullIntent"), Image: image}
	if err := writeRecord(r.intent(image), intent); err != nil {
		return fmt.Errorf("failed to record image pull intent: %w", err)
	}
	failpoint.Hit("agent/pull-begun")
	r.running[image]++
	return nil
}

func (r *Records) intent(image string) string { return filepath.Join(r.pulling, recordName(image)) }
func (r *Records) record(ref string) string   { return filepath.Join(r.pulled, recordName(ref)) }

// Failed ends a pull that brought no image.
func (r *Records) Failed(image string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.end(image)
}

// Pulled ends a pull that brought an image, which the runtime calls ref, with a
// credential; nil: without. When that cannot be recorded, the intent stays: it
// says that the image is not one that was there before.
func (r *Records) Pulled(image, ref string, with *Credential) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var who kubeletconfig.ImagePullCredentials
	switch {
	case with != nil && with.Secret != nil:
		who.KubernetesSecrets = []kubeletconfig.ImagePullSecret{*with.Secret}
	case with != nil && with.ServiceAccount != nil:
		who.KubernetesServiceAccounts = []kubeletconfig.ImagePullServiceAccount{*with.ServiceAccount}
	default:
		who.NodePodsAccessible = true
	}
	if err := r.add(image, ref, &who); err != nil {
		r.config.Log.Error("with what an image was pulled is not recorded; pods will have to pull it again", "image", image, "err", err)
		return
	}
	failpoint.Hit("agent/pull-recorded")
	r.end(image)
}

// end takes one pull of an image away; the intent goes with the last.
func (r *Records) end(image string) {
	if r.running[image]--; r.running[image] > 0 {
		return
	}
	delete(r.running, image)
	if err := removeRecord(r.intent(image)); err != nil {
		r.config.Log.Error("the record of a pull that has ended is not removed", "image", image, "err", err)
	}
}

// add records who may use an image by a name; nil: nobody is known yet.
func (r *Records) add(image, ref string, who *kubeletconfig.ImagePullCredentials) error {
	name, err := withoutVersion(image)
	if err != nil {
		return fmt.Errorf("invalid image name %q: %w", image, err)
	}
	record, err := readPulled(r.record(ref))
	if err != nil {
		r.config.Log.Warn("a record of a pull cannot be read and is written anew", "image", image, "err", err)
	}
	changed := false
	if record == nil || record.ImageRef != ref {
		record = &kubeletconfig.ImagePulledRecord{ImageRef: ref}
		changed = true
	}
	if who != nil {
		if record.CredentialMapping == nil {
			record.CredentialMapping = map[string]kubeletconfig.ImagePullCredentials{}
		}
		has, known := record.CredentialMapping[name]
		next, differs := merge(has, *who)
		if differs || !known {
			record.CredentialMapping[name], changed = next, true
		}
	}
	if !changed {
		return nil
	}
	record.TypeMeta, record.LastUpdatedTime = recordType("ImagePulledRecord"), metav1.Now()
	return writeRecord(r.record(ref), record)
}

// merge adds credentials to those that are known. What is open to all needs no
// others.
func merge(has, more kubeletconfig.ImagePullCredentials) (kubeletconfig.ImagePullCredentials, bool) {
	switch {
	case has.NodePodsAccessible:
		return has, false
	case more.NodePodsAccessible:
		return kubeletconfig.ImagePullCredentials{NodePodsAccessible: true}, true
	}
	differs := false
	for _, s := range more.KubernetesSecrets {
		i := slices.IndexFunc(has.KubernetesSecrets, func(o kubeletconfig.ImagePullSecret) bool { return sameSecret(o, s) })
		switch {
		case i < 0:
			has.KubernetesSecrets, differs = append(has.KubernetesSecrets, s), true
		case has.KubernetesSecrets[i] != s:
			has.KubernetesSecrets[i], differs = s, true
		}
	}
	for _, a := range more.KubernetesServiceAccounts {
		if !slices.Contains(has.KubernetesServiceAccounts, a) {
			has.KubernetesServiceAccounts, differs = append(has.KubernetesServiceAccounts, a), true
		}
	}
	slices.SortFunc(has.KubernetesSecrets, func(a, b kubeletconfig.ImagePullSecret) int {
		return strings.Compare(a.Namespace+"\x00"+a.Name+"\x00"+a.UID, b.Namespace+"\x00"+b.Name+"\x00"+b.UID)
	})
	slices.SortFunc(has.KubernetesServiceAccounts, func(a, b kubeletconfig.ImagePullServiceAccount) int {
		return strings.Compare(a.Namespace+"\x00"+a.Name+"\x00"+a.UID, b.Namespace+"\x00"+b.Name+"\x00"+b.UID)
	})
	return has, differs
}

func sameSecret(a, b kubeletconfig.ImagePullSecret) bool {
	return a.UID == b.UID && a.Namespace == b.Namespace && a.Name == b.Name
}

// MustPull tells whether a pod has to pull an image that is there, which the
// runtime calls ref, to prove that it may use it. own looks up the pod's
// credentials, which is done only when it matters; its error is returned.
func (r *Records) MustPull(image, ref string, own func() ([]Credential, error)) (bool, error) {
	result, err := r.mustPull(image, ref, own)
	if r.config.Checked != nil {
		r.config.Checked(result)
	}
	return result != byPolicy && result != byRecord, err
}

func (r *Records) mustPull(image, ref string, own func() ([]Credential, error)) (result string, err error) {
	record, ours := r.look(image, ref)
	if !r.verifies(image, ours) {
		return byPolicy, nil
	}
	if record == nil {
		return mustAuth, nil
	}
	name, err := withoutVersion(image)
	if err != nil {
		return checkErr, nil // the pull says what is wrong with the name
	}
	may, known := record.CredentialMapping[name]
	switch {
	case may.NodePodsAccessible:
		return byRecord, nil
	case !known, len(may.KubernetesSecrets)+len(may.KubernetesServiceAccounts) == 0:
		return mustAuth, nil
	}
	credentials, err := own()
	if err != nil {
		return checkErr, err
	}
	for _, c := range credentials {
		if c.Secret != nil && r.knows(image, ref, may.KubernetesSecrets, *c.Secret) ||
			c.ServiceAccount != nil && slices.Contains(may.KubernetesServiceAccounts, *c.ServiceAccount) {
			return byRecord, nil
		}
	}
	return mustAuth, nil
}

// Count counts the records of pulls that are under way and of those that have
// ended.
func (r *Records) Count() (pulling, pulled int, err error) {
	var files [2][]string
	for i, dir := range []string{r.pulling, r.pulled} {
		if files[i], err = recordFiles(dir); err != nil {
			return 0, 0, fmt.Errorf("count the records of pulls: %w", err)
		}
	}
	return len(files[0]), len(files[1]), nil
}

// look reads the record of an image; ours says that it was pulled from here, by
// a record or by an intent. What cannot be read is ours and no proof.
func (r *Records) look(image, ref string) (record *kubeletconfig.ImagePulledRecord, ours bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	record, err := readPulled(r.record(ref))
	if err != nil {
		r.config.Log.Error("a record of a pull cannot be read; pods have to pull the image again", "image", image, "err", err)
		return nil, true
	}
	if record != nil && record.ImageRef == ref {
		return record, true
	}
	if r.running[image] > 0 || r.unfinished {
		return nil, true
	}
	intent, err := readIntent(r.intent(image))
	if err != nil {
		r.config.Log.Error("a record of a pull cannot be read; pods have to pull the image again", "image", image, "err", err)
		return nil, true
	}
	return nil, intent != nil && intent.Image == image
}

// verifies is the policy.
func (r *Records) verifies(image string, ours bool) bool {
	switch r.config.Policy {
	case kubeletconfig.NeverVerify:
		return false
	case kubeletconfig.NeverVerifyPreloadedImages:
		return ours
	case kubeletconfig.NeverVerifyAllowlistedImages:
		name, err := withoutVersion(image)
		if err != nil {
			name = image
		}
		return !slices.Contains(r.names, name) && !slices.ContainsFunc(r.prefixes, func(p string) bool { return strings.HasPrefix(name, p) })
	}
	return true
}

// knows tells whether a secret, or one with the same content, has pulled the
// image. What is the same in one of the two is noted, so that it is known when
// the other has changed.
func (r *Records) knows(image, ref string, known []kubeletconfig.ImagePullSecret, s kubeletconfig.ImagePullSecret) bool {
	for _, k := range known {
		sameContent := k.CredentialHash != "" && k.CredentialHash == s.CredentialHash
		if !sameContent && !sameSecret(k, s) {
			continue
		}
		if k != s && len(known) < rememberAtMost {
			r.mu.Lock()
			err := r.add(image, ref, &kubeletconfig.ImagePullCredentials{KubernetesSecrets: []kubeletconfig.ImagePullSecret{s}})
			r.mu.Unlock()
			if err != nil {
				r.config.Log.Error("a pull secret that may use an image is not recorded", "image", image, "err", err)
			}
			return true
		}
		if sameContent {
			return true
		}
	}
	return false
}

// Recover makes records of the pulls that were under way when the daemon ended
// and have brought an image, so that nobody gets it without credentials: until
// then no image without a record counts as one that was there before. It is
// called with the images that the runtime has, and again where it did not work.
// Pulls that are under way now are left alone.
func (r *Records) Recover(images []*runtimeapi.Image) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	files, err := recordFiles(r.pulling)
	if err != nil {
		return fmt.Errorf("list unfinished pulls: %w", err)
	}
	errs := []error{sweepRecords(r.pulling), sweepRecords(r.pulled)}
	for _, file := range files {
		intent, err := readIntent(file)
		if err != nil {
			// It will never be readable: a host that lost power.
			r.config.Log.Error("the record of an unfinished pull is damaged and set aside", "err", err, "to", file+damaged)
			errs = append(errs, os.Rename(file, file+damaged))
			continue
		}
		if intent == nil {
			continue
		}
		if r.running[intent.Image] > 0 {
			continue
		}
		for _, image := range images {
			if !hasName(image, intent.Image) {
				continue
			}
			err := r.add(intent.Image, image.GetId(), nil)
			if err == nil {
				err = removeRecord(file)
			}
			errs = append(errs, err)
		}
	}
	err = errors.Join(errs...)
	r.unfinished = err != nil
	return err
}

// hasName tells whether an image has a name, which may leave out what is the
// default.
func hasName(image *runtimeapi.Image, name string) bool {
	full := name
	if named, err := reference.ParseDockerRef(name); err == nil {
		full = named.String()
	}
	for _, list := range [][]string{image.GetRepoTags(), image.GetRepoDigests()} {
		if slices.Contains(list, name) || slices.Contains(list, full) {
			return true
		}
	}
	return false
}

// Prune removes the records of images that are gone: all but those that the
// runtime calls by one of refs, and those that changed after the list was made.
func (r *Records) Prune(refs []string, listed time.Time) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	files, err := recordFiles(r.pulled)
	if err != nil {
		return fmt.Errorf("list records of pulls: %w", err)
	}
	var errs []error
	for _, file := range files {
		record, err := readPulled(file)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if record != nil && !slices.Contains(refs, record.ImageRef) && record.LastUpdatedTime.Time.Before(listed) {
			errs = append(errs, removeRecord(file))
		}
	}
	return errors.Join(errs...)
}
