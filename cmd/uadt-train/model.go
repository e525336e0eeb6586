package main

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"sort"

	"github.com/spf13/cobra"

	"github.com/uadt-train/uadt-train/internal/checkpoint"
	"github.com/uadt-train/uadt-train/internal/micro"
	"github.com/uadt-train/uadt-train/internal/phantom"
	"github.com/uadt-train/uadt-train/internal/safetensors"
)

// modelCommand makes, inspects, compares and converts model directories.
func (m *Main) modelCommand(w *watch) *cobra.Command {
	cmd := &cobra.Command{Use: "model", Short: "make, inspect, compare and convert model directories"}
	cmd.AddCommand(m.modelInit(), m.modelInspect(), m.modelCompare(), m.modelConvert(), m.modelImport(w))
	return cmd
}

func (m *Main) modelInit() *cobra.Command {
	var o micro.Options
	var out, dtype string
	var corpusSeed int64
	cmd := &cobra.Command{
		Use: "init --out DIR", Short: "write a fresh micro Qwen2.5-VL with random weights", Args: cobra.NoArgs,
		Long: `init writes a complete Hugging Face directory of a micro Qwen2.5-VL: random
weights, and a byte-level BPE vocabulary learnt from the texts of phantoms. It
opens unchanged in transformers, in vLLM and in uadt-train serve.`,
		RunE: func(*cobra.Command, []string) error {
			if out == "" {
				return usagef("model init: --out names no directory")
			}
			o.DType = safetensors.DType(dtype)
			if err := o.Validate(); err != nil {
				return usagef("model init: %w", err)
			}
			corpus, err := phantom.Corpus(phantom.Options{Seed: corpusSeed})
			if err != nil {
				return err
			}
			o.Corpus = corpus
			digest, err := micro.Init(out, o)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(m.Stdout, "%s\nweights sha256 %s\n", out, digest)
			return err
		},
	}
	f := cmd.Flags()
	f.StringVar(&out, "out", "", "directory to write; must not exist or be empty")
	f.Uint64Var(&o.Seed, "seed", 0, "seed of the weights")
	f.Int64Var(&corpusSeed, "corpus-seed", 0, "seed of the texts that the vocabulary is learnt from")
	f.StringVar(&dtype, "dtype", "F32", "F32 or BF16")
	f.IntVar(&o.Vocab, "vocab", 0, "most tokens of the vocabulary (default 512)")
	f.IntVar(&o.Hidden, "hidden", 0, "text width (default 64)")
	f.IntVar(&o.Layers, "layers", 0, "text layers (default 2)")
	f.IntVar(&o.MLP, "mlp", 0, "width of the text MLP (default 192)")
	f.IntVar(&o.VisionHidden, "vision-hidden", 0, "vision width (default 64)")
	f.IntVar(&o.VisionDepth, "vision-depth", 0, "vision blocks (default 2)")
	f.BoolVar(&o.Untied, "untied", false, "an output matrix of its own")
	return cmd
}

// tensorRow is one line of model inspect.
type tensorRow struct {
	Name  string            `json:"name"`
	DType safetensors.DType `json:"dtype"`
	Shape []int             `json:"shape"`
	RMS   float64           `json:"rms"`
}

func (m *Main) modelInspect() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "inspect DIR", Short: "list the tensors of a model directory and its digest", Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			model, err := checkpoint.Open(args[0])
			if err != nil {
				return err
			}
			defer model.Close() //nolint:errcheck // read-only
			rows, parameters, err := inspect(model)
			if err != nil {
				return err
			}
			digest, err := model.Digest()
			if err != nil {
				return err
			}
			if asJSON {
				return json.NewEncoder(m.Stdout).Encode(map[string]any{"digest": digest, "parameters": parameters, "tensors": rows})
			}
			for _, r := range rows {
				fmt.Fprintf(m.Stdout, "%-56s %-5s %-18v rms %.4g\n", r.Name, r.DType, r.Shape, r.RMS)
			}
			_, err = fmt.Fprintf(m.Stdout, "%d tensors, %d parameters\nweights sha256 %s\n", len(rows), parameters, digest)
			return err
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func inspect(model *checkpoint.Model) (rows []tensorRow, parameters int, err error) {
	for _, name := range model.Names() {
		dtype, shape, _ := model.Info(name)
		values, err := model.Float32(name)
		if err != nil {
			return nil, 0, err
		}
		var sum float64
		for _, v := range values {
			sum += float64(v) * float64(v)
		}
		parameters += len(values)
		rows = append(rows, tensorRow{Name: name, DType: dtype, Shape: shape, RMS: math.Sqrt(sum / math.Max(1, float64(len(values))))})
	}
	return rows, parameters, nil
}

func (m *Main) modelCompare() *cobra.Command {
	return &cobra.Command{
		Use: "compare DIR DIR", Short: "list the tensors in which two model directories differ", Args: cobra.ExactArgs(2),
		RunE: func(_ *cobra.Command, args []string) error {
			var both [2]*checkpoint.Model
			for i, dir := range args {
				model, err := checkpoint.Open(dir)
				if err != nil {
					return err
				}
				defer model.Close() //nolint:errcheck // read-only
				both[i] = model
			}
			differing, err := m.compare(both[0], both[1])
			if err != nil {
				return err
			}
			if differing > 0 {
				return fmt.Errorf("%d tensors differ between %s and %s", differing, args[0], args[1])
			}
			_, err = fmt.Fprintln(m.Stdout, "the same weights")
			return err
		},
	}
}

func (m *Main) compare(a, b *checkpoint.Model) (differing int, err error) {
	names := map[string]bool{}
	for _, model := range []*checkpoint.Model{a, b} {
		for _, name := range model.Names() {
			names[name] = true
		}
	}
	sorted := make([]string, 0, len(names))
	for name := range names {
		sorted = append(sorted, name)
	}
	sort.Strings(sorted)
	for _, name := range sorted {
		if !a.Has(name) || !b.Has(name) {
			fmt.Fprintf(m.Stdout, "%-56s only in one\n", name)
			differing++
			continue
		}
		x, err := a.Float32(name)
		if err != nil {
			return 0, err
		}
		y, err := b.Float32(name)
		if err != nil {
			return 0, err
		}
		if text := difference(x, y); text != "" {
			fmt.Fprintf(m.Stdout, "%-56s %s\n", name, text)
			differing++
		}
	}
	return differing, nil
}

// difference describes how y differs from x; "" when it does not.
func difference(x, y []float32) string {
	if len(x) != len(y) {
		return fmt.Sprintf("%d against %d elements", len(x), len(y))
	}
	var largest, sum, base float64
	for i := range x {
		d := math.Abs(float64(x[i]) - float64(y[i]))
		largest = math.Max(largest, d)
		sum += d * d
		base += float64(x[i]) * float64(x[i])
	}
	if largest == 0 {
		return ""
	}
	return fmt.Sprintf("largest difference %.3g, relative %.3g", largest, math.Sqrt(sum/math.Max(base, 1e-300)))
}

// modelDigest is the digest of the weights of a model directory.
func modelDigest(dir string) (string, error) {
	if _, err := os.Stat(dir); err != nil {
		return "", fmt.Errorf("model.path: %w", err)
	}
	model, err := checkpoint.Open(dir)
	if err != nil {
		return "", err
	}
	defer model.Close() //nolint:errcheck // read-only
	return model.Digest()
}
