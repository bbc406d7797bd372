package bootstrap

import (
	"context"
	"crypto"
	"crypto/sha512"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"path/filepath"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/util/cert"
	"k8s.io/client-go/util/certificate"
	"k8s.io/client-go/util/certificate/csr"
	"k8s.io/client-go/util/keyutil"

	"github.com/berth-io/berth/internal/failpoint"
)

// keyFile holds the key of a certificate that was asked for and is not there
// yet, so that a restart asks for the same one.
const keyFile = "kubelet-client.key.tmp"

// signingTimeout is how long one attempt waits to be signed.
const signingTimeout = 15 * time.Minute

// requestOnce gets the one certificate of a node whose certificates are not
// rotated (pkg/kubelet/certificate/bootstrap, LoadClientCert). It is tried until
// ctx ends.
func (c *clientCertificate) requestOnce(ctx context.Context) error {
	pause := wait.Backoff{Duration: 2 * time.Second, Factor: 2, Jitter: 0.1, Steps: 6, Cap: time.Minute}
	for {
		attempt, cancel := context.WithTimeout(ctx, signingTimeout)
		err := c.request(attempt)
		cancel()
		if err == nil || ctx.Err() != nil {
			return ctx.Err()
		}
		if c.config.ClientFailures != nil {
			c.config.ClientFailures.Inc()
		}
		c.config.Log.Error("cannot get a client certificate yet", "error", err)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause.Step()):
		}
	}
}

func (c *clientCertificate) request(ctx context.Context) error {
	client, err := c.signingClient()
	if err != nil {
		return err
	}
	tmp := filepath.Join(c.config.CertDir, keyFile)
	keyPEM, _, err := keyutil.LoadOrGenerateKeyFile(tmp)
	if err != nil {
		return fmt.Errorf("the key of the client certificate %s: %w", tmp, err)
	}
	parsed, err := keyutil.ParsePrivateKeyPEM(keyPEM)
	if err != nil {
		return fmt.Errorf("the key of the client certificate %s: %w", tmp, err)
	}
	key, ok := parsed.(crypto.Signer)
	if !ok {
		return fmt.Errorf("the key of the client certificate %s: a %T cannot sign: remove it", tmp, parsed)
	}
	who := subject(c.config.NodeName)
	request, err := cert.MakeCSR(key, &who, nil, nil)
	if err != nil {
		return fmt.Errorf("make the request for a client certificate: %w", err)
	}
	usages := certificate.DefaultKubeletClientGetUsages(key)
	name, err := requestName(key.Public(), c.config.NodeName, usages)
	if err != nil {
		return err
	}
	asked, uid, err := csr.RequestCertificateWithContext(ctx, client, request, name, certificatesv1.KubeAPIServerClientKubeletSignerName, nil, usages, key)
	if err != nil {
		return fmt.Errorf("ask for a client certificate: %w", err)
	}
	signed, err := csr.WaitForCertificate(ctx, client, asked, uid)
	if err != nil {
		return fmt.Errorf("wait for the client certificate of request %s: %w", asked, err)
	}
	pair, err := c.store.Update(signed, keyPEM)
	if err != nil {
		return fmt.Errorf("store the client certificate: %w", err)
	}
	failpoint.Hit("agent/certificate-stored")
	if err := c.dropKey(); err != nil {
		return err
	}
	c.use(pair)
	return nil
}

// dropKey removes the key that has a certificate now.
func (c *clientCertificate) dropKey() error {
	if err := removeIfThere(filepath.Join(c.config.CertDir, keyFile)); err != nil {
		return fmt.Errorf("remove the key that has a certificate now: %w", err)
	}
	return nil
}

// requestName is the kubelet's (digestedName): the same key asks under the same
// name, and finds the request that it has made before.
func requestName(public crypto.PublicKey, node string, usages []certificatesv1.KeyUsage) (string, error) {
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return "", fmt.Errorf("encode the public key: %w", err)
	}
	who := subject(node)
	parts := [][]byte{der, []byte(who.CommonName)}
	for _, o := range who.Organization {
		parts = append(parts, []byte(o))
	}
	for _, u := range usages {
		parts = append(parts, []byte(u))
	}
	encode := base64.RawURLEncoding.EncodeToString
	hash := sha512.New512_256()
	for _, p := range parts {
		hash.Write([]byte(encode(p) + "|"))
	}
	return "node-csr-" + encode(hash.Sum(nil)), nil
}
