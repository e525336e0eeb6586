package vllm

import (
	"context"
	"errors"
	"fmt"
)

// Info is what one server says of itself.
type Info struct {
	Server    string
	Version   string // of the engine
	Model     string // served name
	Root      string // what it was started on
	MaxLength int    // longest prompt and response together, tokens; 0 when it does not say
	// CanChange says that the development routes are there, without which weights
	// cannot be changed.
	CanChange bool
	Paused    bool
	// Watched says that it shows a progress counter, without which a hung server
	// is noticed by the request timeout only.
	Watched bool
	// Settings is how it was started; nil when it does not say.
	Settings *Settings
}

// Inspect asks one server what it is, for reports and for checks before a run.
// It samples nothing and changes nothing. Of options it uses Model, Key and
// ProbeTimeout, which bounds each question. Everything that could not be found
// out is in the error, and the rest in Info.
func Inspect(ctx context.Context, server string, options Options) (Info, error) {
	options.Servers = []string{server}
	if err := options.validate(); err != nil {
		return Info{Server: server}, fmt.Errorf("inspect: %w", err)
	}
	options = options.withDefaults()
	c := newClient(server, options)
	defer c.close()
	info := Info{Server: server}
	bounded := func(ask func(ctx context.Context) error) error {
		limited, cancel := context.WithTimeoutCause(ctx, options.ProbeTimeout, fmt.Errorf("no answer within %s", options.ProbeTimeout))
		defer cancel()
		return ask(limited)
	}
	if err := bounded(c.health); err != nil {
		return info, err // nobody is there: one error says it all
	}
	return info, errors.Join(
		bounded(func(ctx context.Context) (err error) {
			info.Version, err = c.version(ctx)
			return err
		}),
		bounded(func(ctx context.Context) error {
			m, err := c.baseModel(ctx, options.Model)
			info.Model, info.Root, info.MaxLength = m.ID, m.Root, m.MaxLength
			return err
		}),
		bounded(func(ctx context.Context) (err error) {
			info.Paused, info.CanChange, err = c.paused(ctx)
			return err
		}),
		bounded(func(ctx context.Context) error {
			m, err := c.metrics(ctx)
			info.Watched = m.known
			return err
		}),
		bounded(func(ctx context.Context) (err error) {
			info.Settings, err = c.settings(ctx)
			return err
		}),
	)
}
