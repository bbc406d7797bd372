package bootstrap

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	v1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes"
	certutil "k8s.io/client-go/util/cert"
	"k8s.io/client-go/util/certificate"
	"k8s.io/client-go/util/keyutil"
	netutils "k8s.io/utils/net"

	"github.com/berth-io/berth/internal/failpoint"
)

// servingPair is the name that a serving certificate's files start with where
// the cluster signs it.
const servingPair = "kubelet-server"

// newServing picks where the serving certificate comes from (cmd/kubelet/app,
// InitializeTLS; pkg/kubelet/kubelet.go).
func (i *Identity) newServing() error {
	c := i.config
	switch {
	case c.ServerTLSBootstrap:
		s := &signedServing{identity: i}
		s.renew = &renewer{name: "serving", log: c.Log, make: s.manager}
		if err := s.renew.prepare(); err != nil {
			return fmt.Errorf("the serving certificates in %s: %w", c.CertDir, err)
		}
		i.serving = s
		return nil
	case c.TLSCertFile != "":
		i.serving = &fileServing{cert: c.TLSCertFile, key: c.TLSPrivateKeyFile, log: c.Log.Error}
	default:
		i.serving = &fileServing{
			cert: filepath.Join(c.CertDir, "kubelet.crt"), key: filepath.Join(c.CertDir, "kubelet.key"), selfSigned: c.NodeName, log: c.Log.Error,
		}
	}
	if _, err := i.serving.current(); err != nil {
		return err
	}
	return nil
}

// signedServing is a certificate that the cluster signs, and renews.
type signedServing struct {
	identity *Identity
	renew    *renewer
}

func (s *signedServing) current() (*tls.Certificate, error) {
	if pair := s.renew.current(); pair != nil {
		return pair, nil
	}
	return nil, errors.New("no serving certificate yet: the cluster has not signed the node's request (see kubectl get csr; kubectl certificate approve)")
}

func (s *signedServing) run(ctx context.Context) error { return s.renew.run(ctx) }

// manager is that of pkg/kubelet/certificate, NewKubeletServerCertificateManager.
func (s *signedServing) manager(ctx context.Context) (certificate.Manager, error) {
	c := s.identity.config
	store, err := certificate.NewFileStore(servingPair, c.CertDir, c.CertDir, c.TLSCertFile, c.TLSPrivateKeyFile)
	if err != nil {
		return nil, err
	}
	return certificate.NewManager(&certificate.Config{
		Ctx: &ctx,
		ClientsetFn: func(*tls.Certificate) (kubernetes.Interface, error) {
			return kubernetes.NewForConfig(s.identity.Client())
		},
		GetTemplate:             s.request,
		SignerName:              certificatesv1.KubeletServingSignerName,
		GetUsages:               certificate.DefaultKubeletServingGetUsages,
		CertificateStore:        store,
		CertificateRotation:     c.ServerRotation,
		CertificateRenewFailure: c.ServerFailures,
	})
}

// request is nil while the node has no client certificate to ask with: asking
// as nobody would only make the next attempt come later.
func (s *signedServing) request() *x509.CertificateRequest {
	if s.identity.clients != nil && s.identity.ClientCertificate() == nil {
		return nil
	}
	return servingRequest(s.identity.config.NodeName, s.identity.config.Addresses())
}

// servingRequest is nil while the node has no address: a signer refuses it
// (pkg/kubelet/certificate, newGetTemplateFn).
func servingRequest(node string, addresses []v1.NodeAddress) *x509.CertificateRequest {
	var names, ips []string
	for _, a := range addresses {
		ip := netutils.ParseIPSloppy(a.Address)
		switch a.Type {
		case v1.NodeHostName:
			if ip != nil {
				ips = append(ips, a.Address)
			} else if a.Address != "" {
				names = append(names, a.Address)
			}
		case v1.NodeInternalIP, v1.NodeExternalIP:
			if ip != nil {
				ips = append(ips, a.Address)
			}
		case v1.NodeInternalDNS, v1.NodeExternalDNS:
			if a.Address != "" {
				names = append(names, a.Address)
			}
		}
	}
	if len(ips) == 0 {
		return nil
	}
	slices.Sort(names)
	slices.Sort(ips)
	r := &x509.CertificateRequest{Subject: subject(node), DNSNames: slices.Compact(names)}
	for _, ip := range slices.Compact(ips) {
		r.IPAddresses = append(r.IPAddresses, netutils.ParseIPSloppy(ip))
	}
	return r
}

// lookInterval is how often files are looked at while clients connect.
const lookInterval = time.Second

// fileServing is a certificate in files, which are read again when they have
// changed. One that cannot be read leaves the one before in use. A self-signed
// one that is not there, or has expired, is made.
type fileServing struct {
	cert, key  string
	selfSigned string // the name it is made for; empty: it is the administrator's
	log        func(msg string, args ...any)

	mu     sync.Mutex
	pair   *tls.Certificate
	seen   [2]stamp
	looked time.Time
}

// stamp tells whether a file is the one that was read.
type stamp struct {
	modified time.Time
	size     int64
	inode    uint64
}

func (f *fileServing) run(ctx context.Context) error {
	<-ctx.Done()
	return ctx.Err()
}

func (f *fileServing) current() (*tls.Certificate, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.pair != nil && time.Since(f.looked) < lookInterval {
		return f.pair, nil
	}
	f.looked = time.Now()
	err := f.read()
	switch {
	case err == nil:
	case f.pair == nil:
		return nil, err
	default:
		f.log("the serving certificate has changed and cannot be read: the one before stays in use", "error", err)
	}
	return f.pair, nil
}

func (f *fileServing) read() error {
	if err := f.makeSelfSigned(); err != nil {
		return err
	}
	var now [2]stamp
	for n, path := range []string{f.cert, f.key} {
		info, err := os.Stat(path)
		if err != nil {
			return fmt.Errorf("the serving certificate: %w", err)
		}
		now[n] = stamp{modified: info.ModTime(), size: info.Size(), inode: inode(info)}
	}
	if f.pair != nil && now == f.seen {
		return nil
	}
	f.seen = now // one that cannot be read is told of once
	pair, err := tls.LoadX509KeyPair(f.cert, f.key)
	if err != nil {
		return fmt.Errorf("the serving certificate %s with the key %s: %w", f.cert, f.key, err)
	}
	f.pair = &pair
	return nil
}

func (f *fileServing) makeSelfSigned() error {
	if f.selfSigned == "" {
		return nil
	}
	if err := f.finishSelfSigned(); err != nil {
		return fmt.Errorf("finish the serving certificate: %w", err)
	}
	_, certErr := os.Stat(f.cert)
	_, keyErr := os.Stat(f.key)
	absent := errors.Is(certErr, fs.ErrNotExist) || errors.Is(keyErr, fs.ErrNotExist)
	expired := f.pair != nil && f.pair.Leaf != nil && time.Now().After(f.pair.Leaf.NotAfter)
	if !absent && !expired {
		return nil
	}
	cert, key, err := certutil.GenerateSelfSignedCertKey(f.selfSigned, nil, nil)
	if err != nil {
		return fmt.Errorf("make a self-signed serving certificate: %w", err)
	}
	if err := keyutil.WriteKey(f.key+unfinished, key); err != nil {
		return fmt.Errorf("write the key of the serving certificate: %w", err)
	}
	if err := certutil.WriteCert(f.cert+unfinished, cert); err != nil {
		return fmt.Errorf("write the serving certificate: %w", err)
	}
	failpoint.Hit("agent/serving-made")
	if err := os.Rename(f.key+unfinished, f.key); err != nil {
		return fmt.Errorf("put the key of the serving certificate in place: %w", err)
	}
	failpoint.Hit("agent/serving-key-placed")
	if err := os.Rename(f.cert+unfinished, f.cert); err != nil {
		return fmt.Errorf("put the serving certificate in place: %w", err)
	}
	return nil
}

// unfinished ends the names of a pair's files that are not in place yet.
const unfinished = ".new"

// finishSelfSigned puts the certificate in place whose key is, or drops what did
// not come so far: a key and the certificate of another are of no use.
func (f *fileServing) finishSelfSigned() error {
	switch _, err := os.Stat(f.key + unfinished); {
	case err == nil:
		return errors.Join(os.Remove(f.key+unfinished), removeIfThere(f.cert+unfinished))
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	if err := os.Rename(f.cert+unfinished, f.cert); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func removeIfThere(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
