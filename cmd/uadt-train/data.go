package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/uadt-train/uadt-train/internal/dataset"
	"github.com/uadt-train/uadt-train/internal/phantom"
	"github.com/uadt-train/uadt-train/rollout"
)

// dataCommand makes, checks and indexes files of records.
func (m *Main) dataCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "data", Short: "make, check and index files of records"}
	cmd.AddCommand(m.dataPhantom(), m.dataCheck(), m.dataIndex())
	return cmd
}

func (m *Main) dataPhantom() *cobra.Command {
	var o phantom.Options
	var out string
	var kinds []string
	cmd := &cobra.Command{
		Use: "phantom --out DIR", Short: "write synthetic fundus photographs and questions about them", Args: cobra.NoArgs,
		Long: `phantom writes synthetic fundus photographs with lesions, captions of them, and
questions with reasoning traces, as MM-Retinal-Reason files. Phantoms are
drawings, not patients; nothing about them is for clinical use.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if out == "" {
				return usagef("data phantom: --out names no directory")
			}
			for _, k := range kinds {
				o.Kinds = append(o.Kinds, rollout.Kind(k))
			}
			if err := o.Validate(); err != nil {
				return &usageError{err}
			}
			if o.Captions|o.SFT|o.Train|o.InDomain|o.OutOfDomain == 0 {
				return usagef("data phantom: nothing to make, want --captions, --sft, --train, --in-domain or --out-of-domain")
			}
			written, err := phantom.Write(cmd.Context(), out, o)
			if err != nil {
				return err
			}
			page := &printer{w: m.Stdout}
			for _, split := range slices.Sorted(maps.Keys(written.Files)) {
				page.printf("%s: %d records, %d images\n", filepath.Join(out, written.Files[split]), written.Records[split], written.Images[split])
			}
			return page.err
		},
	}
	f := cmd.Flags()
	f.StringVar(&out, "out", "", "directory to write")
	f.Int64Var(&o.Seed, "seed", 0, "seed that decides everything")
	f.IntVar(&o.Size, "size", 84, "side of an image in pixels")
	f.IntVar(&o.Captions, "captions", 0, "image-caption pairs")
	f.IntVar(&o.SFT, "sft", 0, "questions with reasoning traces")
	f.IntVar(&o.Train, "train", 0, "questions for reinforcement learning")
	f.IntVar(&o.InDomain, "in-domain", 0, "held-out questions of the same camera")
	f.IntVar(&o.OutOfDomain, "out-of-domain", 0, "held-out questions of another camera")
	f.StringSliceVar(&kinds, "kinds", nil, "question types (default single,multiple,truefalse,open)")
	f.Float64Var(&o.LongShare, "long-share", 0, "share of SFT traces that scan quadrant by quadrant; 0 takes the default of the generator, negative is none")
	f.Float64Var(&o.ComplexShare, "complex-share", 0, "share of questions with a vignette and several images")
	f.BoolVar(&o.Inline, "inline", false, "write images as base64 into the records")
	return cmd
}

func (m *Main) dataCheck() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "check FILE...", Short: "read every record and say which cannot be taken, and why", Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, files []string) error {
			bad := 0
			for _, file := range files {
				n, err := m.checkFile(cmd, file, asJSON)
				if err != nil {
					return err
				}
				bad += n
			}
			if bad > 0 {
				return fmt.Errorf("%d records cannot be taken", bad)
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print a JSON object a file")
	return cmd
}

// fileReport is what data check says of one file.
type fileReport struct {
	File     string         `json:"file"`
	Digest   string         `json:"digest"`
	Records  int            `json:"records"`
	Bad      []string       `json:"bad"`
	Kinds    map[string]int `json:"kinds"`
	Images   int            `json:"images"`
	Distinct int            `json:"distinct_images"`
}

func (m *Main) checkFile(cmd *cobra.Command, file string, asJSON bool) (bad int, err error) {
	store, remove, err := scratchStore()
	if err != nil {
		return 0, err
	}
	defer remove() //nolint:errcheck // a temporary folder
	set, err := dataset.Open(cmd.Context(), store, dataset.Options{Path: file, MaxBadShare: 1, NoIndexFile: true, MaxImages: 1 << 20})
	if err != nil {
		return 0, err
	}
	defer set.Close() //nolint:errcheck // read-only
	report := fileReport{File: file, Digest: set.Digest(), Records: set.Len(), Kinds: map[string]int{}}
	for _, b := range set.Bad() {
		report.Bad = append(report.Bad, b.Error())
	}
	seen := map[string]bool{}
	for i := range set.Len() {
		q, err := set.Question(cmd.Context(), i)
		if err != nil {
			report.Bad = append(report.Bad, err.Error())
			continue
		}
		report.Kinds[string(q.Kind)]++
		for _, image := range q.Images() {
			report.Images++
			seen[image.Digest] = true
		}
	}
	report.Distinct = len(seen)
	return len(report.Bad), m.printReport(report, asJSON)
}

func (m *Main) printReport(r fileReport, asJSON bool) error {
	if asJSON {
		return json.NewEncoder(m.Stdout).Encode(r)
	}
	out := &printer{w: m.Stdout}
	var kinds []string
	for _, k := range []rollout.Kind{rollout.SingleChoice, rollout.MultipleChoice, rollout.TrueFalse, rollout.Open, rollout.Caption} {
		if n := r.Kinds[string(k)]; n > 0 {
			kinds = append(kinds, fmt.Sprintf("%d %s", n, k))
		}
	}
	out.printf("%s: %d records (%s), %d images, %d distinct, sha256 %s\n", r.File, r.Records, strings.Join(kinds, ", "), r.Images, r.Distinct, r.Digest)
	for _, b := range r.Bad {
		out.printf("  %s\n", b)
	}
	return out.err
}

func (m *Main) dataIndex() *cobra.Command {
	return &cobra.Command{
		Use: "index FILE...", Short: "index files of records, so that later runs start at once", Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, files []string) error {
			store, remove, err := scratchStore()
			if err != nil {
				return err
			}
			defer remove() //nolint:errcheck // a temporary folder
			for _, file := range files {
				set, err := dataset.Open(cmd.Context(), store, dataset.Options{Path: file})
				if err != nil {
					return err
				}
				_, err = fmt.Fprintf(m.Stdout, "%s: %d records, %d left out\n", file, set.Len(), len(set.Bad()))
				if err := errors.Join(err, set.Close()); err != nil {
					return err
				}
			}
			return nil
		},
	}
}
