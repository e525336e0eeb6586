package blob

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// minToken is the shortest token that is accepted, in characters.
const minToken = 16

// NewToken makes a token of 256 random bits.
func NewToken() (string, error) {
	var raw [32]byte
	if _, err := rand.Read(raw[:]); err != nil {
		return "", fmt.Errorf("blob token: %w", err)
	}
	return hex.EncodeToString(raw[:]), nil
}

// ServerOptions describe a blob server.
type ServerOptions struct {
	// Store is what is served. Required.
	Store *Store
	// Token is what clients must know, at least 16 characters. Required.
	Token string
	// Listen is host:port; port 0 picks a free one. Default 127.0.0.1:0. Beyond
	// loopback the token and the blobs travel in the clear: put TLS before it.
	Listen string
	// Advertise is the host that URL names, for a server that listens on all
	// addresses. Default: the host of Listen.
	Advertise string
}

// Server hands out the blobs of a store over HTTP.
type Server struct {
	store *Store
	token [sha256.Size]byte
	url   string
	http  *http.Server
	done  chan struct{}
	err   error // of Serve; read after done
}

// Serve starts a server and returns once it listens.
func Serve(options ServerOptions) (*Server, error) {
	if options.Store == nil {
		return nil, errors.New("blob server: no store")
	}
	if len(options.Token) < minToken {
		return nil, fmt.Errorf("blob server: token of %d characters, want at least %d", len(options.Token), minToken)
	}
	if options.Listen == "" {
		options.Listen = "127.0.0.1:0"
	}
	listener, err := net.Listen("tcp", options.Listen)
	if err != nil {
		return nil, fmt.Errorf("blob server: %w", err)
	}
	host, port, err := net.SplitHostPort(listener.Addr().String())
	if err != nil {
		return nil, errors.Join(fmt.Errorf("blob server: %w", err), listener.Close())
	}
	if options.Advertise != "" {
		host = options.Advertise
	}
	s := &Server{
		store: options.Store, token: sha256.Sum256([]byte(options.Token)),
		url: "http://" + net.JoinHostPort(host, port), done: make(chan struct{}),
	}
	s.http = &http.Server{
		Handler: s, ReadHeaderTimeout: 10 * time.Second, ReadTimeout: 10 * time.Second,
		WriteTimeout: time.Minute, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 16 << 10,
	}
	go func() {
		defer close(s.done)
		if err := s.http.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			s.err = err
		}
	}()
	return s, nil
}

// URL is the address for clients, without a path.
func (s *Server) URL() string { return s.url }

// Close lets running requests finish until ctx ends, then cuts them off.
func (s *Server) Close(ctx context.Context) error {
	err := s.http.Shutdown(ctx)
	if err != nil {
		err = errors.Join(err, s.http.Close())
	}
	<-s.done
	return errors.Join(err, s.err)
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	sum := sha256.Sum256([]byte(token))
	// Equal time whatever the token: hashes have one length.
	if subtle.ConstantTimeCompare(sum[:], s.token[:]) != 1 || !ok {
		http.Error(w, "wrong or missing token", http.StatusUnauthorized)
		return
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		http.Error(w, "only GET and HEAD", http.StatusMethodNotAllowed)
		return
	}
	digest, ok := strings.CutPrefix(r.URL.Path, "/blob/")
	if !ok {
		http.NotFound(w, r)
		return
	}
	data, err := s.store.Get(r.Context(), digest)
	switch {
	case errors.Is(err, ErrDigest):
		http.Error(w, err.Error(), http.StatusBadRequest)
	case errors.Is(err, ErrNotFound):
		http.Error(w, ErrNotFound.Error()+": "+digest, http.StatusNotFound)
	case err != nil:
		http.Error(w, "cannot read blob "+digest, http.StatusInternalServerError)
	default:
		w.Header().Set("Content-Type", "application/octet-stream")
		w.Header().Set("Content-Length", strconv.Itoa(len(data)))
		if r.Method == http.MethodGet {
			_, _ = w.Write(data) // the client has gone: nobody is left to tell
		}
	}
}
