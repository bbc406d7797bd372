package probe

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
)

// version is the Kubernetes minor release whose behaviour this package has; it
// is part of the User-Agent, which servers are known to look at.
const version = "1.36"

// NewTransport returns a transport that makes a connection for each request: no proxy, no
// compression, and no look at the certificate, whose name no one knows.
func NewTransport() *http.Transport {
	return &http.Transport{
		TLSClientConfig:     &tls.Config{InsecureSkipVerify: true},
		TLSHandshakeTimeout: 10 * time.Second,
		DisableKeepAlives:   true,
		DisableCompression:  true,
		ForceAttemptHTTP2:   true,
		DialContext:         (&net.Dialer{KeepAlive: -1}).DialContext,
	}
}

// httpGet succeeds on a status from 200 to 399.
func httpGet(ctx context.Context, transport http.RoundTripper, action *v1.HTTPGetAction, c *v1.Container, podIP string, limit time.Duration) outcome {
	req, err := NewRequest(ctx, action, c, podIP, "probe")
	if err != nil {
		return outcome{unknown, err.Error()}
	}
	// The client's own time-out makes the message the kubelet's.
	client := http.Client{Transport: transport, Timeout: limit, CheckRedirect: FollowOnHost}
	res, err := client.Do(req)
	if err != nil {
		return outcome{failure, err.Error()}
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, maxOutput))
	switch {
	case err != nil:
		return outcome{unknown, err.Error()}
	case res.StatusCode >= 200 && res.StatusCode < 300:
		return outcome{success, string(body)}
	case res.StatusCode >= 300 && res.StatusCode < 400:
		return outcome{warning, "Probe terminated redirects, Response body: " + string(body)}
	default:
		// The body stays out of it: events are read by more people than the
		// server may have written it for (kubernetes issue 99425).
		return outcome{failure, fmt.Sprintf("HTTP probe failed with statuscode: %d", res.StatusCode)}
	}
}

// FollowOnHost follows redirects within a host name; what lies on another is
// not the container's health.
func FollowOnHost(req *http.Request, via []*http.Request) error {
	if req.URL.Hostname() != via[0].URL.Hostname() {
		return http.ErrUseLastResponse
	}
	if len(via) >= 10 {
		return errors.New("stopped after 10 redirects")
	}
	return nil
}

// NewRequest makes the request of an HTTP probe or, with another purpose, of a
// lifecycle handler; purpose becomes part of the User-Agent, as in kube-probe.
// Without a host in action it goes to podIP.
func NewRequest(ctx context.Context, action *v1.HTTPGetAction, c *v1.Container, podIP, purpose string) (*http.Request, error) {
	port, err := ContainerPort(action.Port, c)
	if err != nil {
		return nil, err
	}
	// The path may have a query. One that cannot be parsed is sent as it is.
	u, err := url.Parse(action.Path)
	if err != nil {
		u = &url.URL{Path: action.Path}
	}
	host := action.Host
	if host == "" {
		host = podIP
	}
	u.Host = net.JoinHostPort(host, strconv.Itoa(port))
	u.Scheme = "http"
	if action.Scheme != "" {
		u.Scheme = strings.ToLower(string(action.Scheme))
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	for _, h := range action.HTTPHeaders {
		req.Header.Add(h.Name, h.Value)
	}
	if _, ok := req.Header["User-Agent"]; !ok {
		req.Header.Set("User-Agent", "kube-"+purpose+"/"+version)
	}
	if accept, ok := req.Header["Accept"]; !ok {
		req.Header.Set("Accept", "*/*")
	} else if accept[0] == "" {
		req.Header.Del("Accept") // asked for without
	}
	req.Host = req.Header.Get("Host") // empty: the URL's
	return req, nil
}
