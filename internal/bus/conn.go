package bus

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nkeys"
)

// callTimeout bounds a call whose context has no deadline.
const callTimeout = 15 * time.Second

// DialOptions describe a connection to a server that is not in this process.
type DialOptions struct {
	// URL is one or more nats:// or tls:// addresses, comma-separated.
	URL string
	// Name shows in the server's list of connections.
	Name string
	// Seed is the nkey seed of the role. Default empty: no authentication.
	Seed string
	// TLS holds the client's certificates. Default nil: plain.
	TLS *TLS
	// Problem is told what the connection meets on its own: lost, back again,
	// permission violations. It may be called from several goroutines. Default:
	// nothing is told.
	Problem func(error)
}

// Conn is a connection to the bus. It reconnects by itself, for ever; what is
// asked of it meanwhile waits for its own deadline.
type Conn struct {
	nats *nats.Conn
	js   jetstream.JetStream

	// parts is held while a value is published in parts. Values that are written
	// at once could fill a stream with parts of which none is complete, and then
	// nothing could ever be read and purged.
	parts chan struct{}

	mu    sync.Mutex
	calls map[*call]bool // calls that run, so that a denial can end them
}

// Dial connects to the server at options.URL. It fails if no server is there
// before ctx ends or, without a deadline, after 15 s.
func Dial(ctx context.Context, options DialOptions) (*Conn, error) {
	return connect(ctx, nil, options)
}

// connect dials, over TCP when local is nil.
func connect(ctx context.Context, local nats.InProcessConnProvider, options DialOptions) (*Conn, error) {
	ctx, cancel := bounded(ctx)
	defer cancel()
	c := &Conn{parts: make(chan struct{}, 1), calls: map[*call]bool{}}
	settings := []nats.Option{
		nats.Name(options.Name),
		nats.MaxReconnects(-1), nats.ReconnectWait(200 * time.Millisecond), nats.ReconnectJitter(100*time.Millisecond, 100*time.Millisecond),
		nats.PingInterval(2 * time.Second), nats.MaxPingsOutstanding(2),
		nats.ReconnectBufSize(-1), // a publish while disconnected fails at once and is retried by us
		nats.CustomInboxPrefix(InboxPrefix(options.Seed)),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { c.trouble(options.Problem, err) }),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			if err != nil {
				c.trouble(options.Problem, fmt.Errorf("bus connection lost: %w", err))
			}
		}),
	}
	if local != nil {
		settings = append(settings, nats.InProcessServer(local))
	}
	if options.Seed != "" {
		option, err := nkeyOption(options.Seed)
		if err != nil {
			return nil, err
		}
		settings = append(settings, option)
	}
	if options.TLS != nil {
		config, err := options.TLS.client()
		if err != nil {
			return nil, err
		}
		settings = append(settings, nats.Secure(config))
	}
	nc, err := dial(ctx, options.URL, settings)
	if err != nil {
		return nil, fmt.Errorf("bus %s: %w", options.URL, err)
	}
	js, err := jetstream.New(nc, jetstream.WithDefaultTimeout(callTimeout))
	if err != nil {
		nc.Close()
		return nil, fmt.Errorf("bus %s: %w", options.URL, err)
	}
	c.nats, c.js = nc, js
	return c, nil
}

// dial retries until a server answers or ctx ends; bad credentials are not
// retried.
func dial(ctx context.Context, url string, settings []nats.Option) (*nats.Conn, error) {
	for {
		nc, err := nats.Connect(url, settings...)
		if err == nil {
			return nc, nil
		}
		if errors.Is(err, nats.ErrAuthorization) || errors.Is(err, nats.ErrAuthExpired) {
			return nil, fmt.Errorf("%w: %w", ErrDenied, err)
		}
		if url == "" { // in the process: it will not get better
			return nil, err
		}
		if waitErr := pause(ctx, 100*time.Millisecond); waitErr != nil {
			return nil, fmt.Errorf("%w: %w", ErrTimeout, err)
		}
	}
}

// nkeyOption signs with a seed.
func nkeyOption(seed string) (nats.Option, error) {
	pair, err := nkeys.FromSeed([]byte(seed))
	if err != nil {
		return nil, fmt.Errorf("bus: nkey seed: %w", err)
	}
	public, err := pair.PublicKey()
	if err != nil {
		return nil, fmt.Errorf("bus: nkey seed: %w", err)
	}
	return nats.Nkey(public, pair.Sign), nil
}

// call is one exchange with the server that runs.
type call struct {
	subject string // what it publishes; empty for the API's own subjects
	cancel  context.CancelCauseFunc
}

// bounded gives ctx a deadline if it has none, and lets a denial of subject end
// it: the server tells a connection of a denial, not the call that ran into it,
// which would wait for its deadline. An empty subject stands for calls of the
// JetStream API.
func (c *Conn) bounded(ctx context.Context, subject string) (context.Context, context.CancelFunc) {
	ctx, stop := bounded(ctx)
	ctx, cancel := context.WithCancelCause(ctx)
	entry := &call{subject: subject, cancel: cancel}
	c.mu.Lock()
	c.calls[entry] = true
	c.mu.Unlock()
	return ctx, func() {
		c.mu.Lock()
		delete(c.calls, entry)
		c.mu.Unlock()
		cancel(nil)
		stop()
	}
}

// trouble ends the calls that a denial means, and tells the owner.
func (c *Conn) trouble(problem func(error), err error) {
	if errors.Is(err, nats.ErrPermissionViolation) {
		text := err.Error() // names the subject in quotes
		c.mu.Lock()
		for entry := range c.calls {
			quoted := entry.subject
			if quoted == "" {
				quoted = "$JS."
			} else {
				quoted += `"`
			}
			if strings.Contains(text, `"`+quoted) || strings.Contains(text, "Subscription") {
				entry.cancel(fmt.Errorf("%w: %w", ErrDenied, err))
			}
		}
		c.mu.Unlock()
	}
	if problem != nil {
		problem(err)
	}
}

// named turns the client's errors, met by a call under a context of bounded,
// into ours.
func (c *Conn) named(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	cause := context.Cause(ctx)
	switch {
	case errors.Is(cause, ErrDenied):
		return cause
	case errors.Is(err, context.Canceled) || errors.Is(cause, context.Canceled):
		return err
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, jetstream.ErrNoHeartbeat):
		return fmt.Errorf("%w: %w", ErrTimeout, err)
	}
	return err
}

// Close ends the connection at once.
func (c *Conn) Close() { c.nats.Close() }

// bounded gives ctx a deadline if it has none.
func bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, callTimeout)
}

// pause waits for d or the end of ctx.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
