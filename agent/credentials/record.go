package credentials

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kubeletconfig "k8s.io/kubelet/config/v1beta1"

	"github.com/berth-io/berth/internal/failpoint"
)

// The records are one file each, as the kubelet writes them, so that one finds
// the other's (pkg/kubelet/images/pullmanager/fs_pullrecords.go):
//
//	image_manager/pulling/sha256-SUM  ImagePullIntent: a pull of this name has begun
//	image_manager/pulled/sha256-SUM   ImagePulledRecord: with what this image was pulled
const (
	recordPrefix = "sha256-"
	unfinished   = ".tmp"
	damaged      = ".bad"
)

func recordName(of string) string {
	return fmt.Sprintf("%s%x", recordPrefix, sha256.Sum256([]byte(of)))
}

// readRecord reads one record; false without an error where there is none.
func readRecord(path, kind string, into any, meta *metav1.TypeMeta) (bool, error) {
	content, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if err := strictJSON(content, into); err != nil {
		return false, fmt.Errorf("read %s: %w", path, err)
	}
	group, version, _ := strings.Cut(meta.APIVersion, "/")
	if meta.Kind != kind || group != "kubelet.config.k8s.io" || version != "v1beta1" && version != "v1alpha1" {
		return false, fmt.Errorf("read %s: is %s %s, not a %s", path, meta.APIVersion, meta.Kind, kind)
	}
	return true, nil
}

// writeRecord makes a record appear whole. It is not synced to disk: a lost
// record makes somebody prove that they may have an image, no more.
func writeRecord(path string, record any) error {
	content, err := json.Marshal(record)
	if err != nil {
		return err
	}
	if err := os.WriteFile(path+unfinished, append(content, '\n'), 0o600); err != nil {
		return errors.Join(err, removeRecord(path+unfinished))
	}
	failpoint.Hit("agent/record-staged")
	return os.Rename(path+unfinished, path)
}

func removeRecord(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// sweepRecords removes what a writeRecord that was cut off left.
func sweepRecords(dir string) error {
	files, err := filepath.Glob(filepath.Join(dir, recordPrefix+"*"+unfinished))
	errs := []error{err}
	for _, file := range files {
		errs = append(errs, removeRecord(file))
	}
	return errors.Join(errs...)
}

// recordFiles lists the records in a directory.
func recordFiles(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var files []string
	for _, e := range entries {
		if !e.IsDir() && strings.HasPrefix(e.Name(), recordPrefix) && !strings.HasSuffix(e.Name(), unfinished) && !strings.HasSuffix(e.Name(), damaged) {
			files = append(files, filepath.Join(dir, e.Name()))
		}
	}
	return files, nil
}

func readIntent(path string) (*kubeletconfig.ImagePullIntent, error) {
	intent := &kubeletconfig.ImagePullIntent{}
	if found, err := readRecord(path, "ImagePullIntent", intent, &intent.TypeMeta); err != nil || !found {
		return nil, err
	}
	return intent, nil
}

func readPulled(path string) (*kubeletconfig.ImagePulledRecord, error) {
	record := &kubeletconfig.ImagePulledRecord{}
	if found, err := readRecord(path, "ImagePulledRecord", record, &record.TypeMeta); err != nil || !found {
		return nil, err
	}
	return record, nil
}

func recordType(kind string) metav1.TypeMeta {
	return metav1.TypeMeta{Kind: kind, APIVersion: kubeletconfig.SchemeGroupVersion.String()}
}
