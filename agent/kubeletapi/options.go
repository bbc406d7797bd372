package kubeletapi

import (
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-io/berth/agent/podlog"
)

// errDecode and errInvalid are the kubelet's two answers to parameters that it
// does not take.
var (
	errDecode  = errors.New(`{"message": "Unable to decode query."}`)
	errInvalid = errors.New(`{"message": "Invalid request."}`)
)

// logOptions reads PodLogOptions from a query, as the API machinery's codec and
// ValidatePodLogOptions (pkg/apis/core/v1/validation) of the kubelet do. Errors
// wrap errDecode or errInvalid. Parameters nobody knows are ignored.
func logOptions(q url.Values) (*v1.PodLogOptions, error) {
	if tail := q.Get("tail"); tail != "" { // of old clients
		q.Del("tailLines")
		if tail != "all" {
			q.Set("tailLines", tail)
		}
	}
	o := &v1.PodLogOptions{
		Container: q.Get("container"), Follow: truth(q, "follow"), Previous: truth(q, "previous"), Timestamps: truth(q, "timestamps"),
		InsecureSkipTLSVerifyBackend: truth(q, "insecureSkipTLSVerifyBackend"),
	}
	for name, to := range map[string]**int64{"sinceSeconds": &o.SinceSeconds, "tailLines": &o.TailLines, "limitBytes": &o.LimitBytes} {
		if len(q[name]) == 0 {
			continue
		}
		n, err := strconv.ParseInt(q[name][0], 10, 64)
		if err != nil {
			return nil, fmt.Errorf("%w %s: %w", errDecode, name, err)
		}
		*to = &n
	}
	// An empty time is none, and so is the word null (metav1.Time).
	if text := q.Get("sinceTime"); text != "" && text != "null" {
		t, err := time.Parse(time.RFC3339, text)
		if err != nil {
			return nil, fmt.Errorf("%w sinceTime: %w", errDecode, err)
		}
		o.SinceTime = &metav1.Time{Time: t}
	}
	stream := v1.LogStreamAll
	if len(q["stream"]) > 0 {
		stream = q["stream"][0]
	}
	o.Stream = &stream
	return o, validate(o)
}

func validate(o *v1.PodLogOptions) error {
	switch {
	case o.TailLines != nil && *o.TailLines < 0:
		return fmt.Errorf("%w tailLines: it must not be negative", errInvalid)
	case o.LimitBytes != nil && *o.LimitBytes < 1:
		return fmt.Errorf("%w limitBytes: it must be greater than 0", errInvalid)
	case o.SinceSeconds != nil && o.SinceTime != nil:
		return fmt.Errorf("%w sinceSeconds and sinceTime: only one of them", errInvalid)
	case o.SinceSeconds != nil && *o.SinceSeconds < 1:
		return fmt.Errorf("%w sinceSeconds: it must be greater than 0", errInvalid)
	}
	switch *o.Stream {
	case v1.LogStreamAll:
	case v1.LogStreamStdout, v1.LogStreamStderr:
		if o.TailLines != nil {
			return fmt.Errorf("%w tailLines and stream: only one of them", errInvalid)
		}
	default:
		return fmt.Errorf("%w stream: it must be All, Stdout or Stderr", errInvalid)
	}
	return nil
}

// truth reads a flag as the API machinery does: whatever is there and is not
// "0" or "false" is true.
func truth(q url.Values, name string) bool {
	v, ok := q[name]
	return ok && len(v) > 0 && v[0] != "0" && !strings.EqualFold(v[0], "false")
}

// readOptions are valid options for reading a log file.
func readOptions(o *v1.PodLogOptions, now time.Time) podlog.Options {
	r := podlog.Options{Follow: o.Follow, Timestamps: o.Timestamps, TailLines: -1}
	if o.TailLines != nil {
		r.TailLines = *o.TailLines
	}
	if o.LimitBytes != nil {
		r.LimitBytes = *o.LimitBytes
	}
	if o.SinceSeconds != nil {
		// More than 292 years are all there is.
		r.Since = now.Add(-min(time.Duration(*o.SinceSeconds), (1<<63-1)/time.Second) * time.Second)
	}
	if o.SinceTime != nil {
		r.Since = o.SinceTime.Time
	}
	switch *o.Stream {
	case v1.LogStreamStdout:
		r.Stream = podlog.Stdout
	case v1.LogStreamStderr:
		r.Stream = podlog.Stderr
	}
	return r
}
