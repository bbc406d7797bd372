// Package join makes a host a node of a cluster: it finds out which cluster to
// trust, and writes the files that the kubelet's unit starts with, where kubeadm
// puts them. It knows nothing of the node itself.
package join

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/moby/sys/atomicwriter"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/berth-io/berth/agent/kubeletconfig"
)

// Config of a join.
type Config struct {
	Discovery
	// NodeName is the node's, where it is not the host's name.
	NodeName string
	// KubernetesDir is /etc/kubernetes, KubeletDir /var/lib/kubelet.
	KubernetesDir, KubeletDir string
	// DryRun writes nothing and says what would be written.
	DryRun bool
	// Service starts the node, nil: the caller's user does. Out is for progress.
	Service Service
	Out     io.Writer
}

// Service is the service manager's part.
type Service interface {
	// Start starts the node's unit, now and when the host boots.
	Start(ctx context.Context) error
	// Stop undoes Start.
	Stop(ctx context.Context) error
}

// file is one that is to be written.
type file struct {
	path string
	mode fs.FileMode
	data []byte
}

// The paths are kubeadm's (cmd/kubeadm/app/constants), which it finds again at
// kubeadm reset and upgrade.
func (c *Config) bootstrapPath() string {
	return filepath.Join(c.KubernetesDir, "bootstrap-kubelet.conf")
}
func (c *Config) kubeconfigPath() string { return filepath.Join(c.KubernetesDir, "kubelet.conf") }
func (c *Config) caPath() string         { return filepath.Join(c.KubernetesDir, "pki", "ca.crt") }
func (c *Config) configPath() string     { return filepath.Join(c.KubeletDir, "config.yaml") }
func (c *Config) flagsPath() string      { return filepath.Join(c.KubeletDir, "kubeadm-flags.env") }

// bootstrapTimeout is how long the node has to get its certificate.
const bootstrapTimeout = 5 * time.Minute

// Run joins. On failure nothing is left of it.
func Run(ctx context.Context, c Config) error {
	if err := c.validate(); err != nil {
		return err
	}
	if !c.DryRun {
		if _, err := os.Stat(c.kubeconfigPath()); err == nil {
			return fmt.Errorf("%s exists: this host belongs to a cluster already; kubeadm reset, or removing it, ends that", c.kubeconfigPath())
		}
	}
	fmt.Fprintf(c.Out, "looking for the cluster at %s\n", c.Server)
	cluster, err := c.Find(ctx)
	if err != nil {
		return err
	}
	config, err := c.kubeletConfig(ctx, cluster)
	if err != nil {
		return err
	}
	files, err := c.files(cluster, config)
	if err != nil {
		return err
	}
	if c.DryRun {
		for _, f := range files {
			fmt.Fprintf(c.Out, "would write %s (%d bytes, mode %s)\n", f.path, len(f.data), f.mode)
		}
		return nil
	}
	made, err := c.write(files)
	if err != nil {
		return errors.Join(err, remove(made))
	}
	return c.start(ctx, made)
}

func (c *Config) validate() error {
	if c.NodeName != "" {
		if errs := validation.IsDNS1123Subdomain(c.NodeName); len(errs) > 0 {
			return fmt.Errorf("--node-name: %q: %s", c.NodeName, strings.Join(errs, "; "))
		}
	}
	return c.Discovery.validate()
}

// kubeletConfig is the cluster's KubeletConfiguration, from the ConfigMap that
// kubeadm keeps for joining nodes, checked before anything is written.
func (c *Config) kubeletConfig(ctx context.Context, cluster Cluster) ([]byte, error) {
	client, err := kubernetes.NewForConfig(&rest.Config{
		Host: cluster.Server, BearerToken: c.Token, TLSClientConfig: rest.TLSClientConfig{CAData: cluster.CA}, Timeout: 30 * time.Second,
	})
	if err != nil {
		return nil, fmt.Errorf("API server %s: %w", cluster.Server, err)
	}
	const name = "kubelet-config"
	m, err := client.CoreV1().ConfigMaps(metav1.NamespaceSystem).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("get the ConfigMap kube-system/%s from %s: %w", name, cluster.Server, err)
	}
	text := m.Data["kubelet"]
	if text == "" {
		return nil, fmt.Errorf("the ConfigMap kube-system/%s has no key kubelet", name)
	}
	return []byte(text), nil
}

func (c *Config) files(cluster Cluster, config []byte) ([]file, error) {
	bootstrap, err := clientcmd.Write(clientcmdapi.Config{
		Clusters:       map[string]*clientcmdapi.Cluster{"kubernetes": {Server: cluster.Server, CertificateAuthorityData: cluster.CA}},
		AuthInfos:      map[string]*clientcmdapi.AuthInfo{"tls-bootstrap-token-user": {Token: c.Token}},
		Contexts:       map[string]*clientcmdapi.Context{"tls-bootstrap-token-user@kubernetes": {Cluster: "kubernetes", AuthInfo: "tls-bootstrap-token-user"}},
		CurrentContext: "tls-bootstrap-token-user@kubernetes",
	})
	if err != nil {
		return nil, fmt.Errorf("encode the bootstrap kubeconfig: %w", err)
	}
	var flags []string
	if c.NodeName != "" {
		flags = append(flags, "--hostname-override="+c.NodeName)
	}
	return []file{
		{c.caPath(), 0o644, cluster.CA},
		{c.configPath(), 0o644, config},
		{c.flagsPath(), 0o644, fmt.Appendf(nil, "KUBELET_KUBEADM_ARGS=%q\n", strings.Join(flags, " "))},
		{c.bootstrapPath(), 0o600, bootstrap},
	}, nil
}

// write returns the files that were not there before.
func (c *Config) write(files []file) (made []string, err error) {
	for _, f := range files {
		old, err := os.ReadFile(f.path)
		switch {
		case err == nil && bytes.Equal(old, f.data):
			continue
		case err == nil:
			return made, fmt.Errorf("%s is there already, with something else in it: kubeadm reset, or removing it, makes room", f.path)
		case !errors.Is(err, fs.ErrNotExist):
			return made, fmt.Errorf("read %s: %w", f.path, err)
		}
		if err := os.MkdirAll(filepath.Dir(f.path), 0o755); err != nil {
			return made, fmt.Errorf("write %s: %w", f.path, err)
		}
		made = append(made, f.path)
		if err := atomicwriter.WriteFile(f.path, f.data, f.mode); err != nil {
			return made, fmt.Errorf("write %s: %w", f.path, err)
		}
		fmt.Fprintf(c.Out, "wrote %s\n", f.path)
	}
	// The files are what a kubelet reads: it must like them.
	if _, err := kubeletconfig.Load(c.Args()); err != nil {
		return made, err
	}
	return made, nil
}

// Args are the kubelet's flags that lead to what was written; the unit has the
// same.
func (c *Config) Args() []string {
	return []string{"--bootstrap-kubeconfig=" + c.bootstrapPath(), "--kubeconfig=" + c.kubeconfigPath(), "--config=" + c.configPath(), "--root-dir=" + c.KubeletDir}
}

// start starts the node and waits for its certificate; the token is not needed
// any more then.
func (c *Config) start(ctx context.Context, made []string) error {
	if c.Service == nil {
		fmt.Fprintf(c.Out, "no systemd runs here: start the node with\n  berth kubelet %s\n", strings.Join(c.Args(), " "))
		return nil
	}
	certificate := filepath.Join(c.KubeletDir, "pki", "kubelet-client-current.pem")
	ctx, cancel := context.WithTimeout(ctx, bootstrapTimeout)
	defer cancel()
	err := c.Service.Start(ctx)
	if err == nil {
		fmt.Fprintf(c.Out, "started kubelet.service; waiting for the cluster to sign the node's certificate\n")
		err = await(ctx, certificate)
	}
	if err != nil {
		stopCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		return errors.Join(err, c.Service.Stop(stopCtx), remove(append(made, c.kubeconfigPath())))
	}
	if err := os.Remove(c.bootstrapPath()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the token, which is not needed any more: %w", err)
	}
	fmt.Fprintf(c.Out, "this host is a node of %s\n", c.Server)
	return nil
}

func await(ctx context.Context, path string) error {
	for {
		if _, err := os.Stat(path); err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the node has got no certificate: %s is not there (see journalctl -u kubelet, kubectl get csr)", path)
		case <-time.After(time.Second):
		}
	}
}

// remove takes back what a failed join wrote, the last first.
func remove(paths []string) error {
	var errs []error
	for _, path := range slices.Backward(paths) {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("take back what was written: %w", err))
		}
	}
	return errors.Join(errs...)
}
