package cluster

import (
	"context"
	"fmt"
	"path/filepath"
	"syscall"
	"time"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/berth-io/berth/tests/harness"
)

const (
	controlTimeout = 3 * time.Minute
	etcdURL        = "http://127.0.0.1:2379"
)

// Parts of the control plane, as Stop and Start know them.
const (
	Etcd              = "etcd"
	APIServer         = "kube-apiserver"
	ControllerManager = "kube-controller-manager"
	Scheduler         = "kube-scheduler"
)

// command is the command line of a part of the control plane.
func (c *Cluster) command(part string) []string {
	kubeconfigs := func(who string) []string {
		file := c.kubeconfig(who)
		return []string{"--kubeconfig=" + file, "--authentication-kubeconfig=" + file, "--authorization-kubeconfig=" + file,
			"--bind-address=127.0.0.1", "--leader-elect=false", "--kube-api-qps=500", "--kube-api-burst=500"}
	}
	frontProxy := []string{
		"--requestheader-client-ca-file=" + c.pki("front-proxy-ca.crt"),
		"--requestheader-allowed-names=front-proxy-client",
		"--requestheader-extra-headers-prefix=X-Remote-Extra-",
		"--requestheader-group-headers=X-Remote-Group",
		"--requestheader-username-headers=X-Remote-User",
	}
	args := []string{filepath.Join(c.peers(), part)}
	switch part {
	case Etcd:
		args = append(args, "--data-dir="+filepath.Join(c.Dir, "etcd"), "--listen-client-urls="+etcdURL, "--advertise-client-urls="+etcdURL,
			"--listen-peer-urls=http://127.0.0.1:2380", "--unsafe-no-fsync")
	case APIServer:
		args = append(args,
			"--etcd-servers="+etcdURL, "--advertise-address="+apiServerIP, "--bind-address=0.0.0.0", "--secure-port=6443",
			"--service-cluster-ip-range="+serviceSubnet, "--allow-privileged=true",
			"--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction", "--enable-bootstrap-token-auth=true",
			"--client-ca-file="+c.pki("ca.crt"), "--tls-cert-file="+c.pki("apiserver.crt"), "--tls-private-key-file="+c.pki("apiserver.key"),
			"--kubelet-client-certificate="+c.pki("apiserver-kubelet-client.crt"), "--kubelet-client-key="+c.pki("apiserver-kubelet-client.key"),
			"--kubelet-preferred-address-types=InternalIP", "--enable-aggregator-routing=true",
			"--service-account-key-file="+c.pki("sa.pub"), "--service-account-signing-key-file="+c.pki("sa.key"),
			"--service-account-issuer=https://kubernetes.default.svc."+dnsDomain,
			"--proxy-client-cert-file="+c.pki("front-proxy-client.crt"), "--proxy-client-key-file="+c.pki("front-proxy-client.key"))
		args = append(args, frontProxy...)
	case ControllerManager:
		args = append(args, kubeconfigs("controller-manager")...)
		args = append(args,
			"--service-account-private-key-file="+c.pki("sa.key"), "--root-ca-file="+c.pki("ca.crt"), "--client-ca-file="+c.pki("ca.crt"),
			"--requestheader-client-ca-file="+c.pki("front-proxy-ca.crt"),
			"--cluster-signing-cert-file="+c.pki("ca.crt"), "--cluster-signing-key-file="+c.pki("ca.key"),
			"--allocate-node-cidrs=true", "--cluster-cidr="+podSubnet, "--service-cluster-ip-range="+serviceSubnet,
			"--use-service-account-credentials=true", "--controllers=*,bootstrapsigner,tokencleaner")
	case Scheduler:
		args = append(args, kubeconfigs("scheduler")...)
	}
	return append(args, c.Config.Args[part]...)
}

// Start runs a part of the control plane that was stopped, without waiting for it.
func (c *Cluster) Start(part string) error { return c.start(controlPlane, part, c.command(part)...) }

// Stop ends a part of the control plane, or what Run runs.
func (c *Cluster) Stop(name string, signal syscall.Signal) error { return c.stop(name, signal) }

// Run runs a program on a host until it ends or the cluster goes. Its log is
// logs/NAME.log in the cluster's directory.
func (c *Cluster) Run(host, name string, args ...string) error { return c.start(host, name, args...) }

// startControlPlane returns when the API server is ready; the others find it.
func (c *Cluster) startControlPlane(ctx context.Context) error {
	for _, part := range []string{Etcd, APIServer, ControllerManager, Scheduler} {
		if err := c.Start(part); err != nil {
			return err
		}
	}
	client, err := c.newClient("super-admin")
	if err != nil {
		return err
	}
	c.Client = client
	return c.eventually(ctx, controlTimeout, []string{Etcd, APIServer}, func(ctx context.Context) error {
		_, err := client.Discovery().RESTClient().Get().AbsPath("/readyz").DoRaw(ctx)
		return err
	})
}

// RESTConfig is that of the administrator, who is connected from within the
// control plane's network.
func (c *Cluster) RESTConfig() (*rest.Config, error) { return c.restConfig("admin") }

func (c *Cluster) restConfig(who string) (*rest.Config, error) {
	cfg, err := clientcmd.BuildConfigFromFlags("", c.kubeconfig(who))
	if err != nil {
		return nil, err
	}
	cfg.Dial = harness.Dialer(c.netns(controlPlane))
	cfg.QPS = -1 // no limit
	return cfg, nil
}

func (c *Cluster) newClient(who string) (kubernetes.Interface, error) {
	cfg, err := c.restConfig(who)
	if err != nil {
		return nil, err
	}
	return kubernetes.NewForConfig(cfg)
}

// bindRoles gives access to those whom kubeadm init gives it while it waits for
// the API server, and lets nodes join.
func (c *Cluster) bindRoles(ctx context.Context) error {
	for _, b := range []struct{ role, kind, subject string }{
		{"cluster-admin", rbacv1.GroupKind, "kubeadm:cluster-admins"},
		// kubeadm's certificate of the API server's kubelet client has no
		// group since 1.29, so that its user needs a binding of its own.
		{"system:kubelet-api-admin", rbacv1.UserKind, "kube-apiserver-kubelet-client"},
	} {
		binding := &rbacv1.ClusterRoleBinding{
			ObjectMeta: metav1.ObjectMeta{Name: "test:" + b.subject},
			RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: b.role},
			Subjects:   []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: b.kind, Name: b.subject}},
		}
		if _, err := c.Client.RbacV1().ClusterRoleBindings().Create(ctx, binding, metav1.CreateOptions{}); err != nil {
			return fmt.Errorf("bind %s to %s: %w", b.subject, b.role, err)
		}
	}
	var err error
	if c.Client, err = c.newClient("admin"); err != nil {
		return err
	}
	for _, phase := range []string{"upload-config", "bootstrap-token"} {
		args := []string{"init", "phase", phase, "--config", c.kubeadmFile(), "--kubeconfig", c.kubeconfig("admin")}
		if phase == "upload-config" {
			args = append(args[:3], append([]string{"all"}, args[3:]...)...)
		}
		if _, err := c.kubeadm(ctx, args...); err != nil {
			return err
		}
	}
	return nil
}
