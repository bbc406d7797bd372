// Package registry serves test images by the OCI distribution protocol, from
// memory, on whatever listener a test opened: usually one inside a node's
// network namespace.
package registry

import (
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// Registry holds images, and counts what is asked of it.
type Registry struct {
	images http.Handler

	mu       sync.Mutex
	bad      map[string]http.Handler // by repository name
	requests []string                // method and path of each, in order
}

// New returns an empty registry.
func New() *Registry {
	return &Registry{
		images: registry.New(registry.Logger(log.New(io.Discard, "", 0))),
		bad:    map[string]http.Handler{},
	}
}

// Serve answers on a listener until it is closed.
func (r *Registry) Serve(l net.Listener) {
	s := &http.Server{Handler: r, ReadHeaderTimeout: 10 * time.Second, ErrorLog: log.New(io.Discard, "", 0)}
	_ = s.Serve(l) // ends when the listener is closed, by its owner
}

// Push stores an image under repository:tag.
func (r *Registry) Push(repositoryTag string, img v1.Image) error {
	ref, err := name.NewTag("registry.test/"+repositoryTag, name.Insecure)
	if err != nil {
		return err
	}
	if err := remote.Write(ref, img, remote.WithTransport(direct{r.images})); err != nil {
		return fmt.Errorf("push %s: %w", repositoryTag, err)
	}
	return nil
}

// PushReference stores an image under a reference, whatever its registry: this
// one stands for all.
func (r *Registry) PushReference(reference string, img v1.Image) error {
	_, repository, ok := strings.Cut(reference, "/")
	if !ok {
		return fmt.Errorf("push %q: a reference is HOST/REPOSITORY:TAG", reference)
	}
	return r.Push(repository, img)
}

// Replace has a handler answer for a repository: the images that no honest
// registry serves.
func (r *Registry) Replace(repository string, h http.Handler) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.bad[repository] = h
}

// Requests returns what was asked so far, as "GET /v2/box/manifests/1".
func (r *Registry) Requests() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]string(nil), r.requests...)
}

func (r *Registry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	r.mu.Lock()
	r.requests = append(r.requests, req.Method+" "+req.URL.Path)
	h := r.images
	for repository, bad := range r.bad {
		if strings.HasPrefix(req.URL.Path, "/v2/"+repository+"/") {
			h = bad
		}
	}
	r.mu.Unlock()
	h.ServeHTTP(w, req)
}

// direct is a transport without a network.
type direct struct{ h http.Handler }

func (d direct) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Body == nil { // nil is for clients
		req = req.Clone(req.Context())
		req.Body = http.NoBody
	}
	w := httptest.NewRecorder()
	d.h.ServeHTTP(w, req)
	resp := w.Result()
	resp.Request = req
	return resp, nil
}
