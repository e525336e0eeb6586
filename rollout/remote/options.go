package remote

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/uadt-train/uadt-train/internal/bus"
	"github.com/uadt-train/uadt-train/rollout"
)

// FleetOptions describe the coordinator's side.
type FleetOptions struct {
	// Conn is a connection of the coordinator role, set up for the run. The
	// fleet does not close it. Required.
	Conn *bus.Conn
	// Scope is the run and the incarnation of this coordinator. Required.
	Scope bus.Scope
	// Quorum is how many servers must adopt an offer. Default 0: more than half
	// of those whose workers were there when it was made.
	Quorum int
	// MinWorkers is how many workers Adopt waits for before it makes an offer.
	// Default 1.
	MinWorkers int
	// AdoptTimeout bounds an Adopt whose context has no deadline. Default 2 min.
	AdoptTimeout time.Duration
	// Silence is how long a worker may not be heard of before it counts as
	// dead for Adopt. Default 5 s; workers report every 0.5 s. (The jobs of a
	// dead worker go elsewhere after bus.AckWait, whatever this says.)
	Silence time.Duration
	// Log is told what is ignored and who comes and goes. Default: discards.
	Log *slog.Logger
}

// withDefaults fills in what is zero and reports all that is wrong at once.
func (o FleetOptions) withDefaults() (FleetOptions, error) {
	var errs []error
	if o.Conn == nil {
		errs = append(errs, errors.New("no connection"))
	}
	if err := bus.CheckName(o.Scope.Run); err != nil {
		errs = append(errs, fmt.Errorf("run: %w", err))
	}
	if o.Scope.Incarnation == 0 {
		errs = append(errs, errors.New("incarnation 0, want that of the coordinator's lease"))
	}
	if o.Quorum < 0 || o.MinWorkers < 0 || o.AdoptTimeout < 0 || o.Silence < 0 {
		errs = append(errs, fmt.Errorf("negative option: quorum %d, workers %d, adopt timeout %s, silence %s",
			o.Quorum, o.MinWorkers, o.AdoptTimeout, o.Silence))
	}
	setDefault(&o.MinWorkers, 1)
	setDefault(&o.AdoptTimeout, 2*time.Minute)
	setDefault(&o.Silence, 5*time.Second)
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return o, wrap("remote fleet", errs)
}

// WorkerOptions describe the servers' side.
type WorkerOptions struct {
	// Conn is a connection of the worker role. The worker does not close it.
	// Required.
	Conn *bus.Conn
	// Run is the run to work for. Required.
	Run string
	// ID names the worker among all of the run: one token of a subject, such as
	// host name and process id. Required.
	ID string
	// Fleet samples. Required.
	Fleet rollout.Fleet
	// Servers are the ids of the servers behind Fleet. The worker takes the
	// controller lease of each before it does anything else, so that no two
	// workers change one server's weights. Required, at least one.
	Servers []string
	// Slots is how many jobs are sampled at once. Default 8.
	Slots int
	// Stall is how long a job may go without progress (rollout.Progress) before
	// its worker lets it go to another one. Default 10 min. It must exceed the
	// time in which Fleet itself gives up a server that hangs, and the longest
	// generation when Fleet marks no progress.
	Stall time.Duration
	// LeaseTTL is how long a server stays taken after its worker has died; whole
	// seconds. Default 3 s.
	LeaseTTL time.Duration
	// LeaseWait bounds the wait for a server that another worker still has.
	// Default 15 s.
	LeaseWait time.Duration
	// TakeOver takes the servers from whoever has them, without waiting; for a
	// worker in the process of an embedded bus, whose earlier holders died with
	// it. Default false.
	TakeOver bool
	// Failures is how often Fleet may fail a job, other than by dropping it,
	// before the worker drops it as unavailable. Default 3.
	Failures int
	// Tokenizer is the digest of the servers' tokenizer, for the frames.
	// Default empty.
	Tokenizer string
	// Log is told of jobs given back, adoptions and failures. Default: discards.
	Log *slog.Logger
}

// withDefaults fills in what is zero and reports all that is wrong at once.
func (o WorkerOptions) withDefaults() (WorkerOptions, error) {
	var errs []error
	if o.Conn == nil || o.Fleet == nil {
		errs = append(errs, errors.New("no connection or no fleet"))
	}
	if err := bus.CheckName(o.Run); err != nil {
		errs = append(errs, fmt.Errorf("run: %w", err))
	}
	if err := bus.CheckName(o.ID); err != nil {
		errs = append(errs, fmt.Errorf("worker id: %w", err))
	}
	if len(o.Servers) == 0 {
		errs = append(errs, errors.New("no servers"))
	}
	if o.Slots < 0 || o.Stall < 0 || o.LeaseTTL < 0 || o.LeaseWait < 0 || o.Failures < 0 {
		errs = append(errs, fmt.Errorf("negative option: slots %d, stall %s, lease %s, wait %s, failures %d",
			o.Slots, o.Stall, o.LeaseTTL, o.LeaseWait, o.Failures))
	}
	setDefault(&o.Slots, 8)
	setDefault(&o.Stall, 10*time.Minute)
	setDefault(&o.LeaseTTL, 3*time.Second)
	setDefault(&o.LeaseWait, 15*time.Second)
	setDefault(&o.Failures, 3)
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return o, wrap("worker", errs)
}

// setDefault replaces a zero value.
func setDefault[T comparable](value *T, byDefault T) {
	var zero T
	if *value == zero {
		*value = byDefault
	}
}

// wrap joins errs under the name of what they are about; nil if there are none.
func wrap(what string, errs []error) error {
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}
