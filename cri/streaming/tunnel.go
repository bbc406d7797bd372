package streaming

import (
	"bufio"
	"net"
	"net/http"
	"slices"

	"github.com/gorilla/websocket"
	"k8s.io/client-go/tools/portforward"
	criportforward "k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
)

// tunnelPrefix marks the SPDY protocols that a WebSocket carries (KEP-4006).
const tunnelPrefix = "SPDY/3.1+"

// tunnel opens a WebSocket whose messages are the bytes of a SPDY connection.
// What it returns is the request as that connection would have brought it, and
// the way to take it over. When not ok, the client has been told why.
func tunnel(w http.ResponseWriter, r *http.Request) (http.ResponseWriter, *http.Request, bool) {
	var upgrader websocket.Upgrader
	for _, protocol := range criportforward.SupportedProtocols {
		upgrader.Subprotocols = append(upgrader.Subprotocols, tunnelPrefix+protocol)
	}
	if offered := websocket.Subprotocols(r); !slices.ContainsFunc(offered, func(p string) bool { return slices.Contains(upgrader.Subprotocols, p) }) {
		http.Error(w, "unknown protocols: want "+upgrader.Subprotocols[0], http.StatusForbidden)
		return nil, nil, false
	}
	conn, err := upgrader.Upgrade(w, r, nil)
	if err != nil {
		return nil, nil, false
	}
	inner := r.Clone(r.Context())
	inner.Header.Set(httpstream.HeaderConnection, httpstream.HeaderUpgrade)
	inner.Header.Set(httpstream.HeaderUpgrade, spdy.HeaderSpdy31)
	inner.Header.Set(httpstream.HeaderProtocolVersion, conn.Subprotocol()[len(tunnelPrefix):])
	return &tunnelWriter{conn: portforward.NewTunnelingConnection("server", conn), header: http.Header{}}, inner, true
}

// tunnelWriter is a response that was given already: by the WebSocket.
type tunnelWriter struct {
	conn   net.Conn
	header http.Header
}

func (t *tunnelWriter) Header() http.Header         { return t.header }
func (t *tunnelWriter) WriteHeader(int)             {}
func (t *tunnelWriter) Write(p []byte) (int, error) { return len(p), nil }

// Hijack implements http.Hijacker.
func (t *tunnelWriter) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return t.conn, bufio.NewReadWriter(bufio.NewReader(t.conn), bufio.NewWriter(t.conn)), nil
}
