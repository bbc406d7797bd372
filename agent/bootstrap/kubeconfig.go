package bootstrap

import (
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/moby/sys/atomicwriter"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"k8s.io/client-go/transport"
	certutil "k8s.io/client-go/util/cert"

	"github.com/berth-io/berth/internal/failpoint"
)

// readKubeconfig reads the current context of a kubeconfig.
func readKubeconfig(path string) (*rest.Config, error) {
	rules := &clientcmd.ClientConfigLoadingRules{ExplicitPath: path}
	loaded, err := rules.Load()
	if err != nil {
		return nil, fmt.Errorf("kubeconfig %s: %w", path, err)
	}
	c, err := clientcmd.NewNonInteractiveClientConfig(*loaded, loaded.CurrentContext, &clientcmd.ConfigOverrides{}, rules).ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("kubeconfig %s: %w", path, err)
	}
	return c, nil
}

// whyInvalid says why a kubeconfig's client certificate cannot be used, nil
// where it can (pkg/kubelet/certificate/bootstrap, isClientConfigStillValid).
func whyInvalid(path string, now time.Time) error {
	c, err := readKubeconfig(path)
	if err != nil {
		return err
	}
	t, err := c.TransportConfig()
	if err != nil {
		return fmt.Errorf("kubeconfig %s: %w", path, err)
	}
	if _, err := transport.TLSConfigFor(t); err != nil { // reads the files into t
		return fmt.Errorf("kubeconfig %s: %w", path, err)
	}
	certs, err := certutil.ParseCertsPEM(t.TLS.CertData)
	if err != nil {
		return fmt.Errorf("client certificate of kubeconfig %s: %w", path, err)
	}
	for _, cert := range certs {
		if now.After(cert.NotAfter) {
			return fmt.Errorf("client certificate of kubeconfig %s: it has expired at %s", path, cert.NotAfter.Format(time.RFC3339))
		}
	}
	return nil
}

// writeKubeconfig writes the kubeconfig for the certificate in pem, with the
// names of clusters and users that the kubelet gives them (bootstrap.go,
// writeKubeconfigFromBootstrapping).
func writeKubeconfig(path string, c *rest.Config, pem string) error {
	cluster := &clientcmdapi.Cluster{Server: c.Host, InsecureSkipTLSVerify: c.Insecure, CertificateAuthority: c.CAFile}
	if c.CAFile == "" {
		cluster.CertificateAuthorityData = c.CAData
	}
	data, err := clientcmd.Write(clientcmdapi.Config{
		Clusters:       map[string]*clientcmdapi.Cluster{"default-cluster": cluster},
		AuthInfos:      map[string]*clientcmdapi.AuthInfo{"default-auth": {ClientCertificate: pem, ClientKey: pem}},
		Contexts:       map[string]*clientcmdapi.Context{"default-context": {Cluster: "default-cluster", AuthInfo: "default-auth", Namespace: "default"}},
		CurrentContext: "default-context",
	})
	if err != nil {
		return fmt.Errorf("encode the kubeconfig: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("write the kubeconfig: %w", err)
	}
	if err := atomicwriter.WriteFile(path, data, 0o600); err != nil {
		return fmt.Errorf("write the kubeconfig: %w", err)
	}
	failpoint.Hit("agent/kubeconfig-written")
	return nil
}
