package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/uadt-train/uadt-train/internal/internvl"
)

func (m *Main) modelImport(w *watch) *cobra.Command {
	return &cobra.Command{
		Use: "import SOURCE TARGET", Short: "convert an InternVL checkpoint of the original layout", Args: cobra.ExactArgs(2),
		Long: `import reads a directory as OpenGVLab publishes InternVL3 (InternVLChatModel,
with a Qwen2 language model) and writes the layout that transformers has classes
for (InternVLForConditionalGeneration), which the trainer and vLLM open: weights
renamed and fused attention cut, bit for bit, and configuration, processor,
tokenizer and chat template beside them. It needs config.json, the safetensors
files, tokenizer_config.json, and tokenizer.json or both of vocab.json and
merges.txt. What it does not know it refuses before it writes anything.`,
		RunE: func(_ *cobra.Command, args []string) error {
			r, err := internvl.Import(w.admit, internvl.Options{Source: args[0], Target: args[1], Progress: m.percent("read")})
			if errors.Is(err, internvl.ErrExists) || errors.Is(err, internvl.ErrUnsupported) {
				return usagef("model import: %w", err)
			}
			if err != nil {
				return fmt.Errorf("model import: %w", err)
			}
			return m.printImported(args[1], r)
		},
	}
}

// percent returns a function that says on stderr how far something is: on a
// terminal every percent in one line, else every tenth of it in a line.
func (m *Main) percent(what string) func(done, total int64) {
	end, step := "\n", int64(10)
	if m.Terminal {
		end, step = "\r", 1
	}
	last := int64(0)
	return func(done, total int64) {
		now := 100 * done / max(total, 1)
		if now/step == last/step {
			return
		}
		last = now
		if done == total {
			end = "\n"
		}
		fmt.Fprintf(m.Stderr, "%s %d%%%s", what, now, end)
	}
}

func (m *Main) printImported(target string, r internvl.Result) error {
	words := "tokenizer.json taken over"
	if r.MadeTokenizer {
		words = "tokenizer.json made from vocab.json and merges.txt"
	}
	_, err := fmt.Fprintf(m.Stdout, `%d tensors, %d bytes, %d fused ones cut into three
vocabulary of %d; %s
tiles of %dx%d pixels and %d tokens, at most %d an image and a thumbnail
%s
weights sha256 %s
`, r.Tensors, r.Bytes, r.Fused, r.Vocab, words, r.TileSide, r.TileSide, r.TileToken, r.MaxTiles, target, r.Digest)
	return err
}
