package dataset

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/uadt-train/uadt-train/rollout"
)

// Options says which file to open and how to take its records.
type Options struct {
	// Path of the file: .json (an array), .jsonl, .csv or .tsv.
	Path string
	// Name of the split; default the file's name without extension. Question ids
	// are <name>-<record number>.
	Name string
	// ImageRoot is where relative image paths start; default the file's folder.
	ImageRoot string
	// Images is a CSV or TSV with a base64 column and a key column that image
	// references are looked up in first; default none.
	Images string
	// Kind is the type of questions in the file where a record does not declare
	// one; default by the name (a name with multi_choice or single_choice), else
	// detected record by record.
	Kind rollout.Kind
	// Modality where a record does not declare one; default by the end of the
	// name: CFP, FFA or OCT.
	Modality string
	// Prompt turns questions into messages.
	Prompt Prompt
	// Limits of one image.
	Limits Limits
	// MaxImages of one question; default 6. Further images are left out and
	// counted in Set.Cut.
	MaxImages int
	// MaxBadShare is the share of bad records above which Open fails; default
	// 0.01, negative allows none.
	MaxBadShare float64
	// NoIndexFile keeps the index in memory only.
	NoIndexFile bool
}

func (o Options) withDefaults() Options {
	base := filepath.Base(o.Path)
	if o.Name == "" {
		o.Name = strings.TrimSuffix(base, filepath.Ext(base))
	}
	if o.ImageRoot == "" {
		o.ImageRoot = filepath.Dir(o.Path)
	}
	if o.Kind == "" {
		switch {
		case strings.Contains(o.Name, "multi_choice"), strings.Contains(o.Name, "multiple_choice"):
			o.Kind = rollout.MultipleChoice
		case strings.Contains(o.Name, "single_choice"):
			o.Kind = rollout.SingleChoice
		}
	}
	if o.Modality == "" {
		for _, m := range []string{"CFP", "FFA", "OCT"} {
			if strings.HasSuffix(o.Name, m) {
				o.Modality = m
			}
		}
	}
	if o.MaxImages == 0 {
		o.MaxImages = 6
	}
	switch {
	case o.MaxBadShare == 0:
		o.MaxBadShare = 0.01
	case o.MaxBadShare < 0:
		o.MaxBadShare = 0
	}
	o.Limits = o.Limits.withDefaults()
	return o
}

// validate reports every option that is out of range; defaults are filled in.
func (o Options) validate() error {
	var problems []error
	bad := func(format string, args ...any) { problems = append(problems, fmt.Errorf(format, args...)) }
	if o.MaxImages < 1 {
		bad("MaxImages is %d, want at least 1", o.MaxImages)
	}
	if !(o.MaxBadShare <= 1) { // NaN too
		bad("MaxBadShare is %g, want at most 1", o.MaxBadShare)
	}
	if o.Limits.Pixels < 1 {
		bad("Limits.Pixels is %d, want at least 1", o.Limits.Pixels)
	}
	if o.Limits.Bytes < 1 {
		bad("Limits.Bytes is %d, want at least 1", o.Limits.Bytes)
	}
	if !knownKind(o.Kind) {
		bad("Kind is %q, want a kind of question", o.Kind)
	}
	return errors.Join(problems...)
}

// checkKey names everything that decides which records are bad; a check made
// under another key is not trusted. The image file's own content is not in it.
func (o Options) checkKey() string {
	sum := sha256.Sum256(fmt.Appendf(nil, "check-1|%q|%q|%q|%d|%d|%d",
		o.ImageRoot, o.Images, o.Kind, o.Limits.Pixels, o.Limits.Bytes, o.MaxImages))
	return hex.EncodeToString(sum[:8])
}
