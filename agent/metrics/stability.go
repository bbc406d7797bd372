package metrics

import (
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

const (
	alpha  = "ALPHA"
	beta   = "BETA"
	stable = "STABLE"
)

// stability is how stable the kubelet of 1.36 calls a metric where that is not
// ALPHA. tests/cluster compares all of them.
var stability = map[string]string{
	"container_cpu_usage_seconds_total":                    stable,
	"container_memory_working_set_bytes":                   stable,
	"container_start_time_seconds":                         stable,
	"node_cpu_usage_seconds_total":                         stable,
	"node_memory_working_set_bytes":                        stable,
	"pod_cpu_usage_seconds_total":                          stable,
	"pod_memory_working_set_bytes":                         stable,
	"resource_scrape_error":                                stable,
	"prober_probe_total":                                   beta,
	"kubelet_image_volume_mounted_errors_total":            beta,
	"kubelet_image_volume_mounted_succeed_total":           beta,
	"kubelet_image_volume_requested_total":                 beta,
	"kubernetes_build_info":                                beta,
	"kubernetes_feature_enabled":                           beta,
	"kubelet_first_network_pod_start_sli_duration_seconds": "INTERNAL",
}

// unsaid are beginnings of the names of metrics whose stability nobody says:
// those of Go's and the kernel's numbers about the process.
var unsaid = []string{"go_", "process_", "promhttp_"}

// staged is a registry whose help texts begin with how stable the metrics are,
// as those of Kubernetes do (k8s.io/component-base/metrics, annotateStabilityLevel).
type staged struct{ *prometheus.Registry }

func (s staged) Gather() ([]*dto.MetricFamily, error) {
	families, err := s.Registry.Gather()
	for _, f := range families {
		if level := stabilityOf(f.GetName()); level != "" {
			help := "[" + level + "] " + f.GetHelp()
			f.Help = &help
		}
	}
	return families, err
}

func stabilityOf(name string) string {
	if level, known := stability[name]; known {
		return level
	}
	for _, beginning := range unsaid {
		if strings.HasPrefix(name, beginning) {
			return ""
		}
	}
	return alpha
}
