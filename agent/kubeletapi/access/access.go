// Package access decides who may ask the node's API for what, as the kubelet
// does: client certificates and bearer tokens tell who asks, the API server
// whether he may.
//
//	access.go      the guard before a handler
//	attributes.go  what a request asks for: pure
//	authn.go       who asks
//	authz.go       whether he may
//	cache.go       answers of the API server, for as long as they hold
package access

import (
	"fmt"
	"log/slog"
	"net/http"
	"time"
)

// askTimeout bounds one question to the API server, with all attempts.
const askTimeout = 10 * time.Second

// User is who asks.
type User struct {
	Name   string
	UID    string
	Groups []string
	Extra  map[string][]string
}

// Guard lets requests through to a handler.
type Guard struct {
	authn *Authenticator
	authz *Authorizer
	log   *slog.Logger
}

// NewGuard puts a guard together.
func NewGuard(authn *Authenticator, authz *Authorizer, log *slog.Logger) *Guard {
	return &Guard{authn: authn, authz: authz, log: log}
}

// Protect returns h for those who may. The answers to others are the kubelet's,
// word by word (pkg/kubelet/server/server.go, InstallAuthFilter).
func (g *Guard) Protect(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		user, err := g.authn.Who(r)
		if err != nil {
			g.log.Debug("a request to the kubelet API is not authenticated", "from", r.RemoteAddr, "path", r.URL.Path, "err", err)
		}
		if err != nil || user == nil {
			refuse(w, http.StatusUnauthorized, "Unauthorized")
			return
		}
		a := Of(r)
		allowed := false
		for _, sub := range a.Subresources {
			allowed, err = g.authz.May(r.Context(), user, a.Verb, sub)
			if err != nil {
				g.log.Warn("a request to the kubelet API cannot be authorized", "user", user.Name, "verb", a.Verb, "subresource", sub, "err", err)
				refuse(w, http.StatusInternalServerError,
					fmt.Sprintf("Authorization error (user=%s, verb=%s, resource=nodes, subresource=%s)", user.Name, a.Verb, sub))
				return
			}
			if allowed {
				break
			}
		}
		if !allowed {
			refuse(w, http.StatusForbidden,
				fmt.Sprintf("Forbidden (user=%s, verb=%s, resource=nodes, subresource(s)=%v)\n", user.Name, a.Verb, a.Subresources))
			return
		}
		// What comes behind has no use for the caller's credentials; it may
		// pass the request on to the runtime.
		r.Header.Del("Authorization")
		h.ServeHTTP(w, r)
	})
}

func refuse(w http.ResponseWriter, code int, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(code)
	fmt.Fprint(w, text)
}
