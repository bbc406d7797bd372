package objects

import (
	"context"
	"testing"
	"testing/synctest"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
)

func service(namespace, name, ip string) *v1.Service {
	return &v1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}, Spec: v1.ServiceSpec{ClusterIP: ip, Ports: []v1.ServicePort{{Port: 80}}}}
}

func TestTheEnvironmentFollowsTheServices(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := fake.NewClientset(service("default", "kubernetes", "10.0.0.1"), service("ns", "a", "10.0.0.2"), service("ns", "headless", "None"), service("other", "x", "10.0.0.3"))
		s := NewServices(client)
		pod, local := podWith("p"), podWith("l")
		local.Annotations = map[string]string{"kubernetes.io/config.source": "file"}
		if _, err := s.Env(pod); err == nil || err.Error() != "services have not yet been read at least once, cannot construct envvars" {
			t.Errorf("error %v before the first list", err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { defer close(ended); _ = s.Run(ctx) }()
		defer func() { cancel(); <-ended }()
		hosts := func(want ...string) {
			t.Helper()
			synctest.Wait()
			env, err := s.Env(pod)
			if err != nil {
				t.Fatal(err)
			}
			n := 0
			for name := range env {
				if len(name) > 13 && name[len(name)-13:] == "_SERVICE_HOST" {
					n++
				}
			}
			for i := 0; i < len(want); i += 2 {
				if env[want[i]+"_SERVICE_HOST"] != want[i+1] {
					t.Errorf("%s is %q, want %s", want[i], env[want[i]+"_SERVICE_HOST"], want[i+1])
				}
			}
			if n != len(want)/2 {
				t.Errorf("%d services in %v", n, env)
			}
		}
		hosts("KUBERNETES", "10.0.0.1", "A", "10.0.0.2")
		if env, err := s.Env(local); len(env) > 0 || err != nil {
			t.Errorf("a pod from a manifest has %v, %v", env, err)
		}
		services := client.CoreV1().Services("ns")
		if _, err := services.Create(t.Context(), service("ns", "b", "10.0.0.4"), metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		if _, err := services.Update(t.Context(), service("ns", "a", "None"), metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		hosts("KUBERNETES", "10.0.0.1", "B", "10.0.0.4")
		if err := services.Delete(t.Context(), "b", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		hosts("KUBERNETES", "10.0.0.1")
	})
}
