package judge

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"time"
)

// Options configures a judge. Zero fields take their default.
type Options struct {
	URL         string        // base of the API, such as http://host:8000/v1; required
	Model       string        // model name that the endpoint serves; required
	Key         string        // bearer token; empty sends none
	Timeout     time.Duration // longest time for one request, default 20 s
	Concurrency int           // most requests at once, default 8
	Retries     int           // further tries after a failed one, default 3; -1 is none
	Backoff     time.Duration // wait before the first retry, doubled each time, default 500 ms
	CacheSize   int           // most verdicts kept, default 65536; -1 keeps none
	MaxTokens   int           // most tokens of a reply, default 64
	Client      *http.Client  // default a client of its own
	// Wait waits for d or until ctx ends; tests replace it. Default a timer.
	Wait func(ctx context.Context, d time.Duration) error
}

func (o Options) withDefaults() Options {
	setDefault(&o.Timeout, 20*time.Second)
	setDefault(&o.Concurrency, 8)
	setDefault(&o.Retries, 3)
	setDefault(&o.Backoff, 500*time.Millisecond)
	setDefault(&o.CacheSize, 1<<16)
	setDefault(&o.MaxTokens, 64)
	if o.Client == nil {
		// Shorter than the 5 s after which stock vLLM closes idle connections.
		o.Client = &http.Client{Transport: &http.Transport{
			Proxy: http.ProxyFromEnvironment, IdleConnTimeout: 4 * time.Second, MaxIdleConnsPerHost: o.Concurrency,
		}}
	}
	if o.Wait == nil {
		o.Wait = waitTimer
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
	u, err := url.Parse(o.URL)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		errs = append(errs, fmt.Errorf("judge url is %q, want http://host/v1 or https://host/v1", o.URL))
	}
	if o.Model == "" {
		errs = append(errs, errors.New("judge model is empty"))
	}
	if o.Timeout < 0 || o.Backoff < 0 || o.Concurrency < 0 || o.MaxTokens < 0 {
		errs = append(errs, fmt.Errorf("judge timeout %s, backoff %s, concurrency %d and max tokens %d must not be negative",
			o.Timeout, o.Backoff, o.Concurrency, o.MaxTokens))
	}
	return errors.Join(errs...)
}

func waitTimer(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}
