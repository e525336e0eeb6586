package bus

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"sync"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

// MaxPayload is the largest message that the embedded server takes, in bytes.
const MaxPayload = 8 << 20

// ServerOptions describe the embedded server.
type ServerOptions struct {
	// Dir holds the streams. Required; made if missing.
	Dir string
	// Listen is host:port of a TCP listener; port 0 picks a free one. Default
	// empty: in-process connections only.
	Listen string
	// Run is the run whose subjects the roles of Keys may touch. Required with
	// Keys.
	Run string
	// Keys are the public nkeys of the roles. Default nil: no authentication,
	// allowed only without a listener or on loopback.
	Keys *RoleKeys
	// Ranks is the number of trainer ranks that the trainer role may serve.
	// Default 1.
	Ranks int
	// TLS secures the listener; it needs Keys or client certificates in
	// addition. Default nil: plain.
	TLS *TLS
	// Start is how long the server may take to be ready. Default 10 s (a 4 GB
	// store reopens in 2 s).
	Start time.Duration
}

// Server is a NATS server with JetStream inside this process.
type Server struct {
	inner *server.Server
	keys  *RoleKeys
	once  sync.Once
}

// maxStore, 1 TiB, keeps the server from refusing the limits of the streams, 11
// GiB together, on a disk with less room: they are caps, and a run on one machine
// stays far below them.
const maxStore = 1 << 40

// Start opens the store in options.Dir and serves it. It refuses a listener
// beyond loopback without credentials (ErrOpen), and fails if a listener's
// address is taken.
func Start(options ServerOptions) (*Server, error) {
	if options.Dir == "" {
		return nil, errors.New("bus: ServerOptions.Dir is empty")
	}
	if options.Start == 0 {
		options.Start = 10 * time.Second
	}
	config := &server.Options{
		ServerName: "uadt", JetStream: true, StoreDir: options.Dir, JetStreamMaxStore: maxStore,
		// Bounds what a power cut loses at no measurable cost.
		SyncInterval: time.Second,
		MaxPayload:   MaxPayload, DontListen: true, NoSigs: true, NoLog: true,
		DisableJetStreamBanner: true,
	}
	if err := listen(config, options); err != nil {
		return nil, err
	}
	if options.Keys != nil {
		if err := CheckName(options.Run); err != nil {
			return nil, fmt.Errorf("bus: run: %w", err)
		}
		users, account, err := options.Keys.users(options.Run, max(options.Ranks, 1))
		if err != nil {
			return nil, err
		}
		config.Nkeys, config.Accounts = users, []*server.Account{account}
	}
	inner, err := server.NewServer(config)
	if err != nil {
		return nil, fmt.Errorf("bus: %w", err)
	}
	go inner.Start()
	s := &Server{inner: inner, keys: options.Keys}
	if !inner.ReadyForConnections(options.Start) {
		s.Close()
		return nil, fmt.Errorf("bus: server with store %s was not ready after %s (listen %q): %w",
			options.Dir, options.Start, options.Listen, ErrTimeout)
	}
	if options.Keys != nil {
		if err := s.enableJetStream(); err != nil {
			s.Close()
			return nil, err
		}
	}
	return s, nil
}

// listen fills in the listener of config.
func listen(config *server.Options, options ServerOptions) error {
	if options.Listen == "" {
		return nil
	}
	host, portText, err := net.SplitHostPort(options.Listen)
	if err != nil {
		return fmt.Errorf("bus: listen address %q: %w", options.Listen, err)
	}
	port, err := strconv.Atoi(portText)
	if err != nil || port < 0 || port > 65535 {
		return fmt.Errorf("bus: listen address %q: bad port %q", options.Listen, portText)
	}
	if !loopback(host) && options.Keys == nil {
		return fmt.Errorf("%w: listen address %q; name keys for the roles or use 127.0.0.1", ErrOpen, options.Listen)
	}
	if port == 0 {
		port = server.RANDOM_PORT
	}
	if port > 0 { // the server itself only logs that an address is taken
		probe, err := net.Listen("tcp", options.Listen)
		if err != nil {
			return fmt.Errorf("bus: listen address %q: %w", options.Listen, err)
		}
		if err := probe.Close(); err != nil {
			return fmt.Errorf("bus: listen address %q: %w", options.Listen, err)
		}
	}
	config.DontListen, config.Host, config.Port = false, host, port
	if options.TLS != nil {
		if config.TLSConfig, err = options.TLS.server(); err != nil {
			return err
		}
		config.TLS, config.TLSVerify, config.TLSTimeout = true, true, 5
	}
	return nil
}

// loopback says whether host is reachable from this machine only.
func loopback(host string) bool {
	if host == "localhost" {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}

// URL is the address of the listener, or empty without one.
func (s *Server) URL() string { return s.inner.ClientURL() }

// Connect opens an in-process connection. seed is the nkey seed of the role,
// empty when the server has no keys.
func (s *Server) Connect(ctx context.Context, name, seed string) (*Conn, error) {
	if s.keys != nil && seed == "" {
		return nil, fmt.Errorf("%w: connection %q has no key", ErrDenied, name)
	}
	return connect(ctx, s.inner, DialOptions{Name: name, Seed: seed})
}

// Close stops the server and waits until the store is closed. It may be called
// more than once.
func (s *Server) Close() {
	s.once.Do(func() {
		s.inner.Shutdown()
		s.inner.WaitForShutdown()
	})
}
