package access

import (
	"net/http"
	"strings"
)

// Attributes are what a request asks of the node: the verb on the resource
// nodes/SUBRESOURCE named like this node.
type Attributes struct {
	Verb string
	// Subresources in the order in which they are tried: the first that is
	// allowed lets the request through.
	Subresources []string
}

// fine are the paths with a subresource of their own beside nodes/proxy, which
// allows them too; coarse those that nodes/proxy does not allow. The table is the
// kubelet's: pkg/kubelet/server/auth.go, GetRequestAttributes.
var (
	fine = []struct{ path, subresource string }{
		{"/pods", "pods"}, {"/healthz", "healthz"}, {"/configz", "configz"}, {"/runningpods", "pods"},
	}
	coarse = []struct{ path, subresource string }{
		{"/stats", "stats"}, {"/metrics", "metrics"}, {"/logs", "log"}, {"/checkpoint", "checkpoint"},
		{"/statusz", "statusz"}, {"/flagz", "configz"},
	}
	verbs = map[string]string{
		http.MethodPost: "create", http.MethodGet: "get", http.MethodPut: "update", http.MethodPatch: "patch", http.MethodDelete: "delete",
	}
)

// Of are the attributes of a request.
func Of(r *http.Request) Attributes {
	a := Attributes{Verb: verbs[r.Method]}
	for _, p := range fine {
		if within(r.URL.Path, p.path) {
			a.Subresources = append(a.Subresources, p.subresource)
			break
		}
	}
	for _, p := range coarse {
		if within(r.URL.Path, p.path) {
			a.Subresources = append(a.Subresources, p.subresource)
			return a
		}
	}
	a.Subresources = append(a.Subresources, "proxy")
	return a
}

func within(path, of string) bool {
	rest, ok := strings.CutPrefix(path, of)
	return ok && (rest == "" || rest[0] == '/')
}
