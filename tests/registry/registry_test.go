package registry

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/validate"
)

func TestPushedImageIsServedWhole(t *testing.T) {
	r := New()
	img, err := random.Image(1000, 2)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Push("some/image:1", img); err != nil {
		t.Fatal(err)
	}
	s := httptest.NewServer(r)
	defer s.Close()
	ref, err := name.NewTag(strings.TrimPrefix(s.URL, "http://") + "/some/image:1")
	if err != nil {
		t.Fatal(err)
	}
	got, err := remote.Image(ref)
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Image(got); err != nil {
		t.Error(err)
	}
	if len(r.Requests()) == 0 {
		t.Error("requests are not noted")
	}
}

// A bad image must be bad in its own way: all but those that break the
// protocol are served so that a client gets as far as the fault.
func TestBadImagesHaveAManifest(t *testing.T) {
	r := New()
	images := BadImages()
	if len(images) < 10 {
		t.Errorf("only %d bad images", len(images))
	}
	for n, b := range images {
		r.Replace("bad/"+n, b)
	}
	s := httptest.NewServer(r)
	defer s.Close()
	for n := range images {
		resp, err := http.Get(s.URL + "/v2/bad/" + n + "/manifests/1")
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		err = errors.Join(err, resp.Body.Close())
		if err != nil || resp.StatusCode != http.StatusOK || len(body) == 0 {
			t.Errorf("%s: %s, %d bytes, %v", n, resp.Status, len(body), err)
		}
	}
}
