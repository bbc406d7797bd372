package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// BootstrapToken lets a node join with TLS bootstrap.
const BootstrapToken = "berth0.0123456789abcdef"

// kubeadmConfig is for kubeadm's phases, and for nodes that join by kubeadm.
const kubeadmConfig = `apiVersion: kubeadm.k8s.io/v1beta4
kind: InitConfiguration
localAPIEndpoint: {advertiseAddress: %[1]s, bindPort: 6443}
nodeRegistration: {name: cp}
bootstrapTokens: [{token: %[2]s, ttl: 0s}]
---
apiVersion: kubeadm.k8s.io/v1beta4
kind: ClusterConfiguration
kubernetesVersion: %[3]s
certificatesDir: %[4]s
controlPlaneEndpoint: %[1]s:6443
encryptionAlgorithm: ECDSA-P256
networking: {serviceSubnet: %[5]s, podSubnet: %[6]s, dnsDomain: %[7]s}
---
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
cgroupDriver: cgroupfs
failCgroupV1: false
failSwapOn: false
serverTLSBootstrap: true
evictionHard: {memory.available: 50Mi}
imageGCHighThresholdPercent: 100
clusterDNS: [%[8]s]
clusterDomain: %[7]s
`

func (c *Cluster) pki(name string) string { return filepath.Join(c.Dir, "pki", name) }
func (c *Cluster) kubeconfig(who string) string {
	return filepath.Join(c.Dir, "kubeconfig", who+".conf")
}
func (c *Cluster) kubeadmFile() string { return filepath.Join(c.Dir, "kubeadm.yaml") }

// Kubeconfig is the file of the cluster's administrator. It is good on the
// cluster's hosts.
func (c *Cluster) Kubeconfig() string { return c.kubeconfig("admin") }

// makeCertificates makes the authorities, certificates and kubeconfigs that
// kubeadm init makes.
func (c *Cluster) makeCertificates(ctx context.Context) error {
	version, err := c.kubeadm(ctx, "version", "--output=short")
	if err != nil {
		return err
	}
	config := fmt.Sprintf(kubeadmConfig, apiServerIP, BootstrapToken, strings.TrimSpace(version), c.pki(""), serviceSubnet, podSubnet, dnsDomain, dnsIP)
	if err := os.WriteFile(c.kubeadmFile(), []byte(config), 0o600); err != nil {
		return err
	}
	if _, err := c.kubeadm(ctx, "init", "phase", "certs", "all", "--config", c.kubeadmFile()); err != nil {
		return err
	}
	_, err = c.kubeadm(ctx, "init", "phase", "kubeconfig", "all", "--config", c.kubeadmFile(), "--kubeconfig-dir", filepath.Dir(c.kubeconfig("")))
	return err
}

// makeKubeconfig makes one of a user signed by the cluster's authority.
func (c *Cluster) makeKubeconfig(ctx context.Context, file, user string, groups ...string) error {
	args := []string{"kubeconfig", "user", "--config", c.kubeadmFile(), "--client-name", user}
	for _, g := range groups {
		args = append(args, "--org", g)
	}
	out, err := c.kubeadm(ctx, args...)
	if err != nil {
		return err
	}
	return os.WriteFile(file, []byte(out), 0o600)
}

func (c *Cluster) kubeadm(ctx context.Context, args ...string) (string, error) {
	return output(c.Command(ctx, append([]string{"kubeadm"}, args...)...))
}

// CA is the file of the authority that signs the cluster's certificates.
func (c *Cluster) CA() string { return c.pki("ca.crt") }

// Command prepares a program on the control plane's host, with the binaries in
// its path and the administrator's kubeconfig.
func (c *Cluster) Command(ctx context.Context, args ...string) *exec.Cmd {
	return c.CommandOn(ctx, controlPlane, args...)
}

// CommandOn is Command for another host.
func (c *Cluster) CommandOn(ctx context.Context, host string, args ...string) *exec.Cmd {
	line := append(c.InHost(host), args...)
	cmd := exec.CommandContext(ctx, line[0], line[1:]...)
	cmd.Env = c.environ()
	return cmd
}

// Kubectl runs kubectl as the administrator and returns what it printed.
func (c *Cluster) Kubectl(ctx context.Context, args ...string) (string, error) {
	return output(c.Command(ctx, append([]string{"kubectl"}, args...)...))
}

// output is that of a command; its error has what the command said.
func output(cmd *exec.Cmd) (string, error) {
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		said := ""
		if errors.As(err, &exit) {
			said = ": " + strings.TrimSpace(string(exit.Stderr))
		}
		return string(out), fmt.Errorf("%s: %w%s", strings.Join(cmd.Args[3:], " "), err, said)
	}
	return string(out), nil
}
