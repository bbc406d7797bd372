package images

import (
	"fmt"
	"path/filepath"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// References of images that are part of a cluster.
const (
	PauseReference   = "registry.k8s.io/pause:3.10.2" // of pods on containerd
	CoreDNSReference = "registry.test/coredns:1"
)

// ReferenceAnnotation names an image's reference in an index of OCI layout.
const ReferenceAnnotation = "org.opencontainers.image.ref.name"

// Cluster has the images that every cluster's registry holds: those of its own
// pods, and those of a node's tests.
func (b *Builder) Cluster() (map[string]v1.Image, error) {
	all := map[string]v1.Image{}
	for reference, build := range map[string]func() (v1.Image, error){
		PauseReference:               b.Pause,
		CoreDNSReference:             b.coreDNS,
		"registry.test/box:1":        b.Box,
		"registry.test/configured:1": b.Configured,
		"registry.test/busybox:1":    b.Busybox,
	} {
		img, err := build()
		if err != nil {
			return nil, fmt.Errorf("image %s: %w", reference, err)
		}
		all[reference] = img
	}
	return all, nil
}

func (b *Builder) coreDNS() (v1.Image, error) {
	layer, err := b.peerLayer("coredns", "coredns")
	if err != nil {
		return nil, err
	}
	return assemble(v1.Config{Entrypoint: []string{"/coredns"}}, layer)
}

// MetricsServer is the image of a metrics-server.
func (b *Builder) MetricsServer() (v1.Image, error) {
	layer, err := b.peerLayer("metrics-server", "metrics-server")
	if err != nil {
		return nil, err
	}
	return assemble(v1.Config{Entrypoint: []string{"/metrics-server"}, User: "1000"}, layer)
}

// peerLayer has one program of Peers.
func (b *Builder) peerLayer(path, program string) (v1.Layer, error) {
	t := newTree()
	if err := t.host(path, filepath.Join(b.Peers, program)); err != nil {
		return nil, fmt.Errorf("%w (made by: make control metrics-server)", err)
	}
	return t.layer()
}
