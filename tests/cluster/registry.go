package cluster

import (
	"context"
	"errors"
	"net"
	"net/http"
	"path/filepath"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/layout"

	"github.com/berth-io/berth/tests/harness"
	"github.com/berth-io/berth/tests/images"
	"github.com/berth-io/berth/tests/registry"
)

const registryTimeout = 3 * time.Minute

// startRegistry returns when all images are there to be pulled.
func (c *Cluster) startRegistry(ctx context.Context) error {
	if len(c.Config.RegistryCommand) == 0 {
		l, err := c.listen()
		if err != nil {
			return err
		}
		c.closeReg = func() { l.Close() }
		if c.Registry, err = c.images(); err != nil {
			return err
		}
		go c.Registry.Serve(l)
		return nil
	}
	if err := c.start(controlPlane, "registry", c.Config.RegistryCommand...); err != nil {
		return err
	}
	client := http.Client{Transport: &http.Transport{DialContext: harness.Dialer(c.netns(controlPlane)), DisableKeepAlives: true}}
	return c.eventually(ctx, registryTimeout, []string{"registry"}, func(context.Context) error {
		resp, err := client.Get("http://" + registryListen + "/v2/")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return errors.New(resp.Status)
		}
		return nil
	})
}

// ServeRegistry serves the images of a cluster until it is killed: what
// RegistryCommand does.
func ServeRegistry(name string) error {
	c, err := newCluster(Config{Name: name})
	if err != nil {
		return err
	}
	if c.Config, err = readConfig(c.configFile()); err != nil {
		return err
	}
	r, err := c.images()
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", registryListen) // its parent put it on the right host
	if err != nil {
		return err
	}
	r.Serve(l)
	return errors.New("the registry's listener was closed")
}

func (c *Cluster) listen() (l net.Listener, err error) {
	err = harness.Inside(c.netns(controlPlane), func() (err error) {
		l, err = net.Listen("tcp", registryListen)
		return err
	})
	return l, err
}

// images are those that every cluster has, and those of Config.Images.
func (c *Cluster) images() (*registry.Registry, error) {
	r := registry.New()
	b := &images.Builder{Bin: filepath.Join(c.Config.Bin, "tests"), Peers: c.peers()}
	all, err := b.Cluster()
	if err != nil {
		return nil, err
	}
	for reference, img := range all {
		if err := r.PushReference(reference, img); err != nil {
			return nil, err
		}
	}
	if c.Config.Images == "" {
		return r, nil
	}
	return r, pushLayout(r, c.Config.Images)
}

// pushLayout pushes the images of a directory in OCI layout, whose index names
// their references.
func pushLayout(r *registry.Registry, dir string) error {
	index, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		return err
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		return err
	}
	for _, d := range manifest.Manifests {
		img, err := index.Image(d.Digest)
		if err != nil {
			return err
		}
		if err := r.PushReference(d.Annotations[images.ReferenceAnnotation], img); err != nil {
			return err
		}
	}
	return nil
}
