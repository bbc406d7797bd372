package dra

import (
	"context"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
)

// durations are the kubelet's buckets, in seconds (kubelet: metrics/metrics.go,
// DRADurationBuckets).
var durations = prometheus.ExponentialBucketsRange(.1, 40, 15)

// anyDriver is the label of what is counted regardless of the driver.
const anyDriver = "<any>"

type metrics struct {
	operations, calls *prometheus.HistogramVec
	inUse             *prometheus.Desc
}

func newMetrics() *metrics {
	return &metrics{
		operations: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Subsystem: "dra", Name: "operations_duration_seconds", Buckets: durations,
			Help: "Latency histogram in seconds for the duration of handling all ResourceClaims referenced by a pod when the pod starts or stops. Identified by the name of the operation (PrepareResources or UnprepareResources) and separated by the success of the operation. The number of failed operations is provided through the histogram's overall count.",
		}, []string{"operation_name", "is_error"}),
		calls: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Subsystem: "dra", Name: "grpc_operations_duration_seconds", Buckets: durations,
			Help: "Duration in seconds of the DRA gRPC operations",
		}, []string{"driver_name", "method_name", "grpc_status_code"}),
		inUse: prometheus.NewDesc("dra_resource_claims_in_use",
			"The number of ResourceClaims that are currently in use on the node, by driver name (driver_name label value) and across all drivers (special value <any> for driver_name). Note that the sum of all by-driver counts is not the total number of in-use ResourceClaims because the same ResourceClaim might use devices from different drivers. Instead, use the count for the <any> driver_name.",
			[]string{"driver_name"}, nil),
	}
}

func (m *metrics) operation(name string, began time.Time, err error) {
	m.operations.WithLabelValues(name, strconv.FormatBool(err != nil)).Observe(time.Since(began).Seconds())
}

func (m *metrics) interceptor(driver string) grpc.UnaryClientInterceptor {
	return func(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, call grpc.UnaryInvoker, opts ...grpc.CallOption) error {
		began := time.Now()
		err := call(ctx, method, req, reply, conn, opts...)
		m.calls.WithLabelValues(driver, method, status.Code(err).String()).Observe(time.Since(began).Seconds())
		return err
	}
}

// Describe names the kubelet's metrics of dynamic resource allocation.
func (c *Claims) Describe(ch chan<- *prometheus.Desc) {
	c.metrics.operations.Describe(ch)
	c.metrics.calls.Describe(ch)
	ch <- c.metrics.inUse
}

// Collect has claims in use by the drivers that have some.
func (c *Claims) Collect(ch chan<- prometheus.Metric) {
	c.metrics.operations.Collect(ch)
	c.metrics.calls.Collect(ch)
	used := map[string]int{anyDriver: 0}
	for _, info := range c.current() {
		if !info.inUse() {
			continue
		}
		used[anyDriver]++
		for driver := range info.DriverState {
			used[driver]++
		}
	}
	for driver, count := range used {
		ch <- prometheus.MustNewConstMetric(c.metrics.inUse, prometheus.GaugeValue, float64(count), driver)
	}
}
