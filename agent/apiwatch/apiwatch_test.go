package apiwatch_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/berth-io/berth/agent/apiwatch"
)

// server is an API server that has services: it lists and watches, with and
// without initial events, and can be away.
type server struct {
	http *httptest.Server

	mu       sync.Mutex
	version  int
	objects  map[string]*v1.Service
	events   []event
	oldest   int  // changes before it cannot be watched any more
	away     bool // every request fails
	plain    bool // it knows no initial events
	changed  chan struct{}
	idle     sync.Cond // no watch is under way
	watches  int       // under way
	lists    int
	selector string // of the last request
}

type event struct {
	version int
	data    []byte
}

func newServer(t *testing.T) *server {
	t.Helper()
	s := &server{objects: map[string]*v1.Service{}, version: 10, changed: make(chan struct{})}
	s.idle.L = &s.mu
	s.http = httptest.NewServer(s)
	t.Cleanup(func() {
		s.http.CloseClientConnections()
		s.http.Close()
	})
	return s
}

func watchEvent(kind string, object any) []byte {
	data, err := json.Marshal(map[string]any{"type": kind, "object": object})
	if err != nil {
		panic(err) // of an object of the test's own
	}
	return append(data, '\n')
}

func (s *server) change(kind, name, app string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.version++
	o := &v1.Service{TypeMeta: metav1.TypeMeta{Kind: "Service", APIVersion: "v1"}, ObjectMeta: metav1.ObjectMeta{
		Namespace: "default", Name: name, ResourceVersion: strconv.Itoa(s.version), Labels: map[string]string{"app": app},
		ManagedFields: []metav1.ManagedFieldsEntry{{Manager: "somebody"}},
	}}
	if kind == "DELETED" {
		delete(s.objects, name)
	} else {
		s.objects[name] = o
	}
	s.events = append(s.events, event{s.version, watchEvent(kind, o)})
	s.tell()
}

func (s *server) tell() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// goAway ends all watches and refuses everything until it comes back.
func (s *server) goAway(away bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.away = away
	s.tell()
	for away && s.watches > 0 {
		s.idle.Wait()
	}
}

// forget makes older changes too old to be watched.
func (s *server) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.version++
	s.oldest, s.events = s.version, nil
}

func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	w.Header().Set("Content-Type", "application/json")
	s.mu.Lock()
	s.selector = q.Get("fieldSelector")
	away, plain := s.away, s.plain
	s.mu.Unlock()
	switch {
	case away:
		w.WriteHeader(http.StatusServiceUnavailable)
	case q.Get("watch") == "":
		s.list(w)
	case q.Get("sendInitialEvents") == "true" && plain:
		answer(w, metav1.Status{Status: "Failure", Code: http.StatusUnprocessableEntity, Reason: metav1.StatusReasonInvalid, Message: "sendInitialEvents is forbidden"})
	default:
		s.watch(w, r)
	}
}

func answer(w http.ResponseWriter, s metav1.Status) {
	s.TypeMeta = metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}
	w.WriteHeader(int(s.Code))
	_ = json.NewEncoder(w).Encode(s) // one that has gone needs no answer
}

func (s *server) list(w http.ResponseWriter) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lists++
	list := v1.ServiceList{TypeMeta: metav1.TypeMeta{Kind: "ServiceList", APIVersion: "v1"}, ListMeta: metav1.ListMeta{ResourceVersion: strconv.Itoa(s.version)}}
	for _, o := range s.objects {
		list.Items = append(list.Items, *o)
	}
	_ = json.NewEncoder(w).Encode(list)
}

func (s *server) watch(w http.ResponseWriter, r *http.Request) {
	from, _ := strconv.Atoi(r.URL.Query().Get("resourceVersion")) // empty: from now on
	s.mu.Lock()
	s.watches++
	defer func() {
		s.mu.Lock()
		s.watches--
		s.idle.Broadcast()
		s.mu.Unlock()
	}()
	if from > 0 && from < s.oldest {
		s.mu.Unlock()
		answer(w, metav1.Status{Status: "Failure", Code: http.StatusGone, Reason: metav1.StatusReasonExpired, Message: "too old resource version"})
		return
	}
	var first []byte
	if r.URL.Query().Get("sendInitialEvents") == "true" {
		for _, o := range s.objects {
			first = append(first, watchEvent("ADDED", o)...)
		}
		from = s.version
		first = append(first, watchEvent("BOOKMARK", &v1.Service{
			TypeMeta: metav1.TypeMeta{Kind: "Service", APIVersion: "v1"},
			ObjectMeta: metav1.ObjectMeta{
				ResourceVersion: strconv.Itoa(s.version), Annotations: map[string]string{metav1.InitialEventsAnnotationKey: "true"},
			},
		})...)
	}
	s.mu.Unlock()
	_, _ = w.Write(first)
	for {
		s.mu.Lock()
		for _, e := range s.events {
			if e.version > from {
				_, _ = w.Write(e.data)
				from = e.version
			}
		}
		changed, away := s.changed, s.away
		s.mu.Unlock()
		if away {
			return
		}
		w.(http.Flusher).Flush()
		select {
		case <-changed:
		case <-r.Context().Done():
			return
		}
	}
}

// watched is a set that is being watched.
type watched struct {
	t   *testing.T
	set *apiwatch.Set[*v1.Service]
	// changes receives after Changed was called, gone each object that was deleted.
	changes chan struct{}
	gone    chan string // name=app of what was deleted
}

func watch(t *testing.T, s *server) *watched {
	t.Helper()
	client, err := kubernetes.NewForConfig(&rest.Config{Host: s.http.URL, ContentConfig: rest.ContentConfig{ContentType: "application/json"}})
	if err != nil {
		t.Fatal(err)
	}
	w := &watched{t: t, changes: make(chan struct{}, 1), gone: make(chan string, 10)}
	w.set = apiwatch.New(apiwatch.Config[*v1.Service]{
		Client: client.CoreV1().RESTClient(), Resource: "services", Selector: fields.OneTermNotEqualSelector("metadata.name", "hidden"),
		Example: &v1.Service{}, Trim: func(o *v1.Service) { o.Annotations = map[string]string{"trimmed": "yes"} },
		Gone: func(o *v1.Service) { w.gone <- o.Name + "=" + o.Labels["app"] },
		Changed: func() {
			select {
			case w.changes <- struct{}{}:
			default: // the last one was not taken yet
			}
		},
		Log: slog.New(slog.DiscardHandler),
	})
	ctx, end := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- w.set.Run(ctx) }()
	t.Cleanup(func() {
		end()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("Run returned %v", err)
		}
	})
	return w
}

// want waits until the set holds these, as name=app.
func (w *watched) want(want ...string) {
	w.t.Helper()
	deadline := time.After(time.Minute)
	for {
		if got := w.holds(); slices.Equal(got, want) {
			return
		}
		select {
		case <-w.changes:
		case <-deadline:
			w.t.Fatalf("holds %q, want %q", w.holds(), want)
		}
	}
}

func (w *watched) holds() []string {
	list, synced := w.set.List()
	if !synced {
		return []string{"not synced"}
	}
	out := []string{}
	for _, o := range list {
		out = append(out, fmt.Sprintf("%s=%s", o.Name, o.Labels["app"]))
	}
	slices.Sort(out)
	return out
}

func TestASetFollowsTheAPIServer(t *testing.T) {
	for _, plain := range []bool{false, true} {
		t.Run(fmt.Sprintf("without initial events %v", plain), func(t *testing.T) {
			s := newServer(t)
			s.plain = plain
			s.change("ADDED", "a", "1")
			w := watch(t, s)
			w.want("a=1")
			s.change("ADDED", "b", "1")
			s.change("MODIFIED", "a", "2")
			w.want("a=2", "b=1")
			s.change("DELETED", "a", "3") // its last change is told with its end
			w.want("b=1")
			select {
			case gone := <-w.gone:
				if gone != "a=3" {
					t.Errorf("gone is %s", gone)
				}
			case <-time.After(time.Minute):
				t.Error("nobody says that a is gone")
			}
			o, ok := w.set.Get("default", "b")
			if !ok || o.Annotations["trimmed"] != "yes" || o.ManagedFields != nil {
				t.Errorf("b is %+v", o)
			}
			if _, ok := w.set.Get("default", "a"); ok {
				t.Error("a is still there")
			}
			s.mu.Lock()
			defer s.mu.Unlock()
			if s.selector != "metadata.name!=hidden" || (s.lists > 0) != plain {
				t.Errorf("selector %q, %d lists", s.selector, s.lists)
			}
		})
	}
}

func TestAnEmptySetIsSyncedToo(t *testing.T) {
	w := watch(t, newServer(t))
	w.want()
}

func TestWhatWasKnownStaysWhileTheAPIServerIsAway(t *testing.T) {
	s := newServer(t)
	s.change("ADDED", "a", "1")
	s.change("ADDED", "b", "1")
	w := watch(t, s)
	w.want("a=1", "b=1")
	s.goAway(true)
	s.change("DELETED", "a", "1")
	s.change("ADDED", "c", "1")
	if got := w.holds(); !slices.Equal(got, []string{"a=1", "b=1"}) {
		t.Errorf("holds %q while the API server is away", got)
	}
	s.goAway(false)
	w.want("b=1", "c=1")
}

func TestAWatchThatIsTooFarBehindStartsOver(t *testing.T) {
	s := newServer(t)
	s.change("ADDED", "a", "1")
	s.change("ADDED", "b", "1")
	w := watch(t, s)
	w.want("a=1", "b=1")
	s.goAway(true)
	s.change("DELETED", "a", "1")
	s.change("MODIFIED", "b", "2")
	s.forget()
	s.goAway(false)
	w.want("b=2")
}

func TestNothingIsSyncedBeforeTheAPIServerAnswers(t *testing.T) {
	s := newServer(t)
	s.goAway(true)
	w := watch(t, s)
	if _, synced := w.set.List(); synced {
		t.Error("it is synced")
	}
	s.goAway(false)
	w.want()
	<-w.set.Synced()
}
