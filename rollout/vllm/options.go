package vllm

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"time"
)

// Images gives the bytes of images by digest; the blob store's client is one.
type Images interface {
	// Image returns the encoded file whose SHA-256 is digest, and its media type,
	// such as image/jpeg.
	Image(ctx context.Context, digest string) (data []byte, mediaType string, err error)
}

// Options configures a fleet. Zero fields take their default.
type Options struct {
	// Servers are base URLs such as http://10.0.0.7:8000; at least one. A URL is
	// the server's id in groups, errors and reports.
	Servers []string
	// Model is the served model name; default: what /v1/models lists first.
	Model string
	// Key is the bearer token of servers started with --api-key; default none.
	Key string
	// Images gives image bytes; needed for questions with images only.
	Images Images
	// MaxPixels bounds an image's pixels after resizing; it is sent with every
	// request that has images. Default 0: the server's own.
	MaxPixels int

	// Concurrency is the most jobs in flight on one server, default 16. Stock
	// vLLM queues without bound and never refuses, so the bound is ours.
	Concurrency int
	// Retries is how often a job is tried again after a server failed it,
	// default 3; -1 is never. A refused request is never tried again.
	Retries int
	// Timeout is the longest time for one request, default 30 min. It is the last
	// resort: dead and hung servers are noticed long before.
	Timeout time.Duration
	// Patience is how long a job waits when no server can serve it at all before
	// it is dropped as unavailable, default 2 min.
	Patience time.Duration
	// Quarantine is how long a server is left alone after it failed a job,
	// doubled with each failure in a row up to 32 times, default 1 s.
	Quarantine time.Duration

	// Quorum is how many servers must adopt new weights, default more than half.
	Quorum int
	// AdoptTimeout is the longest time for one server to bring new weights live,
	// draining included; default 15 min.
	AdoptTimeout time.Duration
	// TransferTimeout is the longest time for the trainer and a server to meet for
	// broadcasts, and for one broadcast; default 2 min.
	TransferTimeout time.Duration
	// StartTimeout is how long the first Adopt waits for servers that do not
	// answer yet, because they still start; default 5 min. Later ones do not wait:
	// a server that comes back gets the current weights then.
	StartTimeout time.Duration

	// ProbeEvery is the time between two looks at a server, default 250 ms.
	ProbeEvery time.Duration
	// ProbeTimeout is the longest time for one probe, default 5 s.
	ProbeTimeout time.Duration
	// DeadAfter is how many failed probes in a row make a server dead, default 3;
	// a refused connection does so at once.
	DeadAfter int
	// HangAfter is the longest that a server with jobs may show no progress before
	// it counts as hung, default 60 s. The first request of a server may compile
	// kernels: keep it above that. Where another server can take the jobs, a
	// server that has shown its pace is given up much sooner: after four times the
	// longest pause between two signs of progress, at least five probes.
	HangAfter time.Duration
	// SlowRatio is the share of the others' token rate below which a server counts
	// as slow: its jobs go to the others, each at most once, and it is used last
	// and in proportion. Default 0.25; negative is never.
	SlowRatio float64

	// MaxBody is the most bytes of one answer, default 512 MiB.
	MaxBody int64
	// Log receives changes of state; default none.
	Log *slog.Logger
}

// withDefaults returns o with its zero fields filled in.
func (o Options) withDefaults() Options {
	setDefault(&o.Concurrency, 16)
	setDefault(&o.Retries, 3)
	setDefault(&o.Timeout, 30*time.Minute)
	setDefault(&o.Patience, 2*time.Minute)
	setDefault(&o.Quarantine, time.Second)
	setDefault(&o.Quorum, len(o.Servers)/2+1)
	setDefault(&o.AdoptTimeout, 15*time.Minute)
	setDefault(&o.TransferTimeout, 2*time.Minute)
	setDefault(&o.StartTimeout, 5*time.Minute)
	setDefault(&o.ProbeEvery, 250*time.Millisecond)
	setDefault(&o.ProbeTimeout, 5*time.Second)
	setDefault(&o.DeadAfter, 3)
	setDefault(&o.HangAfter, time.Minute)
	setDefault(&o.SlowRatio, 0.25)
	setDefault(&o.MaxBody, 512<<20)
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return o
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// validate reports everything that is wrong at once.
func (o Options) validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if len(o.Servers) == 0 {
		bad("no servers are configured")
	}
	seen := map[string]bool{}
	for _, server := range o.Servers {
		u, err := url.Parse(server)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.RawQuery != "" {
			bad("server is %q, want a URL such as http://host:8000", server)
		}
		if seen[server] {
			bad("server %s is listed twice", server)
		}
		seen[server] = true
	}
	for name, d := range map[string]time.Duration{
		"timeout": o.Timeout, "patience": o.Patience, "quarantine": o.Quarantine, "adopt timeout": o.AdoptTimeout,
		"start timeout": o.StartTimeout, "transfer timeout": o.TransferTimeout,
		"probe interval": o.ProbeEvery, "probe timeout": o.ProbeTimeout, "hang limit": o.HangAfter,
	} {
		if d < 0 {
			bad("%s is %s, want more than 0", name, d)
		}
	}
	if o.Concurrency < 0 || o.DeadAfter < 0 || o.MaxBody < 0 || o.MaxPixels < 0 {
		bad("concurrency %d, failed probes %d, body limit %d and max pixels %d must not be negative",
			o.Concurrency, o.DeadAfter, o.MaxBody, o.MaxPixels)
	}
	if o.Quorum < 0 || o.Quorum > len(o.Servers) {
		bad("quorum is %d, want 1 to %d, the number of servers", o.Quorum, len(o.Servers))
	}
	return errors.Join(errs...)
}
