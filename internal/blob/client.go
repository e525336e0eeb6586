package blob

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"
)

// ClientOptions describe a blob client.
type ClientOptions struct {
	// URL is the server's address, without a path. Required.
	URL string
	// Token is the server's. Required.
	Token string
	// MaxBlob is the largest blob that is read, in bytes. Default 64 MiB.
	MaxBlob int64
	// CacheBytes bounds what is kept in memory, the least recently used go
	// first. Default 256 MiB; -1 keeps nothing.
	CacheBytes int64
	// Attempts is how often a blob is asked for before giving up on a server
	// that fails or is away. Default 4, with pauses of 50 ms, 100 ms, ...
	Attempts int
	// HTTP does the requests. Default: a client of its own with a time limit of
	// 30 s a request.
	HTTP *http.Client
}

// Client fetches blobs, checks each against its digest and keeps some. It may
// be used by several goroutines; one blob is fetched once for all who wait.
type Client struct {
	options ClientOptions

	mu      sync.Mutex
	cached  map[string]*list.Element // of *cacheEntry
	recent  *list.List               // front: most recently used
	bytes   int64
	flights map[string]*flight
}

type cacheEntry struct {
	digest string
	data   []byte
}

// flight is a fetch that several callers may wait for. cancel ends it when the
// last of them has gone.
type flight struct {
	done    chan struct{}
	data    []byte
	err     error
	waiters int
	cancel  context.CancelFunc
}

// NewClient makes a client. It does not call the server.
func NewClient(options ClientOptions) (*Client, error) {
	if !strings.HasPrefix(options.URL, "http://") && !strings.HasPrefix(options.URL, "https://") {
		return nil, fmt.Errorf("blob client: URL %q, want http:// or https://", options.URL)
	}
	if options.Token == "" {
		return nil, errors.New("blob client: no token")
	}
	options.URL = strings.TrimRight(options.URL, "/")
	if options.MaxBlob == 0 {
		options.MaxBlob = 64 << 20
	}
	if options.CacheBytes == 0 {
		options.CacheBytes = 256 << 20
	}
	if options.Attempts == 0 {
		options.Attempts = 4
	}
	if options.HTTP == nil {
		transport := &http.Transport{Proxy: http.ProxyFromEnvironment, MaxIdleConnsPerHost: 16, IdleConnTimeout: time.Minute}
		options.HTTP = &http.Client{Timeout: 30 * time.Second, Transport: transport}
	}
	return &Client{options: options, cached: map[string]*list.Element{}, recent: list.New(), flights: map[string]*flight{}}, nil
}

// Get returns the blob of digest; the bytes must not be changed. It fails with
// ErrDigest, ErrNotFound, ErrDenied, ErrCorrupt or ErrTooLarge, or with what
// the last attempt met.
func (c *Client) Get(ctx context.Context, digest string) ([]byte, error) {
	if err := CheckDigest(digest); err != nil {
		return nil, err
	}
	c.mu.Lock()
	if element, ok := c.cached[digest]; ok {
		c.recent.MoveToFront(element)
		c.mu.Unlock()
		return element.Value.(*cacheEntry).data, nil
	}
	f, running := c.flights[digest]
	if !running {
		// The fetch outlives a caller who leaves while others wait.
		inner, cancel := context.WithCancel(context.WithoutCancel(ctx))
		f = &flight{done: make(chan struct{}), cancel: cancel}
		c.flights[digest] = f
		go c.fly(inner, digest, f)
	}
	f.waiters++
	c.mu.Unlock()
	select {
	case <-f.done:
		return f.data, f.err
	case <-ctx.Done():
		c.mu.Lock()
		if f.waiters--; f.waiters == 0 {
			f.cancel()
			if c.flights[digest] == f { // the next caller starts afresh
				delete(c.flights, digest)
			}
		}
		c.mu.Unlock()
		return nil, fmt.Errorf("blob %s from %s: %w", digest, c.options.URL, context.Cause(ctx))
	}
}

// fly fetches for all who wait on f.
func (c *Client) fly(ctx context.Context, digest string, f *flight) {
	defer f.cancel()
	f.data, f.err = c.fetch(ctx, digest)
	c.mu.Lock()
	if c.flights[digest] == f {
		delete(c.flights, digest)
	}
	if f.err == nil {
		c.keep(digest, f.data)
	}
	c.mu.Unlock()
	close(f.done)
}

// keep caches data and evicts what is over the bound.
func (c *Client) keep(digest string, data []byte) {
	if _, ok := c.cached[digest]; ok || int64(len(data)) > c.options.CacheBytes {
		return
	}
	c.cached[digest] = c.recent.PushFront(&cacheEntry{digest, data})
	c.bytes += int64(len(data))
	for c.bytes > c.options.CacheBytes {
		oldest := c.recent.Back()
		entry := c.recent.Remove(oldest).(*cacheEntry)
		delete(c.cached, entry.digest)
		c.bytes -= int64(len(entry.data))
	}
}

// fetch asks until the server answers or the attempts are used up.
func (c *Client) fetch(ctx context.Context, digest string) ([]byte, error) {
	pause := 50 * time.Millisecond
	for attempt := 1; ; attempt++ {
		data, again, err := c.ask(ctx, digest)
		if err == nil {
			return data, nil
		}
		err = fmt.Errorf("blob %s from %s (attempt %d): %w", digest, c.options.URL, attempt, err)
		if !again || attempt >= c.options.Attempts {
			return nil, err
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil, err
		}
		pause *= 2
	}
}

// ask does one request and says whether another could fare better.
func (c *Client) ask(ctx context.Context, digest string) (data []byte, again bool, err error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, c.options.URL+"/blob/"+digest, nil)
	if err != nil {
		return nil, false, err
	}
	request.Header.Set("Authorization", "Bearer "+c.options.Token)
	response, err := c.options.HTTP.Do(request)
	if err != nil {
		return nil, true, err
	}
	defer func() { err = errors.Join(err, response.Body.Close()) }()
	switch response.StatusCode {
	case http.StatusOK:
	case http.StatusNotFound:
		return nil, false, ErrNotFound
	case http.StatusUnauthorized, http.StatusForbidden:
		return nil, false, ErrDenied
	default:
		return nil, response.StatusCode >= 500, fmt.Errorf("status %s", response.Status)
	}
	data, err = io.ReadAll(io.LimitReader(response.Body, c.options.MaxBlob+1))
	if err != nil {
		return nil, true, err
	}
	if int64(len(data)) > c.options.MaxBlob {
		return nil, false, fmt.Errorf("%w: over %d bytes", ErrTooLarge, c.options.MaxBlob)
	}
	if got := DigestOf(data); got != digest {
		return nil, true, fmt.Errorf("%w: received digest %s", ErrCorrupt, got)
	}
	return data, false, nil
}

// Close drops idle connections.
func (c *Client) Close() { c.options.HTTP.CloseIdleConnections() }
