package podspec

import (
	"fmt"
	"strings"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
)

const (
	maxHostname = 63 // what the kubelet cuts pod names to
	maxNodename = 64 // struct new_utsname, without the terminating zero
)

// hostname returns a pod's host name and DNS domain, as they appear in its
// hosts file; the domain is empty without a subdomain.
func hostname(pod *v1.Pod, clusterDomain string) (name, domain string, err error) {
	spec := &pod.Spec
	if spec.HostnameOverride != nil {
		name = *spec.HostnameOverride
		if msgs := validation.IsDNS1123Subdomain(name); len(msgs) > 0 {
			return "", "", fmt.Errorf("pod HostnameOverride %q is not a valid DNS subdomain: %s", name, strings.Join(msgs, ";"))
		}
		name, err = truncateHostname(pod, name)
		return name, "", err
	}
	name = pod.Name
	if spec.Hostname != "" {
		if msgs := validation.IsDNS1123Label(spec.Hostname); len(msgs) > 0 {
			return "", "", fmt.Errorf("pod Hostname %q is not a valid DNS label: %s", spec.Hostname, strings.Join(msgs, ";"))
		}
		name = spec.Hostname
	}
	if name, err = truncateHostname(pod, name); err != nil {
		return "", "", err
	}
	if spec.Subdomain == "" {
		return name, "", nil
	}
	if msgs := validation.IsDNS1123Label(spec.Subdomain); len(msgs) > 0 {
		return "", "", fmt.Errorf("pod Subdomain %q is not a valid DNS label: %s", spec.Subdomain, strings.Join(msgs, ";"))
	}
	// Without a cluster there is no cluster domain, and the name ends with svc.
	domain = strings.TrimSuffix(fmt.Sprintf("%s.%s.svc.%s", spec.Subdomain, pod.Namespace, clusterDomain), ".")
	return name, domain, nil
}

func truncateHostname(pod *v1.Pod, name string) (string, error) {
	if len(name) <= maxHostname {
		return name, nil
	}
	cut := strings.TrimRight(name[:maxHostname], "-.")
	if cut == "" {
		return "", fmt.Errorf("hostname for pod %q was invalid: %q", pod.Name, name)
	}
	return cut, nil
}

// kernelHostname is what gethostname returns in the pod.
func kernelHostname(pod *v1.Pod, clusterDomain string) (string, error) {
	name, domain, err := hostname(pod, clusterDomain)
	if err != nil {
		return "", err
	}
	if domain == "" || pod.Spec.SetHostnameAsFQDN == nil || !*pod.Spec.SetHostnameAsFQDN {
		return name, nil
	}
	fqdn := name + "." + domain
	if len(fqdn) > maxNodename {
		return "", fmt.Errorf("failed to construct FQDN from pod hostname and cluster domain, FQDN %s is too long (%d characters is the max, %d characters requested)", fqdn, maxNodename, len(fqdn))
	}
	return fqdn, nil
}
