package remote

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/uadt-train/uadt-train/internal/bus"
	"github.com/uadt-train/uadt-train/rollout"
)

// Options configures a Trainer.
type Options struct {
	// Conn is the bus, as coordinator. Required.
	Conn *bus.Conn
	// Scope is the run and the incarnation of this coordinator: ranks drop all
	// state of a lower one. Required.
	Scope bus.Scope
	// Ranks is the number of processes of a full set. Default 1.
	Ranks int
	// Launch starts the ranks here; nil (default) waits for ranks that were
	// started elsewhere.
	Launch *Launch
	// MaxPixels is the pixel budget of an image; 0 (default) is that of the
	// checkpoint.
	MaxPixels int
	// KeepActivations holds on a GPU what the backward pass needs instead of
	// computing it again: faster, with several times the memory. Default false.
	KeepActivations bool
	// Weights is how Publish hands weights out: rollout.ByDirectory (default);
	// rollout.ByNCCL: by broadcast, for which nothing is written; or
	// rollout.ByLoRA: the adapters alone, on what the stage started from.
	Weights rollout.Transport
	// LoRA is what adapters are trained in place of the weights; nil (default) is
	// none.
	LoRA *LoRA
	// Start is how long a full set may take to be there. Default 3 minutes.
	Start time.Duration
	// Silence is after how long without a heartbeat (there are two a second) a
	// rank counts as lost. Default 15 s.
	Silence time.Duration
	// Command is how long one command may take when its context has no earlier
	// deadline. Default 30 minutes.
	Command time.Duration
	// Log is told of ranks that come and go. Default: nothing is told.
	Log *slog.Logger
}

// maxRanks bounds Options.Ranks.
const maxRanks = 4096

// prepare fills in defaults and reports everything that is wrong at once.
func (o Options) prepare() (Options, error) {
	var errs []error
	require := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	if o.Ranks == 0 {
		o.Ranks = 1
	}
	for _, d := range []struct {
		name  string
		value *time.Duration
		byDef time.Duration
	}{{"Start", &o.Start, 3 * time.Minute}, {"Silence", &o.Silence, 15 * time.Second}, {"Command", &o.Command, 30 * time.Minute}} {
		if *d.value == 0 {
			*d.value = d.byDef
		}
		require(*d.value > 0, "%s is %s, want above 0", d.name, *d.value)
	}
	if o.Weights == "" {
		o.Weights = rollout.ByDirectory
	}
	transports := []rollout.Transport{rollout.ByDirectory, rollout.ByNCCL, rollout.ByLoRA}
	require(slices.Contains(transports, o.Weights), "Weights is %q, want one of %q", o.Weights, transports)
	require(o.Weights != rollout.ByLoRA || o.LoRA != nil, "Weights is %q, but LoRA is missing", o.Weights)
	if o.LoRA != nil {
		lora, err := o.LoRA.prepare()
		o.LoRA = &lora
		errs = append(errs, err)
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	require(o.Conn != nil, "Conn is missing")
	if err := bus.CheckName(o.Scope.Run); err != nil {
		errs = append(errs, fmt.Errorf("Scope.Run: %w", err))
	}
	require(o.Scope.Incarnation > 0, "Scope.Incarnation is 0")
	require(o.Ranks >= 1 && o.Ranks <= maxRanks, "Ranks is %d, want 1 to %d", o.Ranks, maxRanks)
	require(o.MaxPixels >= 0, "MaxPixels is %d, want at least 0", o.MaxPixels)
	if o.Launch != nil {
		launch, err := o.Launch.prepare()
		o.Launch = &launch
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return o, fmt.Errorf("remote trainer options: %w", err)
	}
	return o, nil
}

// randomName makes a name that nothing else has.
func randomName() string {
	var data [8]byte
	_, _ = rand.Read(data[:]) // never fails
	return hex.EncodeToString(data[:])
}
