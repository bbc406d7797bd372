package metrics

import (
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	v1 "k8s.io/api/core/v1"
)

// imageCounts are told of what is done for an image beside its pull, with the
// names of pkg/kubelet/images, its pullmanager and pkg/credentialprovider/plugin.
type imageCounts struct {
	ensured, verified, pluginErrors *prometheus.CounterVec
	pluginDuration                  *prometheus.HistogramVec
	pluginConfig                    *prometheus.GaugeVec
}

func (e *Events) newImages() {
	i := &e.images
	i.ensured = e.counters("image_manager_ensure_image_requests_total", "Number of ensure-image requests processed by the kubelet.", "pull_policy", "present_locally", "pull_required")
	i.verified = e.counters("imagemanager_image_mustpull_checks_total", "Counter for how many times kubelet checked whether credentials need to be re-verified to access an image", "result")
	i.pluginErrors = e.counters("credential_provider_plugin_errors_total", "Number of errors from credential provider plugin", "plugin_name")
	i.pluginDuration = e.histograms("credential_provider_plugin_duration", "Duration of execution in seconds for credential provider plugin", prometheus.DefBuckets, "plugin_name")
	i.pluginConfig = prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Subsystem: subsystem, Name: "credential_provider_config_info", Help: "Information about the last applied credential provider configuration with hash as label",
	}, []string{"hash"})
	e.all = append(e.all, i.pluginConfig)
}

// ImageEnsured counts that a container's image was asked for: whether it was
// there and whether it had to be pulled, "true", "false" or "unknown".
func (e *Events) ImageEnsured(policy v1.PullPolicy, present, pull string) {
	e.images.ensured.WithLabelValues(strings.ToLower(string(policy)), present, pull).Inc()
}

// ImageVerified counts that it was asked whether a pod may use an image that is
// there, with the kubelet's word for the answer.
func (e *Events) ImageVerified(result string) { e.images.verified.WithLabelValues(result).Inc() }

// PluginRan counts a run of a credential provider.
func (e *Events) PluginRan(name string, took time.Duration, err error) {
	e.images.pluginDuration.WithLabelValues(name).Observe(took.Seconds())
	if err != nil {
		e.images.pluginErrors.WithLabelValues(name).Inc()
	}
}

// PluginsConfigured tells the hash of the configuration of credential providers.
func (e *Events) PluginsConfigured(hash string) { e.images.pluginConfig.WithLabelValues(hash).Set(1) }

var (
	pullIntents   = desc("kubelet_imagemanager_ondisk_pullintents", "Number of ImagePullIntents stored on disk.")
	pulledRecords = desc("kubelet_imagemanager_ondisk_pulledrecords", "Number of ImagePulledRecords stored on disk.")
)

// pullRecords counts records of pulls at a scrape.
type pullRecords func() (pulling, pulled int, err error)

func (pullRecords) Describe(ch chan<- *prometheus.Desc) {
	ch <- pullIntents
	ch <- pulledRecords
}

// Collect leaves out what cannot be read.
func (p pullRecords) Collect(ch chan<- prometheus.Metric) {
	if pulling, pulled, err := p(); err == nil {
		ch <- gauge(pullIntents, float64(pulling))
		ch <- gauge(pulledRecords, float64(pulled))
	}
}
