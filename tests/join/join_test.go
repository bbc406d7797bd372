// Package join has hosts join a cluster, with berth join and with kubeadm join,
// and asserts that they become nodes with certificates of the cluster, which
// are renewed.
package join

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/berth-io/berth/tests/cluster"
	"github.com/berth-io/berth/tests/harness"
)

const (
	server  = "10.203.0.1:6443"
	timeout = 3 * time.Minute
)

func TestHostsJoinAClusterAndRenewTheirCertificates(t *testing.T) {
	cluster.Need(t)
	c := cluster.New(t, cluster.Config{
		NoDNS: true, Nodes: []cluster.NodeConfig{{Kind: cluster.Host}, {Kind: cluster.Host}},
		// So short that certificates are renewed within half a minute: the signer
		// lets them begin five minutes before.
		Args: map[string][]string{cluster.ControllerManager: {"--cluster-signing-duration=75s"}},
	})
	go approve(t, c)
	hash := caHash(t, c)
	first, second := newHost(t, c, c.Nodes[0]), newHost(t, c, c.Nodes[1])

	for what, args := range map[string][]string{
		"a wrong hash":         {"--token", cluster.BootstrapToken, "--discovery-token-ca-cert-hash", "sha256:" + strings.Repeat("0", 64)},
		"a wrong secret":       {"--token", cluster.BootstrapToken[:22] + "e", "--discovery-token-ca-cert-hash", hash},
		"a token that is none": {"--token", "nobody" + cluster.BootstrapToken[6:], "--discovery-token-ca-cert-hash", hash},
	} {
		t.Run("with "+what+" nothing is written", func(t *testing.T) {
			out, err := first.run(append([]string{"berth", "join", server, "--timeout", "5s"}, args...)...)
			if err == nil {
				t.Errorf("it joined: %s", out)
			}
			if files := first.files(t); len(files) > 0 {
				t.Errorf("%s\nleft %v", out, files)
			}
		})
	}
	t.Run("berth join", func(t *testing.T) {
		out, err := first.run("berth", "join", server, "--token", cluster.BootstrapToken, "--discovery-token-ca-cert-hash", hash)
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		first.startService(t)
		first.checkNode(t)
	})
	t.Run("kubeadm join", func(t *testing.T) {
		second.startService(t) // as the unit does: it waits for kubeadm's files
		out, err := second.run("kubeadm", "join", server, "--token", cluster.BootstrapToken, "--discovery-token-ca-cert-hash", hash,
			"--cri-socket", "unix://"+second.n.RunDir+"/cri.sock", "--ignore-preflight-errors=all")
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		second.checkNode(t)
	})
	for _, h := range []*host{first, second} {
		t.Run("the certificates of "+h.n.Name+" are renewed", h.checkRenewal)
	}
}

// approve approves what nodes ask for serving certificates, which nobody else
// does.
func approve(t *testing.T, c *cluster.Cluster) {
	for t.Context().Err() == nil {
		list, err := c.Client.CertificatesV1().CertificateSigningRequests().List(t.Context(), metav1.ListOptions{
			FieldSelector: "spec.signerName=" + certificatesv1.KubeletServingSignerName,
		})
		if err == nil {
			for _, r := range list.Items {
				if len(r.Status.Conditions) > 0 {
					continue
				}
				r.Status.Conditions = append(r.Status.Conditions, certificatesv1.CertificateSigningRequestCondition{
					Type: certificatesv1.CertificateApproved, Status: corev1.ConditionTrue, Reason: "Test", Message: "approved by the test",
				})
				// One that does not work is tried again.
				_, _ = c.Client.CertificatesV1().CertificateSigningRequests().UpdateApproval(t.Context(), r.Name, &r, metav1.UpdateOptions{})
			}
		}
		time.Sleep(200 * time.Millisecond)
	}
}

func caHash(t *testing.T, c *cluster.Cluster) string {
	t.Helper()
	return fmt.Sprintf("sha256:%x", sha256.Sum256(readCertificate(t, c.CA()).RawSubjectPublicKeyInfo))
}

func readCertificate(t *testing.T, file string) *x509.Certificate {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(data)
	if block == nil {
		t.Fatalf("%s has no PEM", file)
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// host is a host with /etc, /usr/bin and /var/lib/kubelet of its own.
type host struct {
	*cluster.Cluster
	n   *cluster.Node
	pid string // of the process that keeps its mount and UTS namespaces
}

// private makes what the host has of its own, over the machine's.
const private = `hostname "$0"
for dir in /etc /usr/bin /var/lib; do
	mkdir -p $1/upper$dir $1/work$dir
	mount -t overlay -o lowerdir=$dir,upperdir=$1/upper$dir,workdir=$1/work$dir overlay $dir
done
mkdir -p /var/lib/kubelet /etc/kubernetes
mount --bind $2 /var/lib/kubelet
ln -s $3/berth /usr/bin/kubelet
[ ! -d /run/systemd ] || mount -t tmpfs tmpfs /run/systemd # the machine's is not to start anything
mount --make-rshared /
echo $$ >$1/pid.part
mv $1/pid.part $1/pid
exec sleep infinity
`

func newHost(t *testing.T, c *cluster.Cluster, n *cluster.Node) *host {
	t.Helper()
	h := &host{Cluster: c, n: n}
	config := map[string]any{
		"rootDir": n.Dir + "/root", "runDir": n.RunDir, "podLogsDir": n.Dir + "/pods", "containerLogsDir": n.Dir + "/containers",
		"manifestDir": n.ManifestDir(), "cniConfDir": n.Dir + "/cni", "cniBinDirs": []string{c.Config.Bin}, "cgroupRoot": n.CgroupRoot(),
		"shimBinary": c.Config.Bin + "/berth-shim", "runtimeBinary": c.Config.Bin + "/runc",
		"criSocket": n.RunDir + "/cri.sock", "apiSocket": n.RunDir + "/berth.sock", "certsDirs": []string{n.CertsDir()},
		"nri": map[string]any{"enable": false},
	}
	data, err := yaml.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	etc := n.Dir + "/upper/etc/berth"
	if err := os.MkdirAll(etc, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(etc+"/berth.yaml", data, 0o644); err != nil {
		t.Fatal(err)
	}
	err = c.Run(n.Name, n.Name+"-host", "unshare", "--mount", "--uts", "--propagation", "private",
		"sh", "-euc", private, n.Name, n.Dir, n.KubeletDir(), c.Config.Bin)
	if err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, timeout, "the host has its directories", func() string {
		pid, err := os.ReadFile(n.Dir + "/pid")
		if err != nil {
			return err.Error()
		}
		h.pid = strings.TrimSpace(string(pid))
		return ""
	})
	return h
}

// enter is a command line prefix that runs a program on the host, where
// /usr/bin/kubelet goes before the stock one.
func (h *host) enter() []string {
	return []string{
		"nsenter", "--mount=/proc/" + h.pid + "/ns/mnt", "--uts=/proc/" + h.pid + "/ns/uts", "--",
		"env", "PATH=/usr/sbin:/usr/bin:/sbin:/bin:" + h.Config.Bin + ":" + h.Config.Bin + "/peers",
	}
}

func (h *host) run(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*timeout)
	defer cancel()
	cmd := h.CommandOn(ctx, h.n.Name, append(h.enter(), args...)...)
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// service is what kubelet.service does.
const service = `while :; do
	KUBELET_KUBEADM_ARGS=
	[ ! -e /var/lib/kubelet/kubeadm-flags.env ] || . /var/lib/kubelet/kubeadm-flags.env
	kubelet --bootstrap-kubeconfig=/etc/kubernetes/bootstrap-kubelet.conf --kubeconfig=/etc/kubernetes/kubelet.conf \
		--config=/var/lib/kubelet/config.yaml $KUBELET_KUBEADM_ARGS || true
	sleep 1
done
`

func (h *host) startService(t *testing.T) {
	t.Helper()
	if err := h.Run(h.n.Name, h.n.Name+"-kubelet", append(h.enter(), "sh", "-c", service)...); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			log, err := exec.Command("tail", "-n", "30", filepath.Join(h.Dir, "logs", h.n.Name+"-kubelet.log")).Output()
			t.Logf("end of the log of %s: %v\n%s", h.n.Name, err, log)
		}
	})
}

// files are those that joining writes.
func (h *host) files(t *testing.T) []string {
	t.Helper()
	var files []string
	for _, dir := range []string{h.n.Dir + "/upper/etc/kubernetes", h.n.KubeletDir()} {
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err == nil && !d.IsDir() {
				files = append(files, path)
			}
			return err
		})
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
	}
	return files
}

// certificate is the newest one for a purpose: client or server.
func (h *host) certificate(t *testing.T, name string) *x509.Certificate {
	t.Helper()
	dir := filepath.Join(h.n.KubeletDir(), "pki")
	to, err := os.Readlink(filepath.Join(dir, "kubelet-"+name+"-current.pem"))
	if err != nil {
		t.Fatal(err)
	}
	return readCertificate(t, filepath.Join(dir, filepath.Base(to))) // the path is the host's
}

func (h *host) checkNode(t *testing.T) {
	t.Helper()
	if err := h.n.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	list, err := h.Client.CertificatesV1().CertificateSigningRequests().List(t.Context(), metav1.ListOptions{
		FieldSelector: "spec.signerName=" + certificatesv1.KubeAPIServerClientKubeletSignerName,
	})
	if err != nil {
		t.Fatal(err)
	}
	asked := false
	for _, r := range list.Items {
		block, _ := pem.Decode(r.Spec.Request)
		if block == nil {
			t.Fatalf("request %s has no PEM", r.Name)
		}
		if request, err := x509.ParseCertificateRequest(block.Bytes); err != nil || request.Subject.CommonName != "system:node:"+h.n.Name {
			continue
		}
		asked = asked || r.Spec.Username == "system:bootstrap:"+cluster.BootstrapToken[:6] && len(r.Status.Certificate) > 0
	}
	if !asked {
		t.Errorf("the node has not got its client certificate with the token: %d requests", len(list.Items))
	}
	harness.Eventually(t, timeout, "port 10250 has a certificate of the cluster", func() string { return h.serves(t) })
}

// serves verifies the certificate on port 10250 as the API server would.
func (h *host) serves(t *testing.T) string {
	t.Helper()
	conn, err := harness.Dialer("bc-"+h.Config.Name+"-cp")(t.Context(), "tcp", h.n.IP+":10250")
	if err != nil {
		return err.Error()
	}
	defer conn.Close()
	roots := x509.NewCertPool()
	roots.AddCert(readCertificate(t, h.CA()))
	client := tls.Client(conn, &tls.Config{RootCAs: roots, ServerName: h.n.IP})
	if err := client.HandshakeContext(t.Context()); err != nil {
		return err.Error()
	}
	if name := client.ConnectionState().PeerCertificates[0].Subject.CommonName; name != "system:node:"+h.n.Name {
		return "it is of " + name
	}
	return ""
}

// checkRenewal waits until both certificates are others than now, and asserts
// that the node is there with them.
func (h *host) checkRenewal(t *testing.T) {
	for _, name := range []string{"client", "server"} {
		before := h.certificate(t, name)
		harness.Eventually(t, 2*timeout, "there is another "+name+" certificate", func() string {
			if after := h.certificate(t, name); after.SerialNumber.Cmp(before.SerialNumber) == 0 {
				return "it is valid until " + after.NotAfter.String()
			}
			return ""
		})
	}
	renewed := time.Now()
	harness.Eventually(t, timeout, "the lease is renewed with it", func() string {
		lease, err := h.Client.CoordinationV1().Leases(corev1.NamespaceNodeLease).Get(t.Context(), h.n.Name, metav1.GetOptions{})
		if err != nil {
			return err.Error()
		}
		if lease.Spec.RenewTime.Time.Before(renewed) {
			return "it was renewed last at " + lease.Spec.RenewTime.String()
		}
		return ""
	})
	if err := h.n.WaitReady(t.Context()); err != nil {
		t.Error(err)
	}
	if reason := h.serves(t); reason != "" {
		t.Errorf("port 10250: %s", reason)
	}
}
