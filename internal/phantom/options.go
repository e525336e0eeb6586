package phantom

import (
	"errors"
	"fmt"

	"github.com/uadt-train/uadt-train/rollout"
)

// Options says what to make. Zero values of the fields with a default take it.
type Options struct {
	// Seed decides everything; two runs with the same options write the same
	// bytes.
	Seed int64
	// Size is the side of an image in pixels, 28 to 2048; default 84, which is
	// nine image tokens of the micro model.
	Size int
	// Captions, SFT, Train, InDomain and OutOfDomain are the numbers of records
	// of each split; 0 leaves the split out.
	Captions, SFT, Train, InDomain, OutOfDomain int
	// Kinds are the question types, each as often; default all four.
	Kinds []rollout.Kind
	// LongShare is the share of SFT records whose trace scans quadrant by
	// quadrant, 0 to 1; default 0.6. The others guess at a glance. Negative
	// means none.
	LongShare float64
	// ComplexShare is the share of records with a vignette and up to three
	// images, 0 to 1; default 0.
	ComplexShare float64
	// Inline writes images as base64 into the records instead of files.
	Inline bool
}

// ErrOptions is wrapped by errors about options out of range.
var ErrOptions = errors.New("phantom: bad options")

// withDefaults fills in defaults.
func (o Options) withDefaults() Options {
	if o.Size == 0 {
		o.Size = 84
	}
	if len(o.Kinds) == 0 {
		o.Kinds = []rollout.Kind{rollout.SingleChoice, rollout.MultipleChoice, rollout.TrueFalse, rollout.Open}
	}
	switch {
	case o.LongShare == 0:
		o.LongShare = 0.6
	case o.LongShare < 0:
		o.LongShare = 0
	}
	return o
}

// Validate reports everything that is out of range at once.
func (o Options) Validate() error {
	o = o.withDefaults()
	var errs []error
	bad := func(name string, value any, want string) {
		errs = append(errs, fmt.Errorf("%w: %s is %v, want %s", ErrOptions, name, value, want))
	}
	if o.Size < 28 || o.Size > 2048 {
		bad("size", o.Size, "28 to 2048 pixels")
	}
	for _, c := range o.counts() {
		if c.records < 0 {
			bad(c.name, c.records, "0 or more records")
		}
	}
	for _, k := range o.Kinds {
		switch k {
		case rollout.SingleChoice, rollout.MultipleChoice, rollout.TrueFalse, rollout.Open:
		default:
			bad("kinds", k, "single, multiple, truefalse or open")
		}
	}
	if o.LongShare > 1 {
		bad("long share", o.LongShare, "at most 1")
	}
	if o.ComplexShare < 0 || o.ComplexShare > 1 {
		bad("complex share", o.ComplexShare, "0 to 1")
	}
	return errors.Join(errs...)
}

// The names of the splits and of their files, less ".json".
const (
	SplitCaptions    = "captions"
	SplitSFT         = "sft"
	SplitTrain       = "train"
	SplitInDomain    = "in_domain"
	SplitOutOfDomain = "out_of_domain"
)

type splitCount struct {
	name    string
	records int
}

func (o Options) counts() []splitCount {
	return []splitCount{
		{SplitCaptions, o.Captions}, {SplitSFT, o.SFT}, {SplitTrain, o.Train},
		{SplitInDomain, o.InDomain}, {SplitOutOfDomain, o.OutOfDomain},
	}
}

// camera is the look of a split.
func camera(split string) Camera {
	if split == SplitOutOfDomain {
		return Field
	}
	return Clinic
}
