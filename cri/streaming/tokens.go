package streaming

import (
	"crypto/rand"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const (
	// tokenLife is how long a URL may be used, and maxTokens how many may wait
	// to be: the kubelet connects at once, and nobody else should hold one.
	tokenLife = time.Minute
	maxTokens = 1000
)

// tokens are the requests whose clients have not connected yet. The token in a
// URL is all that a client has to show, so that it is long, and good once.
type tokens struct {
	now func() time.Time

	mu      sync.Mutex
	waiting map[string]waiting
}

type waiting struct {
	request any
	until   time.Time
}

func newTokens() *tokens { return &tokens{now: time.Now, waiting: map[string]waiting{}} }

func (t *tokens) put(request any) (string, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.now()
	if len(t.waiting) >= maxTokens {
		for token, w := range t.waiting {
			if now.After(w.until) {
				delete(t.waiting, token)
			}
		}
	}
	if len(t.waiting) >= maxTokens {
		return "", status.Errorf(codes.ResourceExhausted, "%d streams wait for their clients: use the URLs of earlier answers, or try again within %s", maxTokens, tokenLife)
	}
	token := rand.Text()
	t.waiting[token] = waiting{request: request, until: now.Add(tokenLife)}
	return token, nil
}

// take returns the request of a token, or nil.
func (t *tokens) take(token string) any {
	t.mu.Lock()
	defer t.mu.Unlock()
	w := t.waiting[token]
	delete(t.waiting, token)
	if t.now().After(w.until) {
		return nil
	}
	return w.request
}
