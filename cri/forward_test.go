package cri_test

import (
	"fmt"
	"io"
	"net/http"
	"net/url"
	"testing"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/transport/spdy"
)

// forward is kubectl port-forward on a streaming URL; it returns the local
// address.
func forward(t *testing.T, address string, port int) string {
	t.Helper()
	u, err := url.Parse(address)
	must(t, err)
	transport, upgrader, err := spdy.RoundTripperFor(&rest.Config{})
	must(t, err)
	dialer := spdy.NewDialer(upgrader, &http.Client{Transport: transport}, http.MethodPost, u)
	stop, ready := make(chan struct{}), make(chan struct{})
	f, err := portforward.New(dialer, []string{fmt.Sprintf("0:%d", port)}, stop, ready, io.Discard, io.Discard)
	must(t, err)
	done := make(chan error, 1)
	go func() { done <- f.ForwardPorts() }()
	t.Cleanup(func() { close(stop); <-done })
	select {
	case <-ready:
	case err := <-done:
		done <- err
		t.Fatalf("port-forward ended: %v", err)
	}
	ports, err := f.GetPorts()
	must(t, err)
	return fmt.Sprintf("127.0.0.1:%d", ports[0].Local)
}
