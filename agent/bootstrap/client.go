package bootstrap

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/certificate"
	"k8s.io/client-go/util/connrotation"
)

// clientPair is the name that the client certificate's files start with.
const clientPair = "kubelet-client"

// clientCertificate is a client certificate that is asked for and, with
// rotation, renewed.
type clientCertificate struct {
	config   Config
	identity *Identity
	store    certificate.Store
	path     string   // of the newest pair
	renew    *renewer // nil: one certificate is asked for, and never renewed
	pair     atomic.Pointer[tls.Certificate]
}

// newClientCertificate follows pkg/kubelet/certificate/bootstrap,
// LoadClientConfig: a kubeconfig that can be used is used; else it is written
// anew, for the certificate that the bootstrap kubeconfig will get.
func (i *Identity) newClientCertificate() error {
	c := i.config
	store, err := certificate.NewFileStore(clientPair, c.CertDir, c.CertDir, "", "")
	if err != nil {
		return fmt.Errorf("the client certificates in %s: %w", c.CertDir, err)
	}
	cc := &clientCertificate{config: c, identity: i, store: store, path: store.CurrentPath()}
	base, err := cc.readOrWrite()
	if err != nil {
		return err
	}
	if c.Rotate {
		cc.renew = &renewer{name: "client", log: c.Log, make: func(ctx context.Context) (certificate.Manager, error) { return cc.manager(ctx, base) }}
		if err := cc.renew.prepare(); err != nil {
			return fmt.Errorf("the client certificates in %s: %w", c.CertDir, err)
		}
		cc.pair.Store(cc.renew.current())
	}
	client, err := i.transport(rest.AnonymousClientConfig(base), cc)
	if err != nil {
		return fmt.Errorf("kubeconfig %s: %w", c.Kubeconfig, err)
	}
	i.client, i.clients = client, cc
	return nil
}

// readOrWrite returns the kubeconfig's content, which says where the API server
// is also while there is no certificate.
func (c *clientCertificate) readOrWrite() (*rest.Config, error) {
	path, bootstrap := c.config.Kubeconfig, c.config.BootstrapKubeconfig
	if bootstrap == "" {
		return readKubeconfig(path)
	}
	invalid := whyInvalid(path, time.Now())
	if invalid == nil {
		return readKubeconfig(path)
	}
	from, err := readKubeconfig(bootstrap)
	if err != nil {
		// The certificate has expired and nobody has laid down new credentials:
		// pods go on, and the file is looked for until it is there.
		if old, unreadable := readKubeconfig(path); unreadable == nil && errors.Is(err, fs.ErrNotExist) {
			return rest.AnonymousClientConfig(old), nil
		}
		return nil, errors.Join(invalid, fmt.Errorf("a certificate cannot be asked for: %w", err))
	}
	if !errors.Is(invalid, fs.ErrNotExist) {
		c.config.Log.Warn("the kubeconfig is of no use: writing a new one", "error", invalid, "from", bootstrap)
	}
	if err := writeKubeconfig(path, from, c.path); err != nil {
		return nil, err
	}
	fresh := rest.AnonymousClientConfig(from)
	fresh.CertFile, fresh.KeyFile = c.path, c.path
	return fresh, nil
}

// current is the certificate in use, nil where there is none that holds.
func (c *clientCertificate) current() *tls.Certificate {
	pair := c.pair.Load()
	if pair == nil || pair.Leaf != nil && time.Now().After(pair.Leaf.NotAfter) {
		return nil
	}
	return pair
}

// use takes a new certificate; connections made with the old one are closed.
func (c *clientCertificate) use(pair *tls.Certificate) {
	c.pair.Store(pair)
	c.config.Log.Info("new client certificate: closing connections to the API server", "expires", pair.Leaf.NotAfter)
	c.identity.dialer.CloseAll()
}

// run asks for certificates until ctx ends.
func (c *clientCertificate) run(ctx context.Context) error {
	if c.renew != nil {
		return c.renew.run(ctx)
	}
	if c.current() == nil {
		if err := c.requestOnce(ctx); err != nil {
			return err
		}
	} else if err := c.dropKey(); err != nil {
		return err
	}
	<-ctx.Done()
	return ctx.Err()
}

// manager is that of pkg/kubelet/certificate, NewKubeletClientCertificateManager.
func (c *clientCertificate) manager(ctx context.Context, base *rest.Config) (certificate.Manager, error) {
	store, err := certificate.NewFileStore(clientPair, c.config.CertDir, c.config.CertDir, base.CertFile, base.KeyFile)
	if err != nil {
		return nil, err
	}
	return certificate.NewManager(&certificate.Config{
		Ctx:         &ctx,
		ClientsetFn: func(*tls.Certificate) (kubernetes.Interface, error) { return c.signingClient() },
		Template:    &x509.CertificateRequest{Subject: subject(c.config.NodeName)},
		SignerName:  certificatesv1.KubeAPIServerClientKubeletSignerName,
		GetUsages:   certificate.DefaultKubeletClientGetUsages,
		// A kubeconfig with an embedded certificate, as kubeadm init writes for
		// its own host, is where rotation starts.
		BootstrapCertificatePEM: base.CertData,
		BootstrapKeyPEM:         base.KeyData,
		CertificateStore:        notifying{Store: store, updated: c.use},
		CertificateRenewFailure: c.config.ClientFailures,
	})
}

func subject(node string) pkix.Name {
	return pkix.Name{CommonName: "system:node:" + node, Organization: []string{"system:nodes"}}
}

// signingClient asks with the certificate while that holds. After that only the
// bootstrap kubeconfig helps, which is read each time: whoever has let a node's
// certificate expire can put a new one there, and nothing need be restarted.
func (c *clientCertificate) signingClient() (kubernetes.Interface, error) {
	if c.current() != nil {
		return c.clientset(c.identity.client)
	}
	if c.config.BootstrapKubeconfig == "" {
		return nil, fmt.Errorf("the client certificate %s has expired, and no bootstrap kubeconfig is configured to ask for another", c.path)
	}
	from, err := readKubeconfig(c.config.BootstrapKubeconfig)
	if err != nil {
		return nil, fmt.Errorf("there is no client certificate, and none can be asked for: %w (a bootstrap kubeconfig there is used at once: see kubeadm token create)", err)
	}
	return c.clientset(from)
}

func (c *clientCertificate) clientset(from *rest.Config) (kubernetes.Interface, error) {
	from = rest.CopyConfig(from)
	setContentType(from, c.config.ContentType)
	from.UserAgent = c.config.UserAgent
	client, err := kubernetes.NewForConfig(from)
	if err != nil {
		return nil, fmt.Errorf("make a client to ask for certificates: %w", err)
	}
	return client, nil
}

// notifying is a store that tells of what it was given.
type notifying struct {
	certificate.Store
	updated func(*tls.Certificate)
}

func (n notifying) Update(cert, key []byte) (*tls.Certificate, error) {
	pair, err := n.Store.Update(cert, key)
	if err != nil {
		return nil, err
	}
	n.updated(pair)
	return pair, nil
}

func newDialer() *connrotation.Dialer {
	return connrotation.NewDialer((&net.Dialer{Timeout: 30 * time.Second, KeepAlive: 30 * time.Second}).DialContext)
}

// transport makes client show the certificate that is current when it connects
// (pkg/kubelet/certificate, UpdateTransport).
func (i *Identity) transport(client *rest.Config, cc *clientCertificate) (*rest.Config, error) {
	config, err := rest.TLSConfigFor(client)
	if err != nil {
		return nil, err
	}
	if config == nil {
		config = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	config.Certificates = nil
	config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		if pair := cc.current(); pair != nil {
			return pair, nil
		}
		return &tls.Certificate{}, nil
	}
	client = rest.CopyConfig(client)
	client.Transport = utilnet.SetTransportDefaults(&http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		TLSHandshakeTimeout: 10 * time.Second,
		TLSClientConfig:     config,
		MaxIdleConnsPerHost: 25,
		DialContext:         i.dialer.DialContext,
	})
	client.TLSClientConfig = rest.TLSClientConfig{} // the transport has them
	return client, nil
}
