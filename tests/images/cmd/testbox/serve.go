package main

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"google.golang.org/grpc"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
)

// server answers on every protocol that probes and services use. One switch,
// POST /set?ok=true|false, decides whether all of them say healthy.
type server struct {
	healthpb.UnimplementedHealthServer

	name    string
	healthy atomic.Bool

	mu  sync.Mutex
	tcp net.Listener
}

func serve(args []string) error {
	fs := flag.NewFlagSet("serve", flag.ExitOnError)
	httpAddr := fs.String("http", ":8080", "address for HTTP")
	tcpAddr := fs.String("tcp", "", "address for TCP echo; closed while unhealthy")
	udpAddr := fs.String("udp", "", "address for UDP echo")
	grpcAddr := fs.String("grpc", "", "address for the gRPC health service")
	unhealthy := fs.Bool("unhealthy", false, "start unhealthy")
	after := fs.Duration("after", 0, "become healthy by itself after this time")
	name := fs.String("name", "", "what to answer with; default the host name")
	fs.Parse(args)

	s := &server{name: *name}
	if s.name == "" {
		s.name, _ = os.Hostname()
	}
	s.healthy.Store(!*unhealthy && *after == 0)
	stop := signals(syscall.SIGTERM, syscall.SIGINT)
	fail := make(chan error, 4)

	l, err := net.Listen("tcp", *httpAddr)
	if err != nil {
		return err
	}
	go func() { fail <- http.Serve(l, s.handler(*tcpAddr)) }()
	if *tcpAddr != "" && s.healthy.Load() {
		if err := s.openTCP(*tcpAddr); err != nil {
			return err
		}
	}
	if *udpAddr != "" {
		pc, err := net.ListenPacket("udp", *udpAddr)
		if err != nil {
			return err
		}
		go s.echoPackets(pc)
	}
	if *grpcAddr != "" {
		gl, err := net.Listen("tcp", *grpcAddr)
		if err != nil {
			return err
		}
		g := grpc.NewServer()
		healthpb.RegisterHealthServer(g, s)
		go func() { fail <- g.Serve(gl) }()
	}
	if *after > 0 {
		time.AfterFunc(*after, func() {
			if err := s.set(true, *tcpAddr); err != nil {
				fail <- err
			}
		})
	}
	fmt.Println("serving")
	select {
	case err := <-fail:
		return err
	case <-stop:
		return nil
	}
}

func (s *server) handler(tcpAddr string) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, r *http.Request) {
		if !s.healthy.Load() {
			http.Error(w, "switched off", http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	mux.HandleFunc("POST /set", func(w http.ResponseWriter, r *http.Request) {
		if err := s.set(r.FormValue("ok") == "true", tcpAddr); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
		}
	})
	// GET as well, since busybox wget and preStop hooks only GET.
	mux.HandleFunc("GET /set", func(w http.ResponseWriter, r *http.Request) {
		if err := s.set(r.FormValue("ok") == "true", tcpAddr); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
		}
	})
	mux.HandleFunc("GET /remote", func(w http.ResponseWriter, r *http.Request) {
		host, _, _ := net.SplitHostPort(r.RemoteAddr)
		fmt.Fprintln(w, host)
	})
	mux.HandleFunc("GET /headers", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "Host: %s\n", r.Host)
		r.Header.Write(w)
	})
	// Hooks call this: the log shows that and when they did.
	mux.HandleFunc("GET /note/{text}", func(w http.ResponseWriter, r *http.Request) {
		fmt.Printf("note %s host=%s x=%s\n", r.PathValue("text"), r.Host, r.Header.Get("X-Test"))
	})
	mux.HandleFunc("GET /", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, s.name) })
	return mux
}

func (s *server) set(ok bool, tcpAddr string) error {
	s.healthy.Store(ok)
	fmt.Println("healthy", ok)
	if tcpAddr == "" {
		return nil
	}
	if ok {
		return s.openTCP(tcpAddr)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.tcp != nil {
		s.tcp.Close()
		s.tcp = nil
	}
	return nil
}

func (s *server) openTCP(addr string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.tcp != nil {
		return nil
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	s.tcp = l
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return // closed by the switch
			}
			go s.echo(c)
		}
	}()
	return nil
}

func (s *server) echo(c net.Conn) {
	defer c.Close()
	for sc := bufio.NewScanner(c); sc.Scan(); {
		fmt.Fprintf(c, "%s %s\n", s.name, sc.Text())
	}
}

func (s *server) echoPackets(pc net.PacketConn) {
	buf := make([]byte, 2048)
	for {
		n, from, err := pc.ReadFrom(buf)
		if err != nil {
			return
		}
		fmt.Fprintf(packetWriter{pc, from}, "%s %s", s.name, buf[:n])
	}
}

type packetWriter struct {
	pc net.PacketConn
	to net.Addr
}

func (w packetWriter) Write(b []byte) (int, error) { return w.pc.WriteTo(b, w.to) }

// Check implements the gRPC health protocol; the service "other" is never
// healthy, so that a probe that drops the service name is found out.
func (s *server) Check(_ context.Context, r *healthpb.HealthCheckRequest) (*healthpb.HealthCheckResponse, error) {
	status := healthpb.HealthCheckResponse_NOT_SERVING
	if s.healthy.Load() && r.GetService() != "other" {
		status = healthpb.HealthCheckResponse_SERVING
	}
	return &healthpb.HealthCheckResponse{Status: status}, nil
}

func get(args []string) error {
	fs := flag.NewFlagSet("get", flag.ExitOnError)
	timeout := fs.Duration("timeout", 5*time.Second, "")
	fs.Parse(args)
	if fs.NArg() != 1 {
		return fmt.Errorf("want one URL")
	}
	c := http.Client{Timeout: *timeout}
	resp, err := c.Get(fs.Arg(0))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(os.Stdout, resp.Body); err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s", resp.Status)
	}
	return nil
}

func send(args []string) error {
	fs := flag.NewFlagSet("send", flag.ExitOnError)
	network := fs.String("network", "tcp", "tcp or udp")
	timeout := fs.Duration("timeout", 5*time.Second, "")
	fs.Parse(args)
	if fs.NArg() < 2 {
		return fmt.Errorf("want an address and words")
	}
	c, err := net.DialTimeout(*network, fs.Arg(0), *timeout)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(*timeout)); err != nil {
		return err
	}
	if _, err := fmt.Fprintln(c, strings.Join(fs.Args()[1:], " ")); err != nil {
		return err
	}
	line, err := bufio.NewReader(c).ReadString('\n')
	fmt.Print(line)
	return err
}
