// Package bootstrap owns the node's identity: the kubeconfig, the client
// certificate and the serving certificate, how they come to be (TLS bootstrap),
// and their rotation. Files are the kubelet's, in its formats and places, so that
// either can take over from the other. cmd/ makes one Identity; whoever talks to
// the API server does it through Identity.Client, and whoever serves TLS asks
// Identity.ServingCertificate.
package bootstrap

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"
	"golang.org/x/sync/errgroup"
	v1 "k8s.io/api/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/certificate"
	"k8s.io/client-go/util/connrotation"
	"k8s.io/klog/v2"
)

// Config of an Identity.
type Config struct {
	// NodeName is the node's name; certificates are for system:node:NAME.
	NodeName string
	// Kubeconfig says how to reach the API server. It is written where
	// BootstrapKubeconfig is used to get a certificate.
	Kubeconfig string
	// BootstrapKubeconfig has credentials that may ask for a client
	// certificate. Empty: Kubeconfig has all that is needed.
	BootstrapKubeconfig string
	// CertDir holds certificates and keys.
	CertDir string
	// Rotate renews the client certificate before it expires. Without it, one is
	// asked for where Kubeconfig has none that holds, and no other after it.
	Rotate bool

	// ServerTLSBootstrap asks the cluster for the serving certificate.
	ServerTLSBootstrap bool
	// TLSCertFile and TLSPrivateKeyFile are the serving certificate where
	// neither the cluster nor the node itself makes one.
	TLSCertFile, TLSPrivateKeyFile string
	// Addresses are those of the node, for the serving certificate. With none
	// yet, none is asked for.
	Addresses func() []v1.NodeAddress

	// ContentType, QPS and Burst are for requests to the API server.
	ContentType string
	QPS         float32
	Burst       int
	UserAgent   string

	// ClientFailures and ServerFailures count renewals that failed;
	// ServerRotation takes the seconds that a serving certificate lived. Any
	// may be nil.
	ClientFailures, ServerFailures certificate.Counter
	ServerRotation                 certificate.Histogram

	Log *slog.Logger
}

// Identity of the node towards its cluster.
type Identity struct {
	config  Config
	client  *rest.Config
	dialer  *connrotation.Dialer
	clients *clientCertificate // nil: the kubeconfig has all that is needed
	serving servingCertificate
}

// servingCertificate is where a serving certificate comes from.
type servingCertificate interface {
	current() (*tls.Certificate, error)
	run(ctx context.Context) error
}

// New reads what is there and writes what can be written without the API
// server: the kubeconfig that a certificate will be for, a self-signed serving
// certificate. It starts nothing and waits for nobody.
func New(c Config) (*Identity, error) {
	i := &Identity{config: c, dialer: newDialer()}
	if err := os.MkdirAll(c.CertDir, 0o755); err != nil {
		return nil, fmt.Errorf("make the directory of the node's certificates: %w", err)
	}
	if c.Rotate || c.BootstrapKubeconfig != "" && whyInvalid(c.Kubeconfig, time.Now()) != nil {
		if err := i.newClientCertificate(); err != nil {
			return nil, err
		}
	} else {
		client, err := readKubeconfig(c.Kubeconfig)
		if err != nil {
			return nil, err
		}
		client.Dial = i.dialer.DialContext
		i.client = client
	}
	i.tune(i.client)
	if err := i.newServing(); err != nil {
		return nil, err
	}
	return i, nil
}

// tune sets what requests look like, as the kubelet's do (cmd/kubelet/app,
// kubeClientConfigOverrides).
func (i *Identity) tune(r *rest.Config) {
	setContentType(r, i.config.ContentType)
	if i.config.QPS > 0 {
		r.QPS = i.config.QPS
	}
	if i.config.Burst > 0 {
		r.Burst = i.config.Burst
	}
	if i.config.UserAgent != "" {
		r.UserAgent = i.config.UserAgent
	}
}

func setContentType(r *rest.Config, contentType string) {
	r.ContentType = contentType
	if contentType == "application/vnd.kubernetes.protobuf" {
		r.AcceptContentTypes = contentType + ",application/json"
	}
}

// Client is how to reach the API server. Copies share one pool of connections,
// which is closed when the client certificate changes. Until the first
// certificate is there requests are anonymous: they fail with 401 or 403, and
// are to be tried again.
func (i *Identity) Client() *rest.Config { return rest.CopyConfig(i.client) }

// CloseConnections ends every connection to the API server, for who finds that
// one hangs. Requests in flight fail; the next one connects anew.
func (i *Identity) CloseConnections() { i.dialer.CloseAll() }

// ClientCertificate is the client certificate in use; nil: there is none, it has
// expired, or the kubeconfig has other credentials.
func (i *Identity) ClientCertificate() *tls.Certificate {
	if i.clients == nil {
		return nil
	}
	return i.clients.current()
}

// ServingCertificate is what the node's server shows. The error says why there
// is none yet.
func (i *Identity) ServingCertificate() (*tls.Certificate, error) { return i.serving.current() }

// Run gets and renews certificates until ctx ends. An API server that is away,
// or that refuses, is asked again with growing pauses; nothing makes Run end
// before ctx does.
func (i *Identity) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	if i.clients != nil {
		g.Go(func() error { return i.clients.run(ctx) })
	}
	g.Go(func() error { return i.serving.run(ctx) })
	if err := g.Wait(); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// renewer runs a certificate.Manager, and makes a new one when the clock was
// set: a manager sleeps until the hour it computed when it went to sleep, and a
// suspended or corrected clock makes that the wrong one.
type renewer struct {
	name  string
	log   *slog.Logger
	make  func(ctx context.Context) (certificate.Manager, error)
	inUse atomic.Pointer[certificate.Manager]
}

// How often the clock is looked at, and what counts as set.
const (
	clockInterval = time.Minute
	clockJump     = time.Minute
)

// prepare makes the first manager, so that current has what the disk has.
func (r *renewer) prepare() error {
	m, err := r.make(r.context(context.Background()))
	if err != nil {
		return err
	}
	r.inUse.Store(&m)
	return nil
}

func (r *renewer) context(ctx context.Context) context.Context {
	return klog.NewContext(ctx, logr.FromSlogHandler(r.log.Handler()).WithName(r.name))
}

func (r *renewer) current() *tls.Certificate { return (*r.inUse.Load()).Current() }

func (r *renewer) run(ctx context.Context) error {
	for ctx.Err() == nil {
		until, cancel := context.WithCancel(ctx)
		m, err := r.make(r.context(until))
		if err != nil {
			cancel()
			return err
		}
		r.inUse.Store(&m)
		m.Start()
		clockSet(ctx)
		m.Stop()
		cancel()
		if ctx.Err() == nil {
			r.log.Info("the clock was set: looking at certificates again", "certificate", r.name)
		}
	}
	return ctx.Err()
}

// clockSet returns when the wall clock has moved other than time has passed, or
// when ctx ends.
func clockSet(ctx context.Context) {
	tick := time.NewTicker(clockInterval)
	defer tick.Stop()
	last := time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		now := time.Now()
		// time.Now has both clocks; Round(0) leaves the wall clock alone.
		if drifted(now.Round(0).Sub(last.Round(0)), now.Sub(last)) {
			return
		}
		last = now
	}
}

// drifted compares how far the wall clock has moved with the time that has passed.
func drifted(wall, passed time.Duration) bool { return (wall - passed).Abs() > clockJump }
