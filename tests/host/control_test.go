package host

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/berth-io/berth/tests/harness"
	"github.com/berth-io/berth/tests/images"
	"github.com/berth-io/berth/tests/registry"
)

const (
	nodeName   = "vm"
	nodeIP     = "10.203.0.1"
	apiServer  = nodeIP + ":6443"
	token      = "berth0.0123456789abcdef"
	kubeDir    = "/etc/kubernetes"
	pkiDir     = "/etc/control/pki" // not the node's: kubeadm reset removes that
	configDir  = "/etc/control"
	adminFile  = configDir + "/super-admin.conf"
	unitDir    = "/etc/systemd/system"
	registryIP = nodeIP + ":5000"
)

// kubeletConfig is the cluster's, as joining nodes get it. The cgroup driver is
// kubeadm's default. So much is reserved that a pod can fill what is left.
const kubeletConfig = `
failSwapOn: false
memorySwap: {swapBehavior: LimitedSwap}
featureGates: {MemoryQoS: true}
memoryReservationPolicy: TieredReservation
memoryThrottlingFactor: 0.9
podPidsLimit: 200
systemReserved: {cpu: 100m, memory: 2900Mi, pid: "5000"}
kubeReserved: {cpu: 50m, memory: 100Mi}
systemReservedCgroup: /system.slice
kubeReservedCgroup: /kube.slice
enforceNodeAllocatable: [pods, system-reserved, kube-reserved]
evictionHard: {memory.available: 100Mi, nodefs.available: 1%, imagefs.available: 1%}
evictionPressureTransitionPeriod: 5s
imageGCHighThresholdPercent: 100
`

const kubeadmConfig = `apiVersion: kubeadm.k8s.io/v1beta4
kind: InitConfiguration
localAPIEndpoint: {advertiseAddress: ` + nodeIP + `, bindPort: 6443}
nodeRegistration: {name: cp}
bootstrapTokens: [{token: ` + token + `, ttl: 0s}]
---
apiVersion: kubeadm.k8s.io/v1beta4
kind: ClusterConfiguration
kubernetesVersion: %s
certificatesDir: ` + pkiDir + `
controlPlaneEndpoint: ` + apiServer + `
encryptionAlgorithm: ECDSA-P256
networking: {serviceSubnet: 10.96.0.0/16, podSubnet: 10.204.0.0/16}
---
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
`

// The control plane is not part of what the node reserves for itself.
const (
	networkUnit = `[Unit]
Before=network.target
DefaultDependencies=no
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/sbin/ip link add eth0 type dummy
ExecStart=/usr/sbin/ip addr add ` + nodeIP + `/24 dev eth0
ExecStart=/usr/sbin/ip link set eth0 up
ExecStart=/usr/sbin/sysctl -q net.ipv4.ip_forward=1
[Install]
WantedBy=multi-user.target
`
	controlUnit = `[Unit]
After=test-network.service
Requires=test-network.service
[Service]
Slice=control.slice
ExecStart=%s
Restart=always
[Install]
WantedBy=multi-user.target
`
	swapUnit = "[Swap]\nWhat=/swapfile\n[Install]\nWantedBy=multi-user.target\n"
	// An unused slice is not there.
	sliceUnit = "[Slice]\nCPUAccounting=yes\n[Install]\nWantedBy=multi-user.target\n"
)

// controlPlane are the command lines of its parts.
func controlPlane(peers string) map[string][]string {
	pki := func(name string) string { return filepath.Join(pkiDir, name) }
	client := func(who string) []string {
		file := filepath.Join(configDir, who+".conf")
		return []string{"--kubeconfig=" + file, "--authentication-kubeconfig=" + file, "--authorization-kubeconfig=" + file,
			"--bind-address=127.0.0.1", "--leader-elect=false"}
	}
	return map[string][]string{
		"etcd": {peers + "/etcd", "--data-dir=/var/lib/etcd", "--unsafe-no-fsync", "--listen-client-urls=http://127.0.0.1:2379",
			"--advertise-client-urls=http://127.0.0.1:2379", "--listen-peer-urls=http://127.0.0.1:2380"},
		"kube-apiserver": {peers + "/kube-apiserver",
			"--etcd-servers=http://127.0.0.1:2379", "--advertise-address=" + nodeIP, "--service-cluster-ip-range=10.96.0.0/16",
			"--allow-privileged=true", "--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction", "--enable-bootstrap-token-auth=true",
			"--client-ca-file=" + pki("ca.crt"), "--tls-cert-file=" + pki("apiserver.crt"), "--tls-private-key-file=" + pki("apiserver.key"),
			"--kubelet-client-certificate=" + pki("apiserver-kubelet-client.crt"), "--kubelet-client-key=" + pki("apiserver-kubelet-client.key"),
			"--kubelet-preferred-address-types=InternalIP", "--service-account-issuer=https://kubernetes.default.svc",
			"--service-account-key-file=" + pki("sa.pub"), "--service-account-signing-key-file=" + pki("sa.key")},
		"kube-controller-manager": append([]string{peers + "/kube-controller-manager",
			"--service-account-private-key-file=" + pki("sa.key"), "--root-ca-file=" + pki("ca.crt"), "--client-ca-file=" + pki("ca.crt"),
			"--cluster-signing-cert-file=" + pki("ca.crt"), "--cluster-signing-key-file=" + pki("ca.key"),
			"--allocate-node-cidrs=true", "--cluster-cidr=10.204.0.0/16", "--service-cluster-ip-range=10.96.0.0/16",
			"--use-service-account-credentials=true", "--controllers=*,bootstrapsigner,tokencleaner"}, client("controller-manager")...),
		"kube-scheduler": append([]string{peers + "/kube-scheduler"}, client("scheduler")...),
	}
}

// startControlPlane installs and starts it as units, since it comes back with
// the machine.
func startControlPlane(t *testing.T, bin string) {
	t.Helper()
	peers := filepath.Join(bin, "peers")
	version := strings.TrimSpace(run(t, peers+"/kubeadm", "version", "--output=short"))
	file := filepath.Join(configDir, "kubeadm.yaml")
	write(t, file, fmt.Sprintf(kubeadmConfig, version)+kubeletConfig+staticCPUs())
	run(t, peers+"/kubeadm", "init", "phase", "certs", "all", "--config", file)
	run(t, peers+"/kubeadm", "init", "phase", "kubeconfig", "all", "--config", file, "--kubeconfig-dir", configDir)

	write(t, unitDir+"/test-network.service", networkUnit)
	write(t, unitDir+"/kube.slice", sliceUnit)
	run(t, "fallocate", "-l", "128M", "/swapfile")
	run(t, "chmod", "600", "/swapfile")
	run(t, "mkswap", "-q", "/swapfile")
	write(t, unitDir+"/swapfile.swap", swapUnit)
	units := []string{"test-network.service", "kube.slice", "swapfile.swap"}
	for name, command := range controlPlane(peers) {
		write(t, unitDir+"/"+name+".service", fmt.Sprintf(controlUnit, strings.Join(command, " ")))
		units = append(units, name+".service")
	}
	run(t, "systemctl", "daemon-reload")
	run(t, append([]string{"systemctl", "enable", "-q", "--now"}, units...)...)
	client := newClient(t)
	waitForAPI(t, client)
	run(t, peers+"/kubeadm", "init", "phase", "upload-config", "all", "--config", file, "--kubeconfig", adminFile)
	run(t, peers+"/kubeadm", "init", "phase", "bootstrap-token", "--config", file, "--kubeconfig", adminFile)
}

func newClient(t *testing.T) kubernetes.Interface {
	t.Helper()
	config, err := clientcmd.BuildConfigFromFlags("", adminFile)
	if err != nil {
		t.Fatal(err)
	}
	config.QPS = -1 // no limit
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	return client
}

func waitForAPI(t *testing.T, client kubernetes.Interface) {
	t.Helper()
	harness.Eventually(t, 2*time.Minute, "the API server is ready", func() string {
		_, err := client.Discovery().RESTClient().Get().AbsPath("/readyz").DoRaw(t.Context())
		return text(err)
	})
}

// serveImages has a registry that this test's process is, and Berth know it.
func serveImages(t *testing.T, bin string) {
	t.Helper()
	r := registry.New()
	b := &images.Builder{Bin: filepath.Join(bin, "tests")}
	img, err := b.Box()
	if err != nil {
		t.Fatal(err)
	}
	if err := r.PushReference(harness.Box, img); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", registryIP)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go r.Serve(l)
	write(t, "/etc/berth/certs.d/"+harness.Registry+"/hosts.toml", `server = "http://`+registryIP+`"`+"\n")
}

func write(t *testing.T, file, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, file string) string {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(data))
}

// run is for what must work.
func run(t *testing.T, args ...string) string {
	t.Helper()
	out, err := try(args...)
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

func try(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 90*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput()
	return string(out), err
}

func text(err error) string {
	if err != nil {
		return err.Error()
	}
	return ""
}

// staticCPUs has the CPU manager hand out CPUs, where there are some.
func staticCPUs() string {
	if runtime.NumCPU() < 3 {
		return ""
	}
	return "cpuManagerPolicy: static\nreservedSystemCPUs: \"0\"\n"
}
